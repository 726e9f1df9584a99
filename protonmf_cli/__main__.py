"""python -m protonmf_cli, and the program `protonmf`."""

import atexit
import gc
import os
import sys

from protonmf_cli.cli.app import main
from protonmf_cli.cli.signals import heed_to_the_end
from protonmf_cli.errors import InputError

YOUNG_OBJECTS = 10_000
"""After which the garbage collector looks for circles; torch and timm bring a million objects that all stay."""
SPINS = 5_000
"""Looks for work before a thread of torch sleeps (GNU OpenMP), a few microseconds; of itself it takes 300,000, and on
processors that have other work, too, each step of a network waits for threads that keep each other from running."""


def run() -> int:
    """One command in a process of its own; returns its exit code."""
    heed_to_the_end()
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever started the process; its number goes to no other file
            setattr(sys, name, open(os.devnull, mode))  # noqa: PTH123, SIM115 (no path; for the whole process)
    try:
        os.getcwd()  # noqa: PTH109 (what it raises is what is asked)
    except FileNotFoundError:
        print("error: the current folder is not there any more; change to another one.", file=sys.stderr)
        return InputError.exit_code
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))  # which is read when torch is imported
    gc.set_threshold(YOUNG_OBJECTS, *gc.get_threshold()[1:])
    atexit.register(gc.freeze)  # what is left when the process ends is not looked through once more
    return main()


if __name__ == "__main__":
    sys.exit(run())
