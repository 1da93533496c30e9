"""Ray Data as the engine for more than one machine: decoding in tasks, networks in actors, order kept."""

import contextlib
import itertools
import logging
import os
import pickle
import signal
import socket
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from ..errors import HGNetV2Error, InferenceError
from ..files.processes import number_of_processes
from ..files.storage import is_url
from ..wording import sentence
from .stages import in_stages


_ITEMS_PER_RUN = 100_000  # of Ray Data: the memory of the process that waits for the answers is bounded by it
_BATCHES_PER_TASK = 8  # at most, for Ray starts some hundred tasks a second
_TASKS_PER_CPU = 16  # at least, so that all are busy to the end
_CPUS_TO_DECODE = 0.9
_CPUS_OF_NETWORK = 0.01  # they share the cores with decoding; what is left of a cluster must still be able to decode
_SECONDS_TO_CONNECT = 10
_READERS = 16  # threads that wait for a storage


def check_engine(engine, **options):
    """Raises `InferenceError` where there is no such engine or cluster, an option is given that a cluster does not
    take, or `torchrun` started several processes."""
    if engine not in ("local", "ray"):
        raise InferenceError(f"There is no engine {engine!r}: local, ray.")
    given = [name for name, value in options.items() if value]
    if engine == "ray" and given:
        raise InferenceError(f"The engine ray takes no {' and no '.join(given)}.")
    if number_of_processes() > 1:
        raise InferenceError(
            "This runs in one process; without the launcher, several share the images by --engine ray."
        )
    if engine == "ray":
        _import_ray()
        _check_address(_address())


def computed(engine, items, decode, network, compute, model, load, batch_size, workers):
    """As [`in_cluster`]; the local engine takes the network that is loaded already, and threads."""
    if engine == "ray":
        return in_cluster(items, decode, model, load, compute, batch_size)
    return in_stages(
        items, decode, partial(compute, network), lambda item, decoded, answer: lambda: answer, batch_size, workers
    )


def default_workers(sources):
    """Threads that decode: one per core; more where they wait for a storage."""
    cores = os.cpu_count() or 1
    return max(cores, _READERS) if sources.remote else cores


def in_cluster(items, decode, model, load, compute, batch_size):
    """
    As [`in_stages`], on the cluster of `RAY_ADDRESS`, the one that is connected already, or one on this machine.

    Functions are sent to other processes, which import this package; files of this machine must lie where every node
    sees them, those of a storage be readable from there. A model's folder is sent along. A killed worker or node costs
    what was running there, which is computed again.

    Args:
        items (iterable of [`Found`])
        decode (callable): one of them to what the network computes on, or to an error as `str`.
        model (`str` or `os.PathLike`): a folder or repository.
        load (callable): that to a network; called once per actor, of which there is one per GPU or CPU.
        compute (callable): the network and a list of what is decoded to as many answers.
        batch_size (`int`): items per call of `compute`.

    Yields:
        `tuple`: an item, its error or `None`, and its answer, in the order of the items.

    Raises:
        `InferenceError`: Ray is not installed or not reachable; or what a function raised.
    """
    with _connected() as ray:
        items, sent = iter(items), ray.put(_packed(model))
        while some := list(itertools.islice(items, _ITEMS_PER_RUN)):
            answers = _run(ray, some, decode, sent, load, compute, batch_size)
            yield from ((item, *answer) for item, answer in zip(some, answers, strict=True))


def _run(ray, items, decode, model, load, compute, batch_size):
    """The error and answer of each item, in order."""
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), max(1, int(resources.get("CPU", 1)))
    batches = len(items) // (batch_size * cpus * _TASKS_PER_CPU)
    size = batch_size * min(max(batches, 1), _BATCHES_PER_TASK)
    rows = [
        {"number": number, "items": pickle.dumps([_everywhere(item) for item in items[start : start + size]])}
        for number, start in enumerate(range(0, len(items), size))
    ]
    data = ray.data.from_items(rows, override_num_blocks=len(rows))
    data = data.map(_decode, fn_args=(decode,), num_cpus=_CPUS_TO_DECODE)
    data = data.map(
        _Network,
        fn_constructor_args=(model, load, compute, batch_size),
        compute=ray.data.ActorPoolStrategy(size=min(gpus or cpus, len(rows))),
        num_cpus=_CPUS_OF_NETWORK,
        num_gpus=1 if gpus else None,
    )
    data.context.execution_options.preserve_order = True
    try:
        for number, row in enumerate(data.iter_rows()):
            if row["failed"]:
                raise InferenceError(row["failed"])
            if row["number"] != number:
                raise InferenceError(f"Ray answered task {row['number']} where {number} was expected.")
            yield from pickle.loads(row["answers"])
    except ray.exceptions.RayError as error:
        raise InferenceError(f"Ray could not finish: {sentence(error)[-300:]}") from error


