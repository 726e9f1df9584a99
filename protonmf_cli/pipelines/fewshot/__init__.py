"""The few-shot prototype model."""
