"""The engine `ray` against the local one, on this machine: images per second, start apart, and memory.

    python tests/programs/benchmark_cluster.py [--images 5000] [--small]

Classifies JPEG photos of many sizes with a B0 (`--small`: hard links to one image of 32 pixels, with the digits'
network) with both engines, prints images per second over the last four fifths of the rows, and of the engine `ray` the
seconds before the first row and the memory of all processes along the way. The extra `ray` brings what it needs.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import psutil
from benchmark_classify import make_model, make_photos

from hgnetv2_hf.benchmark.inference import machine_and_versions
from hgnetv2_hf.cli import main as command
from hgnetv2_hf.files.sources import Sources
from hgnetv2_hf.inference.classify import _load, _rows


PHOTOS = 1000  # different ones
BATCH_SIZE = 16


def make_links(folder, count):
    folder.mkdir()
    PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype="uint8")).save(folder / "0.png")
    for index in range(1, count):
        if index % 20_000 == 0:  # a file has 65,000 names at most
            (folder / f"{index}.png").write_bytes((folder / "0.png").read_bytes())
        else:
            os.link(folder / f"{index - index % 20_000}.png", folder / f"{index}.png")


def memory():
    """MB that this process, and all of the cluster's, hold for themselves."""
    own = psutil.Process().memory_full_info().uss
    others = 0
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and "ray" in " ".join(process.cmdline()):
                others += process.memory_full_info().uss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return own / 1e6, others / 1e6


def run(engine, paths, model):
    sources = Sources(paths)
    network = _load(model, "float32", False, BATCH_SIZE, "cpu")
    start, times, held = time.perf_counter(), [], []
    for _ in _rows(iter(sources), engine, network, model, "float32", 5, BATCH_SIZE, os.cpu_count()):
        times.append(time.perf_counter())
        if engine == "ray" and len(times) % (len(sources) // 10) == 0:
            held.append(memory())
    first = len(times) // 5
    speed = (len(times) - first) / (times[-1] - times[first - 1])
    print(f"{engine}: {len(times)} rows, {speed:.1f} images/s, first row after {times[0] - start:.0f} s", flush=True)
    for own, others in held:
        print(f"  memory of the calling process {own:.0f} MB, of the others {others:.0f} MB", flush=True)
    return speed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--small", action="store_true")
    arguments = parser.parse_args()
    print(machine_and_versions())
    with tempfile.TemporaryDirectory() as folder:
        photos, model = Path(folder, "photos"), Path(folder, "model")
        if arguments.small:
            make_links(photos, arguments.images)
            paths = [str(photos)]
            command(["convert", "digits", str(model)])
        else:
            make_photos(photos, PHOTOS)
            paths = [str(photos)] * (arguments.images // PHOTOS)
            make_model(model, sorted(map(str, photos.iterdir())))
        speeds = {engine: run(engine, paths, model) for engine in ("local", "ray")}
    print(f"ray / local: {speeds['ray'] / speeds['local']:.2f}")


if __name__ == "__main__":
    main()
