"""One conversion by several processes: the bytes of one, whatever happens to the others."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from protonmf_cli import ConversionOptions, Distribution, Machine, Share, UsageError, convert, convert_share
from protonmf_cli.files.work.finished_classes import FinishedElsewhere, Shards
from protonmf_cli.jobs.conversion import ConversionWords, processes
from protonmf_cli.jobs.conversion.filling import converted as converted_files
from protonmf_cli.jobs.conversion.preparing import prepare_conversion
from protonmf_cli.jobs.conversion.worker import work_on
from protonmf_cli.jobs.machine import device_of
from protonmf_cli.options import ImageWords, NetworkWords, Output
from protonmf_cli.output.text.conversion import conversion_lines
from protonmf_cli.pipelines.conversion.classes import groups_of, groups_of_share
from protonmf_cli.pipelines.progress import SILENT
from toys import run, start

OPTIONS = ("-p", 2, "--near", 1)


def words_for(toy, target):
    return ("convert", toy.name, "--data", toy.data, "-o", target, *OPTIONS)


def in_python(toy, target):
    """The same conversion, as it travels to other processes."""
    return ConversionWords(
        network=NetworkWords(name=toy.name), images=ImageWords(data=toy.data, split="train"),
        options=ConversionOptions(prototypes=2, near=1), output=Output(path=target),
    )  # fmt: skip


def classes_in(target: Path) -> list[str]:
    return sorted(p.name for p in target.parent.glob(f".{target.name}.work/*/class-*.safetensors"))


def test_a_worker_leaves_finished_classes_to_the_leader(toy, converted, tmp_path):
    target = tmp_path / "m.safetensors"
    work_on(in_python(toy, target))
    assert len(classes_in(target)) == 4 and not target.exists()
    code, _, err = run(*words_for(toy, target))
    assert code == 0 and "4 of 4 classes were finished before" in err
    assert target.read_bytes() == converted.read_bytes()
    assert not list(tmp_path.glob(".m*"))


def test_a_worker_does_not_touch_what_another_process_is_at(toy, tmp_path):
    target = tmp_path / "m.safetensors"
    words = in_python(toy, target)
    other = Shards(target, prepare_conversion(words, SILENT).digest, leads=False)
    with other:
        held = next(other.free([[2]]))
        work_on(words)
        assert [name[6:12] for name in classes_in(target)] == ["000000", "000001", "000003"]
        other.done(held)
        work_on(words)
    assert len(classes_in(target)) == 4


@pytest.mark.parametrize("words", [(), ("--share", "1/2")])
def test_a_disk_without_locks_is_refused(toy, tmp_path, monkeypatch, words):
    def lock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", lock)
    target = tmp_path / "m.safetensors"
    code, _, err = run(*words_for(toy, target), *words)
    assert code == 3 and "has no file locks (Function not implemented)" in err
    assert not target.exists() and not list(tmp_path.rglob("*.lock"))


LOST = """
import os, signal
from protonmf_cli.errors import InputError
from protonmf_cli.files.work.finished_classes import Shards
from protonmf_cli.jobs.conversion import worker
def lost(self, c, content):
    {end}
