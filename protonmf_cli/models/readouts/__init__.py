"""How a classifier is read: its logits as a sum over rows."""
