"""Results as JSON: one file for each group of schemas."""
