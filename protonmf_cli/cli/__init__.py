"""Edge: words in, words out."""
