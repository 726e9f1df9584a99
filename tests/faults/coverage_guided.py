"""Bytes that grow by what of protonmf they reach, by atheris: `python tests/faults/coverage_guided.py TARGET [SECONDS]`.

Needs `pip install atheris` (libFuzzer for Python, of Linux and CPython up to 3.13) and tests on PYTHONPATH. Ends at the first
input that is neither read nor refused, takes more than 10 s or more than 4 GiB, and leaves it in the current folder.
"""

import os
import sys
import tempfile
from pathlib import Path


def main(name: str, seconds: str = "300") -> None:
    import atheris  # here, as the tests' run imports this file for its doctests where atheris need not be

    with atheris.instrument_imports(include=["protonmf_cli", "PIL", "zipfile", "tarfile"]):
        from byte_targets import more_seeds, seeds, targets, tried
        from file_seeds import made

        from toys import make
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        toy = make(folder)
        model = made("amounts", toy, folder)
        corpus = folder / "corpus"
        corpus.mkdir()
        (corpus / "seed").write_bytes((seeds(toy, folder) | more_seeds(model))[name])
        target = targets(folder, model)[name]
        limits = (f"-max_total_time={seconds}", "-timeout=10", "-rss_limit_mb=4096", "-max_len=2000000")
        atheris.Setup([sys.argv[0], str(corpus), *limits], lambda content: tried(target, content) and None)
        atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
