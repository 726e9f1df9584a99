"""python -m protonmf_cli, and the program `protonmf`."""

import atexit
import gc
import sys

from protonmf_cli.cli.app import main

YOUNG_OBJECTS = 10_000
"""After which the garbage collector looks for circles; torch and timm bring a million objects that all stay."""


def run() -> int:
    """One command in a process of its own; returns its exit code."""
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)  # what is left when the process ends is not looked through once more
    return main()


if __name__ == "__main__":
    sys.exit(run())
