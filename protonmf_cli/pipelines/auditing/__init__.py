"""Which prototypes a classifier should not rely on: pasted into other images, taken out, and looked at."""
