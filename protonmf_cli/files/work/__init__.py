"""What a long job keeps on the way."""
