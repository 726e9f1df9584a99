"""Commands of `protonmf protopnet`."""
