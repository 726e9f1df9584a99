"""ProtoPNet: training, pushing, pruning, analysing."""