Shards.put = lost
raise SystemExit(worker.main())
"""


def importable(monkeypatch, folder: Path, name: str, program: str) -> None:
    """A module that other processes find, beside the package that this one has."""
    (folder / name).write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
    monkeypatch.setenv("PYTHONSAFEPATH", "1")


@pytest.mark.parametrize(
    ("end", "said"),
    [
        pytest.param("print('stray', flush=True); os.kill(os.getpid(), signal.SIGKILL)", "process 2 was lost (signal 9)", marks=pytest.mark.slow),
        pytest.param("raise InputError('the disk is full')", "process 2 was lost (the disk is full)", marks=pytest.mark.slow),
        pytest.param("1 / 0", "process 2 was lost (ZeroDivisionError: division by zero)", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_losing_a_process_in_the_middle_of_a_class_loses_nothing(toy, converted, tmp_path, monkeypatch, end, said):
    target = tmp_path / "m.safetensors"
    importable(monkeypatch, tmp_path, "lost.py", LOST.format(end=end))
    monkeypatch.setattr(processes, "WORKER", "lost")
    free = Shards.free

    def after_the_worker(self, groups):
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".m.safetensors.work/*/*.lock")) and time.monotonic() < deadline:
            time.sleep(0.05)
        return free(self, groups)

    monkeypatch.setattr(Shards, "free", after_the_worker)
    code, _, err = run(*words_for(toy, target), "--processes", 2)
    assert code == 0 and said in err and "the others do what it was to do" in err
    assert target.read_bytes() == converted.read_bytes()
    assert not list(tmp_path.glob(".m*"))


@pytest.mark.parametrize(("wanted", "said"), [(True, ["process 2 was lost (no room)"]), (False, [])])
def test_of_a_process_that_is_lost_only_what_it_says_itself_is_told_and_only_while_it_is_needed(wanted, said):
    worker, told = processes._Worker.__new__(processes._Worker), []
    worker._process = SimpleNamespace(stdout=[b"stray\n", b"5\n", b'["lost", "no room"]\n'], wait=lambda: 3)
    worker._number, worker._wanted, worker._progress = 2, wanted, SimpleNamespace(warn=told.append)
    worker._listen()
    assert [text.partition(";")[0] for text in told] == said


@pytest.mark.slow
def test_a_process_that_cannot_import_is_told(toy, converted, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "WORKER", "no_such_module")
    code, _, err = run(*words_for(toy, tmp_path / "m.safetensors"), "--processes", 3)
    assert code == 0 and err.count("No module named no_such_module") == 2
    assert (tmp_path / "m.safetensors").read_bytes() == converted.read_bytes()


@pytest.mark.slow
def test_processes_give_the_same_bytes_and_python_takes_them_too(toy, converted, tmp_path):
    target = tmp_path / "m.safetensors"
    options = ConversionOptions(prototypes=2, near=1)
    found = convert(
        toy.name, toy.data, options, output=target, machine=Machine(threads=1), distribution=Distribution(processes=2)
    )
    assert target.read_bytes() == converted.read_bytes() and found.bytes == target.stat().st_size


BUSY = """
import time
from protonmf_cli.jobs.conversion import worker
worker.work_on = lambda *_: time.sleep(120)
raise SystemExit(worker.main())
"""


@pytest.mark.slow
def test_workers_leave_with_a_leader_that_is_killed(toy, tmp_path, monkeypatch):
    importable(monkeypatch, tmp_path, "busy.py", BUSY)
    code = """
import sys, time
from protonmf_cli.cli.app import main
from protonmf_cli.jobs.conversion import processes, running
def sleeping(*_, **__):
    print(processes_made[0]._process.pid, flush=True)
    time.sleep(120)
made, processes_made = processes._Worker.__init__, []
def kept(self, *words):
    processes_made.append(self)
    made(self, *words)
