"""Conversions on a Ray cluster: the bytes of one process, whatever is lost on the way."""

import sys
import threading
import time
from pathlib import Path

import pytest

from toys import run

pytestmark = pytest.mark.slow

OPTIONS = ("-p", 2, "--near", 1, "--ray-cpus", 1)


@pytest.fixture
def ray(monkeypatch):
    """Ray, without its reports of use, and shut down in the end."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    found = pytest.importorskip("ray")
    yield found
    found.shutdown()


def words_for(toy, target: Path):
    return ("convert", toy.name, "--data", toy.data, "-o", target, *OPTIONS)


def test_a_worker_that_dies_in_the_middle_of_a_class_loses_nothing(ray, toy, converted, tmp_path, monkeypatch):
    from protonmf_cli.jobs.conversion import cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    marker = tmp_path / "died"

    class Dying(cluster.Converter):
        def convert(self, classes, group):
            import os

            if not marker.exists():
                marker.touch()
                os._exit(9)
            return super().convert(classes, group)

    monkeypatch.setattr(cluster, "Converter", Dying)
    target = tmp_path / "m.safetensors"
    code, _, err = run(*words_for(toy, target), "--ray", "local")
    assert code == 0, err
    assert marker.exists() and "a worker on Ray was lost" in err
    assert target.read_bytes() == converted.read_bytes()
    assert not list(tmp_path.glob(".m*"))


def test_a_node_that_is_removed_loses_nothing(ray, toy, converted, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    from protonmf_cli.jobs.conversion import cluster

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

    class Slow(cluster.Converter):
        def convert(self, classes, group):
            time.sleep(4)
            return super().convert(classes, group)

    monkeypatch.setattr(cluster, "Converter", Slow)
    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    other = nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    target = tmp_path / "m.safetensors"

    def remove():
        deadline = time.monotonic() + 120
        while not list(tmp_path.glob(".m.safetensors.work/*/class-*.safetensors")) and time.monotonic() < deadline:
            time.sleep(0.05)
        nodes.remove_node(other)

    remover = threading.Thread(target=remove)
    remover.start()
    try:
        code, _, err = run(*words_for(toy, target), "--ray", nodes.address)
        remover.join()
    finally:
        ray.shutdown()
        nodes.shutdown()
    assert code == 0, err
    assert "a worker on Ray was lost" in err
    assert target.read_bytes() == converted.read_bytes()


def test_workers_of_other_versions_are_refused(ray, toy, tmp_path, monkeypatch):
    from protonmf_cli.jobs.conversion import cluster, preparing

    monkeypatch.setattr(preparing, "installed_versions", lambda _: {"torch": "1.0"})
    monkeypatch.setattr(cluster.Cluster, "_room", lambda _: 1)
    code, _, err = run(*words_for(toy, tmp_path / "m.safetensors"), "--ray", "local")
    assert code == 3
    assert "no worker on the Ray cluster is left" in err and "it has other versions" in err
    assert not (tmp_path / "m.safetensors").exists()


def test_an_address_that_does_not_answer(ray, toy, tmp_path, monkeypatch):
    code, _, err = run(*words_for(toy, tmp_path / "m.safetensors"), "--ray", "127.0.0.1:1")
    assert code == 3 and "no Ray cluster answers at 127.0.0.1:1" in err
    assert not list(tmp_path.glob(".m*"))
