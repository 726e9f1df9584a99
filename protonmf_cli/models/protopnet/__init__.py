"""ProtoPNets: their latent rows, several networks in one model, and what a training holds."""
