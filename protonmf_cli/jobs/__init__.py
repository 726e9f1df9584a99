"""Use cases: options in, a result out; what a command does and Python calls."""
