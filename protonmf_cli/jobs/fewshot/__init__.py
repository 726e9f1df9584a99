"""Jobs of the few-shot model."""
