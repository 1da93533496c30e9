import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


# Before torch is imported; what the tests start inherits them. Several workers with a thread per core each would be in
# each other's way, and sums in another order give other bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")

import filelock  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402


GOLDENS = Path(__file__).parent / "goldens"
PROGRAMS = Path(__file__).parent / "programs"
ORACLE = PROGRAMS / "oracle_paddleclas.py"
sys.path[:0] = [str(PROGRAMS), str(GOLDENS.parent)]

GOLDEN_FILES = {
    "paddleclas_b0": ".pdparams",
    "paddleclas_b4": ".pdparams",
    "paddleclas_hgnet_tiny": ".pdparams",
    "paddleclas_hgnet_base": ".pdparams",
    "paddleclas_ml": ".pdparams",
    "paddledet_rtdetr_hgnetv2_l": ".pdparams",
    "dfine_n": ".pth",
    "dfine_l": ".pth",
    "rtdetrv2_hgnetv2_l": ".pth",
    "deim_dfine_n": ".pth",
    "deim_dfine_l": ".pth",
    "rtdetrv4_s": ".pth",
    "deimv2_atto": ".pth",
    "deimv2_n": ".pth",
}
GOLDEN_FAMILIES = {"dfine_n": "dfine", "deim_dfine_n": "deim"}  # what no tensor shows, and no published name says here
MOST_WORKERS = 8  # more would wait for the longest tests


def pytest_xdist_auto_num_workers(config):
    """``-n auto``: a core each, 4 GiB of memory each, and no more than it takes; one process for what is named one by
    one."""
    if os.environ.get("PYTEST_XDIST_AUTO_NUM_WORKERS"):
        return int(os.environ["PYTEST_XDIST_AUTO_NUM_WORKERS"])
    if any("::" in argument for argument in config.args):
        return 0
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, MOST_WORKERS, _free_memory() // 2**32))


def _free_memory():
    """Bytes, or where the system does not say, enough."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except OSError:
        return 2**40


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder of all workers of this run: what takes seconds to make is made there once."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session")
def make_once(shared_folder):
    """``make_once(name, make)``: what ``make(path)`` made at the path of this name, by whichever worker came first."""

    def once(name, make):
        path = shared_folder / "made-once" / name
        path.parent.mkdir(exist_ok=True)
        with filelock.FileLock(f"{path}.lock"):
            if not path.exists():
                make(path)
        return path

    return once


@pytest.fixture(autouse=True)
def offline_and_registered(monkeypatch):
    """No test reaches a network, and each starts registered."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import hgnetv2_hf

    hgnetv2_hf.register()
    yield
    hgnetv2_hf.register()


@pytest.fixture(scope="session")
def golden_checkpoint(make_once):
    """Builds the file that a golden was computed from: name -> path."""
    from goldens import filler

    def build(name):
        return make_once(
            f"{name}{GOLDEN_FILES[name]}", lambda path: filler.write(str(GOLDENS / f"{name}.json"), str(path))
        )

    return build


@pytest.fixture(scope="session")
def converted_golden(golden_checkpoint, make_once):
    """Converts a golden's file with given options: path of the folder, which is everybody's, to read."""
    import hgnetv2_hf

    def convert(name, **options):
        if name in GOLDEN_FAMILIES:
            options.setdefault("family", GOLDEN_FAMILIES[name])
        chosen = ",".join(f"{option}={value}" for option, value in sorted(options.items()))
        source = golden_checkpoint(name)
        return make_once(f"{name},{chosen}", lambda path: hgnetv2_hf.convert_checkpoint(source, path, **options))

    return convert


@pytest.fixture(scope="session")
def digits_folder(make_once):
    """The shipped checkpoint, converted; everybody's, to read."""
    import hgnetv2_hf

    return make_once("digits", lambda path: hgnetv2_hf.convert_checkpoint("digits", path))


@pytest.fixture(scope="session")
def paddle(tmp_path_factory):
    """Asks the real PaddleClas: ``paddle("network", variant="b0", …)`` returns its arrays."""
    return _oracle(tmp_path_factory, "HGNETV2_HF_PADDLE_PYTHON", ORACLE, "paddlepaddle 3.3.1 and paddleclas 2.6.0")


