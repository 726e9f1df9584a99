"""Commands of `protonmf fewshot`."""
