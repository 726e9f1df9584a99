"""Opens mutants of model files in processes of their own, where a hang or a lack of memory is seen as such."""

import argparse
import contextlib
import json
import multiprocessing
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from file_mutants import Content, mutant
from file_seeds import KINDS, made

from protonmf_cli.errors import ProtonmfError
from toys import Toy, make, run

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


def commands(seed: int, file: Path, toy: Toy, out: Path, share: float | None = None) -> Commands:
    """What is done with a mutant, and what may then be written: explained always, the others for a share."""
    rng = random.Random(seed + 1)
    image, model, data, edit = toy.image(), ("--model", file), ("--data", toy.data), ("--class", 0, "--zero", 1)
    new, folder = out / "m.safetensors", out / "exported"
    found: Commands = [(["explain", image, *model, "--offline", "--json"], [])]
    others: list[tuple[float, list[object], list[Path]]] = [
        (0.1, ["explain", image, *model], []),
        (0.05, ["explain", image, *model, "--png", out / "e.png"], [out / "e.png"]),
        (0.15, ["inspect", file], []),
        (0.1, ["inspect", file, "--json"], []),
        (0.05, ["inspect", file, "--class", 1, "--figure", out / "i.png"], [out / "i.png"]),
        (0.05, ["report", *model, "--images", image, "-o", out / "r.html"], [out / "r.html"]),
        (0.1, ["intervene", image, *model, *edit, "-o", new], [new]),
        (0.1, ["intervene", image, *model, *edit, "--json"], []),
        (0.05, ["evaluate", *model, *data, "--json"], []),
        (0.03, ["evaluate", *model, *data], []),
        (0.02, ["audit", *model, *data], []),
        (0.03, ["export", file, "-o", folder], [folder]),
        (0.002, ["export", file, "-o", folder, "--format", "onnx"], [folder]),
        (0.03, ["protopnet", "evaluate", file, *data], []),
        (0.03, ["protopnet", "local", image, *model], []),
        (0.02, ["protopnet", "push", file, *data, "-o", new], [new]),
        (0.02, ["protopnet", "prune", file, *data, "-o", new], [new]),
        (0.03, ["fewshot", "predict", image, *model], []),
        (0.03, ["fewshot", "interpret", file], []),
    ]
    return found + [(words, written) for usual, words, written in others if rng.random() < (share or usual)]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def tried(words: list[object], written: list[Path]) -> tuple[str, int, str]:
    """The failure of one command or nothing, its exit code, and what it said."""
    before = time.process_time()
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [_remove(path) for path in written])
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


def one(source: Content, seed: int, toy: Toy, folder: Path) -> Trial:
    """Write a mutant and try every command on it."""
    file = folder / "mutant.safetensors"
    changes = mutant(source, seed, file)
    first: tuple[int, str] | None = None
    for words, written in commands(seed, file, toy, folder):
        failure, code, said = tried(words, written)
        first = first or (code, said)
        if failure:
            return Trial(seed, changes, failure, code, said)
    assert first is not None
    return Trial(seed, changes, "", *first)


def _work(pipe: Connection, path: Path, toy: Toy, seeds: list[int]) -> None:
    import torch

    torch.set_num_threads(1)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source = Content.of(path)
    with tempfile.TemporaryDirectory() as folder:
        for seed in seeds:
            pipe.send(seed)
            pipe.send(one(source, seed, toy, Path(folder)))
    pipe.send(None)


def warmed(path: Path, toy: Toy) -> None:
    """Import what the commands need, so that no process does it again; the file itself must be without fault."""
    with tempfile.TemporaryDirectory() as folder:
        for words, written in commands(0, path, toy, Path(folder), share=1.0):
            failure, _, said = tried(words, written)
            assert not failure, f"{failure}: {said}"


def trials(path: Path, toy: Toy, seeds: list[int]) -> list[Trial]:
    """What becomes of the mutants of a file with these seeds."""
    context, found, left = multiprocessing.get_context("fork"), list[Trial](), list(seeds)
    while left:
        batch = left[:BATCH]
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, path, toy, batch))
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
    """Try many mutants of each kind: `PYTHONPATH=tests python tests/faults/file_trials.py KIND... --count 20000`."""
    words = argparse.ArgumentParser(description=main.__doc__)
    words.add_argument("kinds", nargs="+", choices=KINDS, metavar="KIND", help=", ".join(KINDS))
    words.add_argument("--count", type=int, default=20_000)
    words.add_argument("--first", type=int, default=0, help="the first seed")
    words.add_argument("--log", type=Path, help="a line of JSON for each failure")
    given = words.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        toy = make(Path(folder))
        return max([_tried_many(kind, made(kind, toy, Path(folder)), toy, given) for kind in given.kinds])


def _tried_many(kind: str, file: Path, toy: Toy, given: argparse.Namespace) -> int:
    """Print what became of the mutants of a file; 1 if something failed."""
    warmed(file, toy)
    codes, failures, start = Counter[int](), Counter[str](), time.monotonic()
    for begin in range(given.first, given.first + given.count, BATCH):
        for trial in trials(file, toy, list(range(begin, min(begin + BATCH, given.first + given.count)))):
            codes[trial.code] += 1
            if trial.failure:
                failures[trial.failure[:110]] += 1
                if given.log:
                    with given.log.open("a") as log:
                        log.write(json.dumps({"kind": kind} | vars(trial)) + "\n")
        print(f"{kind}: {sum(codes.values())} of {given.count}, {sum(failures.values())} failures", file=sys.stderr)
    for failure, count in failures.most_common():
        print(f"{count:6} {failure}")
    total, failed, took = sum(codes.values()), sum(failures.values()), time.monotonic() - start
    print(f"{kind}: {total} mutants, {failed} failures, exit codes {dict(codes)}, {took:.0f} s", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
