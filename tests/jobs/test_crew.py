"""Workers on a Ray cluster: who gets what, and when it is given up; without a cluster."""

import itertools
from types import SimpleNamespace

import pytest

from protonmf_cli.errors import InputError, NotExactError
from protonmf_cli.jobs.conversion import ConversionWords
from protonmf_cli.options import Distribution, ImageWords, Machine, NetworkWords, Output
from protonmf_cli.pipelines.progress import Silent

ray = pytest.importorskip("ray")
from protonmf_cli.jobs.conversion import cluster  # noqa: E402

WORDS = ConversionWords(network=NetworkWords(name="x"), images=ImageWords(data="x"), output=Output(path="x"))
NUMBERS = itertools.count()


class Warned(Silent):
    def __init__(self):
        self.said = []

    def warn(self, text):
        self.said.append(text)


def worker():
    """What starts one: its calls return what was asked of it, each one time."""
    return SimpleNamespace(
        ready=SimpleNamespace(remote=lambda: (next(NUMBERS), ())),
        convert=SimpleNamespace(remote=lambda some, group: (next(NUMBERS), tuple(some))),
    )


@pytest.fixture
def deadly(monkeypatch):
    """Classes that end their worker, and why."""
    found = {}

    def get(answer):
        for c in answer[1]:
            if c in found:
                raise found[c]
        return dict.fromkeys(answer[1], b"")

    monkeypatch.setattr(cluster.ray, "wait", lambda answers, timeout: (answers[:1], answers[1:]))
    monkeypatch.setattr(cluster.ray, "get", get)
    return found


def test_a_class_that_ends_every_worker_is_given_up_by_name(deadly):
    deadly[5] = ray.exceptions.ActorUnavailableError("out of memory", None)
    crew, done = cluster._Crew([worker() for _ in range(9)].pop, 2, Warned(), "class {}".format), []
    with pytest.raises(InputError, match=r"^3 workers on Ray were lost with class 5: .*out of memory"):
        done.extend(files for _, files in crew.results(iter([[[0], [1]], [[4], [5]], [[6]]]), 1))
    assert sorted(c for files in done for c in files) == [0, 1, 4, 6]


def test_the_last_worker_s_error_keeps_its_kind(deadly):
    failure = ValueError("Traceback\nprotonmf_cli.errors.NotExactError: the logits differ.")
    deadly[0] = ray.exceptions.RayTaskError("convert", str(failure), failure)
    crew = cluster._Crew(worker, 1, Warned())
    with pytest.raises(NotExactError, match=r"^no worker on the Ray cluster is left: the logits differ\.$"):
        list(crew.results(iter([[[0]]]), 1))


def test_workers_that_do_not_begin_are_told_once(deadly, monkeypatch):
    looks = itertools.count()
    monkeypatch.setattr(cluster.ray, "wait", lambda some, timeout: (some[:1] if next(looks) > 4 else [], some))
    for long, said in ((1e6, 0), (0.0, 1)):
        looks, progress = itertools.count(), Warned()
        monkeypatch.setattr(cluster, "LONG", long)
        assert len(list(cluster._Crew(worker, 1, progress).results(iter([[[0]], [[1]]]), 1))) == 2
        assert len(progress.said) == said
    assert "none of 1 workers on Ray has begun" in progress.said[0]


@pytest.mark.parametrize(
    ("nodes", "cpus", "room"),
    [
        ([{"CPU": 8.0}, {"CPU": 3.0}], 2, 5),
        ([{"CPU": 3.0}, {"CPU": 3.0}], 2, 2),
        ([{"CPU": 4.0, "GPU": 2.0}, {"CPU": 4.0}], 2, 2),
        ([{"CPU": 3.0}, {"CPU": 3.0}], 4, None),
    ],
)
def test_a_worker_needs_its_cores_on_one_node(monkeypatch, nodes, cpus, room):
    lost = {"Alive": False, "Resources": {"CPU": 64.0}}
    monkeypatch.setattr(cluster.ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes] + [lost])
    found = cluster.Cluster(WORDS, Distribution(ray="auto", ray_cpus=cpus))
    if room is not None:
        assert found._room() == room
        return
    with pytest.raises(InputError, match="no node of the Ray cluster has 4 cores for a worker, at most 3"):
        found._room()


def test_a_worker_s_cores_are_its_threads_and_decoders(monkeypatch):
    handed = []
    monkeypatch.setattr(cluster.ray, "put", handed.append)
    monkeypatch.setattr(cluster.ray, "cluster_resources", lambda: {"CPU": 8.0})
    cluster.Cluster(WORDS, Distribution(ray="auto", ray_cpus=3))._start(SimpleNamespace(facts={}))
    asked = ConversionWords(
        network=WORDS.network, images=WORDS.images, output=WORDS.output, machine=Machine(threads=2, workers=1)
    )
    cluster.Cluster(asked, Distribution(ray="auto", ray_cpus=3))._start(SimpleNamespace(facts={}))
    assert [(words.machine.threads, words.machine.workers) for words, _ in handed] == [(3, 3), (2, 1)]


def test_a_connection_that_is_there_is_used_and_kept(monkeypatch):
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: True)
    for name in ("init", "shutdown"):
        monkeypatch.setattr(cluster.ray, name, lambda **_: pytest.fail("it is not this command's"))
    with cluster.Cluster(WORDS, Distribution(ray="auto")):
        pass