class Keras:
    """The real KerasHub in an interpreter of its own."""

    def __init__(self, python, folder):
        self.python, self.folder = python, folder

    def has(self, backend):
        """Whether Keras can compute with it there."""
        look = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({backend!r}) is None)"
        return subprocess.run([self.python, "-c", look], check=False).returncode == 0

    def ask(self, backend, preset, **request):
        """What it computes for a preset, as `hgnetv2_hf/conversion/run_kerashub.py` answers."""
        program = Path(__file__).parents[1] / "hgnetv2_hf" / "conversion" / "run_kerashub.py"
        paths = [str(self.folder / name) for name in ("request.npz", "answer.npz")]
        np.savez(paths[0], **request)
        run = subprocess.run(
            [self.python, str(program), str(preset), *paths],
            capture_output=True,
            text=True,
            timeout=900,
            env={**os.environ, "KERAS_BACKEND": backend},
        )
        assert run.returncode == 0, run.stderr[-2000:]
        with np.load(paths[1]) as answer:
            return dict(answer)


@pytest.fixture(scope="session")
def keras(tmp_path_factory):
    """The real [`Keras`]."""
    python = os.environ.get("HGNETV2_HF_KERAS_PYTHON")
    if not python:
        pytest.skip("set HGNETV2_HF_KERAS_PYTHON to a Python that has keras-hub")
    return Keras(python, tmp_path_factory.mktemp("keras"))


@pytest.fixture(scope="session")
def dfine(tmp_path_factory):
    """Asks the real D-FINE: ``dfine("criterion", seed=1, …)`` returns its losses."""
    return _oracle(
        tmp_path_factory,
        "HGNETV2_HF_DFINE_PYTHON",
        PROGRAMS / "oracle_dfine.py",
        "torch, scipy and d-fine-project 1.0.0",
    )


