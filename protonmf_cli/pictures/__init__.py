"""Edge: results in, pixels out."""
