"""Jobs of ProtoPNet."""
