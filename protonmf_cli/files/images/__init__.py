"""Images and their labels from disk."""
