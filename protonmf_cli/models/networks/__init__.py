"""Networks that are not timm's own, with its two halves."""
