"""What an evaluation measures: one module per table."""