def _everywhere(item):
    return item if is_url(item.file) else item._replace(file=os.path.abspath(item.file))


def _decode(row, decode):
    items = pickle.loads(row["items"])
    try:
        if any(is_url(item.file) for item in items):
            with ThreadPoolExecutor(_READERS) as pool:
                decoded = list(pool.map(decode, items))
        else:
            decoded = list(map(decode, items))
    except Exception as error:  # as a value: Ray wraps what is raised in text of its own
        return {"number": row["number"], "failed": _reason(error), "decoded": b""}
    return {"number": row["number"], "failed": "", "decoded": pickle.dumps(decoded, 5)}


class _Network:
    def __init__(self, model, load, compute, batch_size):
        if not torch.cuda.is_available():
            torch.set_num_threads(1)  # an actor per core
        self.compute, self.batch_size, self.failed = compute, batch_size, ""
        try:
            with _unpacked(model) as folder:
                self.network = load(folder)
        except Exception as error:
            self.failed = _reason(error)

    def __call__(self, row):
        if failed := row["failed"] or self.failed:
            return {"number": row["number"], "failed": failed, "answers": b""}
        decoded = pickle.loads(row["decoded"])
        good, answers = iter([each for each in decoded if not isinstance(each, str)]), []
        try:
            while batch := list(itertools.islice(good, self.batch_size)):
                answers += self.compute(self.network, batch)
        except Exception as error:
            return {"number": row["number"], "failed": _reason(error), "answers": b""}
        answers = iter(answers)
        pairs = [(each, None) if isinstance(each, str) else (None, next(answers)) for each in decoded]
        return {"number": row["number"], "failed": "", "answers": pickle.dumps(pairs, 5)}


def _reason(error):
    return str(error) if isinstance(error, HGNetV2Error) else f"{type(error).__name__}: {sentence(error)}"


def _packed(model):
    """The files of a folder, or the name of a repository."""
    if not os.path.isdir(model):
        return model
    files = (file for file in Path(model).rglob("*") if file.is_file())
    return {str(file.relative_to(model)): file.read_bytes() for file in files}


@contextlib.contextmanager
def _unpacked(model):
    import ray

    model = ray.get(model)
    if isinstance(model, str):
        yield model
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, content in model.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        yield folder


def _import_ray():
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InferenceError('The engine "ray" needs Ray Data: pip install "hgnetv2-hf[ray]".') from error
    return ray


def _address():
    return os.environ.get("RAY_ADDRESS") or "local"


def _check_address(address):
    """Ray itself waits minutes for a host that does not answer."""
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), _SECONDS_TO_CONNECT).close()
        except (OSError, OverflowError) as error:
            raise InferenceError(f"There is no Ray cluster at {address}: {sentence(error)}.") from error


@contextlib.contextmanager
def _connected():
    ray = _import_ray()
    started = not ray.is_initialized()
    if started:
        tqdm.write("Ray starts, which takes half a minute.", file=sys.stderr)
        address = _address()
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it warns of each restart that it takes care of
        try:
            with _same_handler(), _without_standard_error():
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # a plain one where a node does not start
            what = "Ray cannot start" if address == "local" else f"There is no Ray cluster at {address}"
            raise InferenceError(f"{what}: {sentence(error)[:200]}") from error
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    bars, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield ray
    finally:
        context.enable_progress_bars = bars
        if started:
            ray.shutdown()


@contextlib.contextmanager
def _without_standard_error():
    """Ray's core says there that it read the log level; what goes wrong is raised."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextlib.contextmanager
def _same_handler():
    """Ray ends the program at SIGTERM, without what its own handler would do."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # of Ray's handler
        if callable(handler):
            handler(signal.SIGTERM, None)
        raise
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)
