"""The engine `ray`: the rows of the local one, once each and in order, also where workers and nodes die."""

import contextlib
import csv
import importlib.util
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import write_pictures

from hgnetv2_hf.cli import main
from hgnetv2_hf.errors import InferenceError
from hgnetv2_hf.files.sources import Found
from hgnetv2_hf.inference.classify import classify
from hgnetv2_hf.inference.cluster import in_cluster
from hgnetv2_hf.inference.embed import embed


needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="comes with the extra [ray]")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Sixty pictures of several sizes, one of them broken, one whose name is no UTF-8."""
    folder = tmp_path_factory.mktemp("photos")
    write_pictures(folder, 60, broken=7)
    (folder / "59.png").rename(os.fsdecode(os.fsencode(folder) + b"/z\xff.png"))
    return folder


@contextlib.contextmanager
def two_nodes(**resources):
    """A cluster whose second node can be removed."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        here = Path(__file__).parent
        patch.setenv("PYTHONPATH", f"{here}{os.pathsep}{here.parent}")  # workers import this file, and it conftest
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **resources})
        cluster.second = cluster.add_node(num_cpus=1, **resources)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
        yield cluster
        ray.shutdown()
        cluster.shutdown()


def rows(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def same(one, other):
    """Rows of `classify`, scores within the rounding of another batch or thread count."""
    assert [row["image"] for row in one] == [row["image"] for row in other]
    for row, expected in zip(one, other):
        for name, value in expected.items():
            if name.startswith("score") and value:
                assert float(row[name]) == pytest.approx(float(value), abs=1e-5)
            else:
                assert row[name] == value


@needs_ray
@pytest.mark.slow
def test_rows_are_those_of_the_local_engine(digits_folder, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)  # paths that are relative here and not on a worker
    for engine in ("local", "ray"):
        command = ["--model", str(digits_folder), "--engine", engine, "--batch-size", "8"]
        assert main(["classify", photos.name, *command, "--output", str(tmp_path / f"{engine}.csv")]) == 0
    same(rows(tmp_path / "ray.csv"), rows(tmp_path / "local.csv"))


@needs_ray
@pytest.mark.long
def test_features_are_those_of_the_local_engine(digits_folder, photos, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="comes with the extra [parquet]")
    with two_nodes():
        for engine in ("local", "ray"):
            embed([str(photos)], digits_folder, tmp_path / engine, engine=engine, show=str)
    found, expected = (parquet.read_table(tmp_path / engine).to_pylist() for engine in ("ray", "local"))
    for row, other in zip(found, expected, strict=True):
        names = ("image", "sha256", "error")
        assert [row[name] for name in names] == [other[name] for name in names]
        if other["features"] is not None:
            assert np.abs(np.subtract(row["features"], other["features"])).max() <= 1e-5 * max(other["features"])


def wait(found):
    time.sleep(0.05)
    return (found.name,)


def nothing(folder):
    return None


def name(network, decoded):
    time.sleep(0.05)
    return [os.path.basename(file) for (file,) in decoded]


def refuse(network, decoded):
    raise InferenceError("This cannot be computed.")


@needs_ray
@pytest.mark.parametrize(
    "resources",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"num_gpus": 1}, marks=pytest.mark.long),  # which Ray only believes in
    ],
)
def test_what_was_running_on_killed_workers_and_a_lost_node_is_computed_again(resources):
    founds = [Found(f"/{number}", None, f"/{number}") for number in range(200)]
    with two_nodes(**resources) as cluster:
        answers = in_cluster(founds, wait, "nothing", nothing, name, 4)
        found = [next(answers)]
        killed = kill_workers()
        found += itertools.islice(answers, 50)
        cluster.remove_node(cluster.second, allow_graceful=False)
        found += answers
        with pytest.raises(InferenceError, match="^This cannot be computed.$"):
            list(in_cluster(founds[:4], wait, "nothing", nothing, refuse, 4))
    assert killed >= 2 and found == [(each, None, each.name[1:]) for each in founds]


def kill_workers():
    """Those of this module's cluster that decode or hold a network; how many there were."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout.splitlines()
    workers = [int(line.split()[0]) for line in listed if "ray::" in line and "Map" in line]
    for process in workers:
        os.kill(process, signal.SIGKILL)
    return len(workers)


@needs_ray
@pytest.mark.long
def test_an_interrupted_run_continues(digits_folder, photos, tmp_path):
    command = [sys.executable, "-m", "hgnetv2_hf", "classify", str(photos), "--model", str(digits_folder)]
    command += ["--engine", "ray", "--batch-size", "2", "--output", str(tmp_path / "out.csv")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        if any(path.stat().st_size for path in tmp_path.glob(".out.csv.*.partial.jsonl")):
            process.kill()
            break
        time.sleep(0.01)
    process.wait()
    assert not (tmp_path / "out.csv").exists()
    summary = classify([str(photos)], digits_folder, tmp_path / "out.csv", batch_size=2, show=str, engine="ray")
    assert summary["resumed"] > 0
    classify([str(photos)], digits_folder, tmp_path / "local.csv", show=str)
    same(rows(tmp_path / "out.csv"), rows(tmp_path / "local.csv"))


@needs_ray
@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_one_sentence(digits_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(InferenceError, match="There is no Ray cluster at 127.0.0.1:1"):
        classify([str(photos)], digits_folder, tmp_path / "out.csv", engine="ray")
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.parametrize(
    "options, words",
    [
        ({"engine": "spark"}, "There is no engine 'spark': local, ray"),
        ({"engine": "ray", "workers": 2}, "The engine ray takes no workers"),
        ({"engine": "ray", "compile": True}, "The engine ray takes no compile"),
    ],
)
def test_options_that_a_cluster_does_not_take_are_refused(digits_folder, photos, tmp_path, options, words):
    with pytest.raises(InferenceError, match=words):
        classify([str(photos)], digits_folder, tmp_path / "out.csv", **options)


def test_without_ray_one_sentence_says_what_to_install(digits_folder, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InferenceError, match=r'needs Ray Data: pip install "hgnetv2-hf\[ray\]"'):
        classify([str(photos)], digits_folder, tmp_path / "out.csv", engine="ray")
