"""Verbs: objects in, results out; no disk, no print."""
