"""Opens mutants of model files in processes of their own, where a hang or a lack of memory is seen as such."""

import argparse
import contextlib
import json
import multiprocessing
import random
import re
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from file_mutants import Content, mutant

from protonmf_cli.errors import ProtonmfError
from toys import run

MEMORY = 2**30
"""Bytes that a command may take beyond what was taken before it."""
SECONDS, PATIENCE = 10.0, 120.0
"""Of computing that a command may take, and of waiting until its process is given up."""
BATCH = 400
"""Mutants of a process."""
NO_NUMBER = re.compile(r"(?<![\w-])-?(nan|inf|infinity)(?!\w)", re.IGNORECASE)
NO_MEMORY = re.compile(r"allocat|out of memory|MemoryError", re.IGNORECASE)


@dataclass(frozen=True)
class Trial:
    """What became of one mutant."""

    seed: int
    changes: list[str]
    failure: str
    """Empty where all is well."""
    code: int
    """Of the first command."""
    words: str


Commands = list[tuple[list[object], list[Path]]]


def commands(seed: int, file: Path, image: Path, out: Path, share: float | None = None) -> Commands:
    """What is done with a mutant, and what may then be written: explained always, the others for a share."""
    rng = random.Random(seed + 1)
    model = ("--model", file)
    found: Commands = [(["explain", image, *model, "--offline", "--json"], [])]
    others: list[tuple[float, list[object], list[Path]]] = [
        (0.1, ["explain", image, *model], []),
        (0.05, ["explain", image, *model, "--png", out / "e.png"], [out / "e.png"]),
        (0.15, ["inspect", file], []),
        (0.1, ["inspect", file, "--json"], []),
        (0.05, ["inspect", file, "--class", 1, "--figure", out / "i.png"], [out / "i.png"]),
        (0.05, ["report", *model, "--images", image, "-o", out / "r.html"], [out / "r.html"]),
        (0.1, ["intervene", image, *model, "--class", 0, "--zero", 1, "-o", out / "m.safetensors"], [out / "m.safetensors"]),
        (0.1, ["intervene", image, *model, "--class", 0, "--zero", 1, "--json"], []),
    ]  # fmt: skip
    return found + [(words, written) for usual, words, written in others if rng.random() < (share or usual)]


def tried(words: list[object], written: list[Path]) -> tuple[str, int, str]:
    """The failure of one command or nothing, its exit code, and what it said."""
    before = time.process_time()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [path.unlink(missing_ok=True) for path in written])
        try:
            code, out, err = run(*words)
        except ProtonmfError as failure:
            return f"{words[0]}: {type(failure).__name__} leaves the command line", -1, str(failure)
        except BaseException as failure:
            where = traceback.extract_tb(failure.__traceback__)
            own = [f"{Path(each.filename).name}:{each.lineno}" for each in where if "protonmf_cli" in each.filename]
            return f"{words[0]}: {type(failure).__name__}: {str(failure)[:160]} at {' '.join(own[-3:])}", -1, ""
        if time.process_time() - before > SECONDS:
            return f"{words[0]}: more than {SECONDS:.0f} s", code, err
        if NO_MEMORY.search(err):
            return f"{words[0]}: no memory: {err.strip()[:200]}", code, err
        if code == 0 and (found := NO_NUMBER.search(out)):
            return f"{words[0]}: {out[max(0, found.start() - 60) : found.end() + 20]!r}", code, err
        if code not in (0, 2, 3, 4, 6):
            return f"{words[0]}: exit code {code}: {err[-200:]}", code, err
        if code and any(path.exists() for path in written):
            return f"{words[0]}: something was written: {err.strip()[:200]}", code, err
        if code and (err.count("error:") != 1 or "Traceback" in err):
            return f"{words[0]}: not one error: {err[-300:]}", code, err
    return "", code, err


def one(source: Content, seed: int, image: Path, folder: Path) -> Trial:
    """Write a mutant and try every command on it."""
    file = folder / "mutant.safetensors"
    changes = mutant(source, seed, file)
    first: tuple[int, str] | None = None
    for words, written in commands(seed, file, image, folder):
        failure, code, said = tried(words, written)
        first = first or (code, said)
        if failure:
            return Trial(seed, changes, failure, code, said)
    assert first is not None
    return Trial(seed, changes, "", *first)


def _work(pipe: Connection, path: Path, image: Path, seeds: list[int]) -> None:
    import torch

    torch.set_num_threads(1)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source = Content.of(path)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            pipe.send(seed)
            pipe.send(one(source, seed, image, Path(folder)))
    pipe.send(None)


def warmed(path: Path, image: Path) -> None:
    """Import what the commands need, so that no process does it again; the file itself must be without fault."""
    with tempfile.TemporaryDirectory() as folder:
        for words, written in commands(0, path, image, Path(folder), share=1.0):
            failure, _, said = tried(words, written)
            assert not failure, f"{failure}: {said}"


def trials(path: Path, image: Path, seeds: list[int]) -> list[Trial]:
    """What becomes of the mutants of a file with these seeds."""
    context, found, left = multiprocessing.get_context("fork"), list[Trial](), list(seeds)
    while left:
        batch = left[:BATCH]
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, path, image, batch))
        process.start()
        theirs.close()
        found += _heard(ours, process)
        process.join()
        left = left[len(batch) :] if found and found[-1].seed == batch[-1] else left[left.index(found[-1].seed) + 1 :]
    return found


def _heard(pipe: Connection, process: "multiprocessing.context.ForkProcess") -> list[Trial]:
    found, seed = list[Trial](), -1
    while True:
        try:
            if not pipe.poll(PATIENCE):
                process.kill()
                return [*found, Trial(seed, [], f"hangs for {PATIENCE:.0f} s", -1, "")]
            message = pipe.recv()
        except (EOFError, OSError):
            process.join()
            return [*found, Trial(seed, [], f"its process died ({process.exitcode})", -1, "")]
        if message is None:
            return found
        if isinstance(message, Trial):
            found.append(message)
        else:
            seed = message


def main() -> int:
    """Try many mutants of one file: `PYTHONPATH=tests python tests/faults/file_trials.py FILE IMAGE --count 20000`."""
    words = argparse.ArgumentParser(description=main.__doc__)
    words.add_argument("file", type=Path)
    words.add_argument("image", type=Path)
    words.add_argument("--count", type=int, default=20_000)
    words.add_argument("--first", type=int, default=0, help="the first seed")
    words.add_argument("--log", type=Path, help="a line of JSON for each failure")
    given = words.parse_args()
    warmed(given.file, given.image)
    codes, kinds, start = Counter[int](), Counter[str](), time.monotonic()
    for begin in range(given.first, given.first + given.count, BATCH):
        for trial in trials(given.file, given.image, list(range(begin, min(begin + BATCH, given.first + given.count)))):
            codes[trial.code] += 1
            if trial.failure:
                kinds[trial.failure[:110]] += 1
                if given.log:
                    with given.log.open("a") as log:
                        log.write(json.dumps(vars(trial)) + "\n")
    for failure, count in kinds.most_common():
        print(f"{count:6} {failure}")
    total, failed = sum(codes.values()), sum(kinds.values())
    print(
        f"{given.file.name}: {total} mutants, {failed} failures, exit codes {dict(codes)}, {time.monotonic() - start:.0f} s"
    )
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