def _oracle(tmp_path_factory, variable, program, packages):
    """Runs a program of `tests/programs` in the interpreter that an environment variable names."""
    python = os.environ.get(variable)
    if not python:
        pytest.skip(f"set {variable} to a Python that has {packages}")
    folder = tmp_path_factory.mktemp("oracle")

    def ask(task, **request):
        request_path, answer_path = folder / "request.npz", folder / "answer.npz"
        np.savez(request_path, **request)
        run = subprocess.run(
            [python, str(program), task, str(request_path), str(answer_path)],
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert run.returncode == 0, run.stderr[-2000:]
        with np.load(answer_path) as answer:
            return dict(answer)

    return ask


@pytest.fixture(scope="session")
def timm():
    """The real timm."""
    return pytest.importorskip("timm", reason="timm comes with the extra [timm]")


@pytest.fixture(scope="session")
def without_package(tmp_path_factory):
    """Runs Python code in a process that cannot import this package: ``(returncode, stdout, stderr)``."""

    def run(code, *arguments, timeout=600):
        home = tmp_path_factory.mktemp("hf_home")
        blocked = "import sys; sys.modules['hgnetv2_hf'] = None\n"
        environment = {**os.environ, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
        result = subprocess.run(
            [sys.executable, "-c", blocked + code, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=home,
        )
        return result.returncode, result.stdout, result.stderr

    return run


# A network of a few thousand weights with LAB, light and dense blocks.
TINY_FIELDS = {
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 24, 32],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 24, 32, 40],
    "stage_num_blocks": [1, 1, 2, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [2, 2, 2, 2],
    "hidden_sizes": [16, 24, 32, 40],
    "use_learnable_affine_block": True,
}


# The same of PP-HGNet.
TINY_PP_HGNET_FIELDS = {
    name: TINY_FIELDS[name]
    for name in (
        "stem_channels",
        "stage_in_channels",
        "stage_mid_channels",
        "stage_out_channels",
        "stage_num_blocks",
        "stage_downsample",
        "stage_numb_of_layers",
    )
}


@pytest.fixture
def tiny_fields():
    return dict(TINY_FIELDS)


@pytest.fixture(scope="session")
def detector(make_once):
    """A folder with a small detector; everybody's, to read."""
    from small_detector import write_small_detector

    return make_once("small-detector", write_small_detector)


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Scans of the digits as an image folder with `train` and `val`: 12 and 6 of each of four classes."""
    from hgnetv2_hf.data.digits import load_held_out

    folder = tmp_path_factory.mktemp("scans")
    images, labels = load_held_out()
    labels = np.array(labels)
    for digit in "0123":
        members = np.flatnonzero(labels == int(digit))
        for part, chosen in (("train", members[:12]), ("val", members[12:18])):
            (folder / part / digit).mkdir(parents=True)
            for index in chosen:
                images[index].convert("RGB").save(folder / part / digit / f"{index:03}.png")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A classifier of a few thousand weights with four classes, and its image processor."""
    import hgnetv2_hf

    folder = tmp_path_factory.mktemp("tiny")
    config = hgnetv2_hf.PPHGNetV2Config(
        **TINY_FIELDS, class_expand=24, id2label=dict(enumerate("0123")), label2id={str(i): i for i in range(4)}
    )
    randomize(hgnetv2_hf.PPHGNetV2ForImageClassification(config)).save_pretrained(folder)
    hgnetv2_hf.HGNetV2ImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def write_pictures(folder, count, broken):
    """PNGs of several sizes, `00.png`, …; one of them is none."""
    import PIL.Image

    random = np.random.RandomState(0)
    folder.mkdir(exist_ok=True)
    for index in range(count):
        pixels = random.randint(0, 256, (40, 30 + index % 20, 3), dtype="uint8")
        PIL.Image.fromarray(pixels).save(folder / f"{index:02}.png")
    (folder / f"{broken:02}.png").write_bytes(b"no image")


@pytest.fixture
def replaced_client(monkeypatch):
    """A function that takes a protocol (`gs`, say) and replaces its client by one that keeps its files in memory; it
    returns the client."""
    from fsspec.implementations.memory import MemoryFileSystem

    def replace(scheme):
        class Client(MemoryFileSystem):
            protocol = scheme
            store, pseudo_dirs, cachable = {}, [""], False

            @classmethod
            def _strip_protocol(cls, path):
                return MemoryFileSystem._strip_protocol(path.replace(f"{scheme}://", "memory://"))

        monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, scheme, Client)
        return Client()

    return replace


def free_port():
    """A number at which processes on this machine may meet: two workers must not choose the same."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def slow_except(names, *fast, mark="slow"):
    """``parametrize``'s values: those named after the first are fast, and the same again for the others is slow."""
    assert set(fast) <= set(names)
    return [name if name in fast else pytest.param(name, marks=getattr(pytest.mark, mark)) for name in names]


def golden_input(golden, dtype):
    random = np.random.RandomState(int(golden["pixel_values_seed"]))
    return torch.from_numpy(random.normal(size=tuple(golden["pixel_values_shape"])).astype("float32")).to(dtype)


def randomize(model, seed=0):
    """Weights under which every part of the network matters: LAB with negative biases, batch-norm statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("lab.bias"):
                tensor.normal_(-0.2, 0.2, generator=generator)
            elif name.endswith("lab.scale") or name.endswith("running_var"):
                tensor.uniform_(0.7, 1.3, generator=generator)
            elif tensor.ndim == 1 and tensor.is_floating_point():
                tensor.normal_(0.5 if name.endswith("normalization.weight") else 0.0, 0.1, generator=generator)
            elif tensor.ndim in (2, 4):
                tensor.normal_(0.0, 1.3 / tensor[0].numel() ** 0.5, generator=generator)
    return model


def with_lab_of_both_signs(model, seed=0):
    """As trained, and every third LAB scale negative, one of them zero."""
    randomize(model, seed)
    scales = [tensor for name, tensor in model.state_dict().items() if name.endswith("lab.scale")]
    with torch.no_grad():
        for scale in scales[::3]:
            scale.neg_()
        for scale in scales[4:5]:
            scale.zero_()
    return model.eval()


def relative_difference(ours, original):
    """Largest difference, relative to the largest magnitude of the original."""
    ours, original = np.asarray(ours), np.asarray(original)
    assert ours.shape == original.shape
    return float(np.abs(ours - original).max() / np.abs(original).max())
