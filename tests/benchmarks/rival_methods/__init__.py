"""Other methods that explain a trained classifier by concepts, and what all of them are measured by."""
