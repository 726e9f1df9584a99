"""From a network and its images to a prototype model."""