processes._Worker.__init__ = kept
running.prepare_conversion = sleeping
processes.WORKER = "busy"
sys.exit(main(sys.argv[1:]))
"""
    leader = start(*words_for(toy, tmp_path / "m.safetensors"), "--processes", 2, program=code, stdout=subprocess.PIPE)
    worker = int(leader.stdout.readline())
    assert Path(f"/proc/{worker}").exists()
    leader.kill()
    leader.wait()
    deadline = time.monotonic() + 60
    while running(worker) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running(worker)


def running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_shares_one_after_the_other_give_the_same_bytes(toy, converted, tmp_path):
    target = tmp_path / "m.safetensors"
    code, out, err = run(*words_for(toy, target), "--share", "1/2")
    assert code == 0, err
    assert out.splitlines()[0] == "share 1 of 2 is done: 2 of 4 classes are finished"
    assert out.splitlines()[1] == "missing: red things, green things" and "without --share" in out
    assert not target.exists()
    code, out, err = run(*words_for(toy, target), "--share", "2/2")
    assert code == 0 and "agreement 100.00%" in out
    assert target.read_bytes() == converted.read_bytes()
    assert not list(tmp_path.glob(".m*"))


def test_what_a_share_left_is_done_by_the_command_without_it(toy, converted, tmp_path):
    target = tmp_path / "m.safetensors"
    found = convert_share(
        Share(number=3, shares=3), toy.name, toy.data, ConversionOptions(prototypes=2, near=1), output=target
    )
    assert (found.finished, len(found.missing)) == (2, 2)
    code, out, err = run(*words_for(toy, target), "--share", "3/3", "--json")
    assert code == 0 and json.loads(out)["classes_finished"] == 2
    code, _, err = run(*words_for(toy, target))
    assert code == 0 and "2 of 4 classes were finished before" in err
    assert target.read_bytes() == converted.read_bytes()


@pytest.mark.slow
def test_shares_at_once_write_one_file(toy, converted, tmp_path):
    target = tmp_path / "m.safetensors"
    first = start(*words_for(toy, target), "--share", "1/2", "-q", stdout=subprocess.PIPE)
    code, out, err = run(*words_for(toy, target), "--share", "2/2", "-q")
    said = first.communicate(timeout=120)[0]
    assert code == 0 and first.returncode == 0, err
    assert sum("is done" in text for text in (out, said)) == 1
    assert target.read_bytes() == converted.read_bytes()


def appears_before_take(monkeypatch, target, text, then=lambda shards: None):
    """The output is written by another process just before this one takes the right to write it."""
    take = Shards.take

    def late(self):
        target.write_text(text)
        then(self)
        return take(self)

    monkeypatch.setattr(Shards, "take", late)


def test_a_share_whose_output_appeared_in_between_does_not_replace_it(toy, tmp_path, monkeypatch):
    target = tmp_path / "m.safetensors"
    appears_before_take(monkeypatch, target, "precious")
    code, _, err = run(*words_for(toy, target), "--share", "1/1")
    assert (code, target.read_text()) == (3, "precious") and "exists already" in err


@pytest.mark.parametrize("words", [(), ("--force",)])
def test_a_share_that_is_overtaken_at_the_end_leaves_the_file_alone(toy, tmp_path, monkeypatch, words):
    target = tmp_path / "m.safetensors"
    appears_before_take(monkeypatch, target, "another share's", Shards.discard)
    code, out, err = run(*words_for(toy, target), "--share", "1/1", *words)
    assert code == 0 and "another process writes" in out, err
    assert target.read_text() == "another share's" and not list(tmp_path.glob(".m*"))


def test_a_command_does_not_replace_what_a_share_wrote_while_it_began(toy, tmp_path, monkeypatch):
    target = tmp_path / "m.safetensors"
    appears_before_take(monkeypatch, target, "a share's")
    code, _, err = run(*words_for(toy, target))
    assert (code, target.read_text()) == (3, "a share's") and "exists already" in err
    assert not list(tmp_path.glob(".m*"))


def test_a_work_folder_is_removed_at_once(tmp_path, monkeypatch):
    shards = Shards(tmp_path / "m.safetensors", "0" * 16)
    removed = []
    monkeypatch.setattr("shutil.rmtree", lambda path, **_: removed.append((path, shards.folder.exists())))
    with shards:
        shards.describe({})
        shards.discard()
    assert [there for _, there in removed] == [False]
    assert shards.others() == []


def test_a_share_that_comes_after_the_file_was_written_leaves(toy, tmp_path, monkeypatch):
    def gone(self, groups):
        raise FinishedElsewhere(self._output)

    monkeypatch.setattr(Shards, "free", gone)
    code, out, _ = run(*words_for(toy, tmp_path / "m.safetensors"), "--share", "1/2")
    assert code == 0 and "another process writes" in out


def test_shares_of_other_options_are_refused_by_name(toy, tmp_path):
    target = tmp_path / "m.safetensors"
    assert run(*words_for(toy, target), "--share", "1/2")[0] == 0
    code, _, err = run(*words_for(toy, target), "--share", "2/2", "-p", 1)
    assert code == 3 and "begun otherwise (prototypes 2 instead of 1)" in err
    assert len(classes_in(target)) == 2 and len(list(tmp_path.glob(".m.safetensors.work/*"))) == 1


def test_of_two_shares_of_other_options_that_begin_together_one_is_refused(toy, tmp_path, monkeypatch):
    target = tmp_path / "m.safetensors"
    differences = Shards.differences

    def together(self, facts):
        monkeypatch.setattr(Shards, "differences", differences)
        assert run(*words_for(toy, target), "--share", "2/2", "-p", 1)[0] == 3
        return differences(self, facts)

    monkeypatch.setattr(Shards, "differences", together)
    assert run(*words_for(toy, target), "--share", "1/2")[0] == 0


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        ("5/4", {}, "share 5/4: there are only 4 shares, from 1"),
        ("0/4", {}, "must be a number of at least 1"),
        ("half", {}, "neither I/N (2/8 is the second of eight shares) nor auto"),
        ("auto", {}, "finds no scheduler"),
        ("auto", {"RANK": "4", "WORLD_SIZE": "4"}, "RANK=4, WORLD_SIZE=4, and share 5/4 is none"),
        ("auto", {"RANK": "", "WORLD_SIZE": "4"}, "RANK=, WORLD_SIZE=4, which are not all numbers"),
        (
            "auto",
            {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_COUNT": "2"},
            "SLURM_ARRAY_TASK_ID=7, SLURM_ARRAY_TASK_MIN=3, SLURM_ARRAY_TASK_COUNT=2, and share 5/2 is none",
        ),
    ],
)
def test_shares_that_are_none(words, environment, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        Share.of(words, environment)


@pytest.mark.parametrize(
    ("environment", "share"),
    [
        ({"RANK": "3", "WORLD_SIZE": "4"}, (4, 4)),
        ({"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "3"}, (3, 3)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "31",
                "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "2",
                "SLURM_ARRAY_TASK_COUNT": "16",
            },
            (16, 16),
        ),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_PROCID": "1", "SLURM_NTASKS": "9"}, (1, 2)),
        ({"SLURM_PROCID": "1", "SLURM_NTASKS": "9"}, (2, 9)),
    ],
)
def test_shares_of_schedulers(environment, share):
    found = Share.of("auto", environment)
    assert (found.number, found.shares) == share


@pytest.mark.parametrize("shares", [1, 2, 4, 7, 30])
def test_all_shares_together_are_every_class_once_whatever_their_machines_factorise_at_once(shares):
    counts = {c: 1 + (37 * c) % 23 for c in range(19)}
    parts = [groups_of_share(counts, 1, Share(number=n, shares=shares)) for n in range(1, shares + 1)]
    assert sorted(c for part in parts for (c,) in part) == list(counts)
    images = [sum(counts[c] for (c,) in part) for part in parts]
    assert max(images) - min(images) < 2 * max(counts.values())
    for n, part in enumerate(parts, start=1):
        together = groups_of_share(counts, 8, Share(number=n, shares=shares))
        assert all(group in groups_of(counts, 8) for group in together)
        assert {c for (c,) in part} <= {c for group in together for c in group}


def test_a_share_is_one_process(toy, tmp_path):
    code, _, err = run(*words_for(toy, tmp_path / "m.safetensors"), "--share", "1/2", "--processes", 2)
    assert code == 2 and "leave out --processes and --ray" in err


def test_ray_and_processes_exclude_each_other():
    with pytest.raises(UsageError, match="exclude each other"):
        Distribution(ray="local", processes=2)
    with pytest.raises(UsageError, match="--ray-cpus 4 is for workers on Ray|ray_cpus 4 is for workers on Ray"):
        Distribution(ray_cpus=4)


def test_ray_that_is_not_installed_is_said(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "protonmf_cli.jobs.conversion.cluster", raising=False)
    code, _, err = run(*words_for(toy, tmp_path / "m.safetensors"), "--ray", "local")
    assert code == 2 and "pip install 'protonmf[ray]'" in err
    assert not list(tmp_path.glob(".m*"))


def test_threads_and_gpus_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    alone = Machine(device="cpu")
    assert processes._machines(alone, 1) == [alone]
    four = processes._machines(alone, 4)
    assert [(m.device, m.threads, m.workers) for m in four] == [("cpu", 2, 2)] * 4
    assert processes._machines(Machine(device="cpu", threads=3), 2)[1].threads == 3
    monkeypatch.setattr(processes.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(processes.torch.cuda, "is_available", lambda: True)
    assert [m.device for m in processes._machines(Machine(), 3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert processes._processes_for(Machine()) == 2
    assert processes._processes_for(Machine(device="cuda:1")) == 1


@pytest.mark.parametrize(
    ("environment", "count", "device"),
    [
        ({}, 4, "cuda"),
        ({"LOCAL_RANK": "1"}, 4, "cuda:1"),
        ({"SLURM_LOCALID": "5"}, 4, "cuda:1"),
        ({"LOCAL_RANK": "2", "SLURM_LOCALID": "0"}, 4, "cuda:2"),
        ({"LOCAL_RANK": "3"}, 1, "cuda"),
        ({"LOCAL_RANK": ""}, 4, "cuda"),
    ],
)
def test_each_process_of_a_scheduler_takes_its_own_gpu(monkeypatch, environment, count, device):
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    assert [str(device_of(Machine(device=words))) for words in ("auto", "cuda", "cuda:0")] == [device, device, "cuda:0"]


def test_classes_go_out_as_the_files_they_are_kept_in(toy, tmp_path):
    target = tmp_path / "m.safetensors"
    words = in_python(toy, target)
    prepared = prepare_conversion(words, SILENT)
    work_on(words)
    found = converted_files(prepared, [1, 3], 1, tmp_path)
    folder = next(tmp_path.glob(".m.safetensors.work/*"))
    assert found == {c: (folder / f"class-00000{c}.safetensors").read_bytes() for c in (1, 3)}


def test_times_that_are_not_known_are_not_told(toy, tmp_path):
    code, out, _ = run(*words_for(toy, tmp_path / "m.safetensors"), "--json")
    summary = json.loads(out)
    assert re.search(r" s \(network [\d.]+, NMF [\d.]+, head [\d.]+\)$", conversion_lines(summary)[-1])
    summary["seconds"] |= {"extract": None, "factorise": None}
    assert re.search(r" s \(head [\d.]+\)$", conversion_lines(summary)[-1])
