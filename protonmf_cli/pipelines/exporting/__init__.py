"""A prototype model as a graph that other runtimes compute."""
