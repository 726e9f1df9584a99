"""Nouns: the classifier as it is read, the prototype model, and what the verbs return."""
