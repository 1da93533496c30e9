"""Times the backends of one model in turn, in blocks of half a second, so that a machine's drift hits all alike; and
conversions."""

import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import io
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import PIL.Image
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from tqdm.auto import tqdm

from ..conversion.layouts import LAYOUTS, rename_back
from ..conversion.paddle_file import write_paddle_file
from ..errors import HGNetV2Error
from ..files.atomic import atomic_file
from ..hub.published import PUBLISHED
from ..inference.optimize import CompiledPerShape, optimize_for_inference
from ..inference.precision import cpu_flags, is_native, is_native_in_openvino
from ..inference.runtime import load_exported, openvino_core
from ..model import modeling_hgnetv2 as modeling
from ..model.configuration_hgnetv2 import HGNetV2Config, PPHGNetV2Config
from ..model.image_processing_hgnetv2 import HGNetV2ImageProcessor
from .backends import BACKENDS, DEFAULT_BACKENDS, STOCK


BLOCK_SECONDS = 0.5
_NEEDS = {"timm": "timm", "onnx": "onnxruntime", "openvino": "openvino"}
_PEAK_SIDES = (512, 1024, 2048)
_PEAK_SECONDS = 2.0


def benchmark(variants, batch_sizes, backends=DEFAULT_BACKENDS, image_size=224, rounds=10, threads=None):
    """
    Inference of one network with several backends, timed in turn.

    All networks are the classifier of `hgnet_v2` with the same random weights, LAB of both signs included, so that no
    program can leave anything out; timm's has them too, under a head of its own.

    Args:
        variants (`list[str]`): rows of the table of variants with four stages.
        batch_sizes (`list[int]`): images per call.
        backends (`list[str]`): keys of `BACKENDS`; Transformers' own model is always measured. In bfloat16 on a
            processor that lacks it, PyTorch's are measured emulated, and OpenVINO's, which would compute float32, are
            left out.
        image_size (`int`): pixels per side.
        rounds (`int`): half-second blocks per backend.
        threads (`int`, *optional*): CPU threads.

    Returns:
        `dict`: `machine` (`str`), `peak` (`dict` of measured matrix-product rates, FLOP/s, in the native precisions
        that these backends compute in), `settings`, `notes` (`list[str]`: what is emulated or left out), and `rows`:
            dictionaries with
        `variant`, `batch_size`, `backend`, `milliseconds` per call (median), `ratio` (the stock model's time by this
        one), `share_of_peak` (of the matrix-product rate in the same precision; `None` for int8 and where it is
        emulated) and `difference` (of the outputs, relative to the stock model's; `None` for timm).

    Raises:
        `HGNetV2Error`: a backend is unsupported, or needs a package that is not installed.
    """
    return measure(_classifier, variants, batch_sizes, backends, image_size, rounds, threads)


@dataclasses.dataclass
class Network:
    """One row's network: Transformers' own model, a backend's name to a function without arguments that computes the
    outputs of these pixels, and the difference of such outputs from stock's."""

    stock: torch.nn.Module
    prepare: Callable
    difference: Callable


def measure(network, names, batch_sizes, backends, image_size, rounds, threads):
    """
    The result of [`benchmark`], of any network.

    Args:
        network (callable): a name, pixels and a folder to write in, to a [`Network`].
        names, batch_sizes, backends, image_size, rounds, threads: see [`benchmark`].
    """
    unsupported = [backend for backend in backends if backend not in BACKENDS]
    if unsupported:
        raise HGNetV2Error(f"Unsupported backend {unsupported[0]}: expected one of {', '.join(BACKENDS)}.")
    if threads is not None:
        torch.set_num_threads(threads)
    backends = [STOCK, *(backend for backend in BACKENDS if backend in backends and backend != STOCK)]
    for backend in backends:
        package = _NEEDS.get(backend.split("-")[0])
        if package and importlib.util.find_spec(package) is None:
            raise HGNetV2Error(f"{backend} needs {package}, which is not installed.")
    emulated = [backend for backend in backends if not _is_native(backend)]
    left_out = [backend for backend in emulated if backend.startswith("openvino")]
    backends = [backend for backend in backends if backend not in left_out]
    dtypes = dict.fromkeys(_dtype(backend) for backend in backends if backend not in emulated)
    cases = [(name, batch_size) for name in names for batch_size in batch_sizes]
    peak, rows = {}, []
    with tqdm(total=len(dtypes) + len(cases), desc="benchmark", unit="case", leave=False) as progress:
        for dtype in dtypes:
            peak[str(dtype)[6:]] = _matmul_rate(dtype)
            progress.update()
        for name, batch_size in cases:
            rows += _measure(network, name, batch_size, backends, image_size, rounds, peak)
            torch.compiler.reset()
            progress.update()
    return {
        "machine": machine_and_versions(),
        "peak": peak,
        "settings": {"image_size": image_size, "rounds": rounds, "block_seconds": BLOCK_SECONDS},
        "notes": _notes(left_out, [backend for backend in emulated if backend not in left_out]),
        "rows": rows,
    }


def _dtype(backend):
    return torch.bfloat16 if backend.endswith("bf16") else torch.float32


def _is_native(backend):
    if _dtype(backend) == torch.float32:
        return True
    return (
        is_native_in_openvino(_dtype(backend), openvino_core())
        if backend.startswith("openvino")
        else is_native(_dtype(backend))
    )


def _notes(left_out, emulated):
    notes = []
    if emulated:
        notes.append(f"emulated, because this processor does not compute bfloat16 natively: {', '.join(emulated)}")
    if left_out:
        notes.append(f"left out, because OpenVINO would compute float32 on this processor: {', '.join(left_out)}")
    return notes


def _measure(network, name, batch_size, backends, image_size, rounds, peak):
    pixel_values = torch.randn(batch_size, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        subject = network(name, pixel_values, folder)
        calls = {backend: subject.prepare(backend) for backend in tqdm(backends, desc=name, leave=False)}
        with FlopCounterMode(display=False) as counter:
            subject.stock(pixel_values)
        differences = {
            backend: None if backend.startswith("timm") else subject.difference(call())
            for backend, call in calls.items()
        }
        times = time_in_turn(list(calls.values()), rounds)
    rows = []
    for backend, milliseconds in zip(calls, times):
        rate = None if backend.endswith("int8") else peak.get(str(_dtype(backend))[6:])
        rows.append(
            {
                "variant": name,
                "batch_size": batch_size,
                "backend": backend,
                "milliseconds": milliseconds,
                "ratio": times[0] / milliseconds,
                "share_of_peak": rate and counter.get_total_flops() / milliseconds * 1e3 / rate,
                "difference": differences[backend],
            }
        )
    return rows


def _classifier(variant, pixel_values, folder):
    stock, ours = _pair(variant)
    expected = stock(pixel_values).logits
    size = dict(zip(("height", "width"), pixel_values.shape[2:]))
    processor = HGNetV2ImageProcessor(size=size, crop_size=size)

    def difference(output):
        logits = torch.as_tensor(output["logits"] if isinstance(output, dict) else output.logits).float()
        return ((logits - expected).abs().max() / expected.abs().max()).item()

    def prepare_any(backend):
        if backend.startswith("timm"):
            return _prepare_timm(backend, variant, ours, pixel_values)
        return prepare(stock, ours, processor, pixel_values, folder, backend)

    return Network(stock, prepare_any, difference)


def prepare(stock, ours, processor, pixel_values, folder, backend):
    """A function without arguments that computes the outputs of these pixels."""
    dtype = _dtype(backend)
    if backend in (STOCK, "eager"):
        return partial(stock if backend == STOCK else ours, pixel_values)
    if backend.startswith(("optimised", "compiled")):
        return partial(optimize_for_inference(ours, dtype, compile=backend.startswith("compiled")), pixel_values)
    target = _export(backend, ours, processor, pixel_values, folder)
    return partial(load_exported(target, str(dtype)[6:], torch.get_num_threads()).run, pixel_values.numpy())


def _prepare_timm(backend, variant, ours, pixel_values):
    import timm

    dtype = _dtype(backend)
    model = timm.create_model(f"hgnetv2_{variant}").eval().requires_grad_(False)
    trunk = {name: tensor for name, tensor in ours.state_dict().items() if not name.startswith("fc.")}
    missing, unexpected = model.load_state_dict(rename_back(trunk, LAYOUTS["timm"]), strict=False)
    assert not unexpected and all(name.startswith("head.") for name in missing), (missing, unexpected)
    if "compiled" not in backend:
        return partial(model, pixel_values)
    model = model.to(dtype, memory_format=torch.channels_last)
    pixel_values = pixel_values.to(dtype, memory_format=torch.channels_last)
    return partial(CompiledPerShape(model), pixel_values)


def _export(backend, ours, processor, pixel_values, folder):
    """The folder for this backend, exported once for all precisions."""
    from ..inference import export as exporting

    kind = backend.removesuffix("-bf16")
    target = os.path.join(folder, kind)
    if os.path.isdir(target):
        return target
    source = os.path.join(folder, "model")
    if not os.path.isdir(source):
        ours.save_pretrained(source)
        processor.save_pretrained(source)
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        if kind == "openvino-int8":
            noise = os.path.join(folder, "noise")
            _write_noise(noise, pixel_values.shape[2:])
            exporting.export_model(source, target, "openvino", int8=True, calibration=noise)
        else:
            exporting.export_model(source, target, kind.split("-")[0], folded=not kind.endswith("stock"))
    return target


def _write_noise(folder, size, images=20):
    os.mkdir(folder)
    random = np.random.RandomState(0)
    for index in range(images):
        pixels = random.randint(0, 256, (*size, 3), dtype="uint8")
        PIL.Image.fromarray(pixels).save(os.path.join(folder, f"{index}.png"))


def _matmul_rate(dtype):
    """The best rate of a product of two square matrices, FLOP/s: of the largest sides that the time allows."""
    best, end = 0.0, time.perf_counter() + _PEAK_SECONDS
    for index, side in enumerate(_PEAK_SIDES, 1):
        if time.perf_counter() >= end:
            break
        until = end - _PEAK_SECONDS * (1 - index / len(_PEAK_SIDES))
        best = max(best, 2 * side**3 / _fastest_product(side, dtype, until))
    return best


def _fastest_product(side, dtype, until):
    """Seconds of the fastest product before ``until``, as `torch.mm` and as the 1×1 convolution that it is."""
    left, right = (torch.randn(side, side).to(dtype) for _ in range(2))
    pixels = left.t().reshape(1, side, -1, 32).contiguous(memory_format=torch.channels_last)
    kernels = right.reshape(side, side, 1, 1)
    products = (lambda: torch.mm(left, right), lambda: torch.nn.functional.conv2d(pixels, kernels))
    best = math.inf
    with torch.inference_mode():
        while best == math.inf or time.perf_counter() < until:
            for product in products:
                start = time.perf_counter()
                product()
                best = min(best, time.perf_counter() - start)
    return best


def table(result):
    """The result of [`benchmark`] as text."""
    settings = result["settings"]
    peak = ", ".join(f"{rate / 1e12:.2f} TFLOP/s {dtype}" for dtype, rate in result["peak"].items())
    lines = [
        result["machine"],
        f"matrix product: {peak}",
        f"{settings['image_size']}×{settings['image_size']}, medians of {settings['rounds']} blocks of "
        f"{settings['block_seconds']} s, in turn; ratio: time of stock / time",
        f"{'variant':<9}{'batch':>5}  {'backend':<20}{'ms':>10}{'ratio':>8}{'of peak':>9}{'difference':>12}",
    ]
    for row in result["rows"]:
        share = "" if row["share_of_peak"] is None else f"{row['share_of_peak']:.0%}"
        difference = "" if row["difference"] is None else f"{row['difference']:.1e}"
        lines.append(
            f"{row['variant']:<9}{row['batch_size']:>5}  "
            f"{row['backend']:<20}{row['milliseconds']:>10.2f}{row['ratio']:>8.2f}{share:>9}{difference:>12}"
        )
    lines += [f"note: {note}" for note in result["notes"]]
    return "\n".join(
        lines
        + [f"  {backend}: {BACKENDS[backend]}" for backend in dict.fromkeys(row["backend"] for row in result["rows"])]
    )


def check_plot(path):
    """Raises ``HGNetV2Error`` where `plot` could not draw: to be called before a long measurement."""
    if importlib.util.find_spec("matplotlib") is None:
        raise HGNetV2Error('Plotting needs matplotlib: pip install "hgnetv2-hf[plot]".')
    if not str(path).endswith((".png", ".svg", ".pdf")):
        raise HGNetV2Error(f"Unsupported picture {path}: expected a name that ends with .png, .svg or .pdf.")


def plot(result, path):
    """
    A picture of latency against published accuracy: a panel per batch size, a line per backend.

    Raises:
        `HGNetV2Error`: see [`check_plot`].
    """
    check_plot(path)
    from matplotlib.figure import Figure

    batch_sizes = sorted({row["batch_size"] for row in result["rows"]})
    figure = Figure(figsize=(2 + 6 * len(batch_sizes), 5), layout="constrained")
    panels = figure.subplots(1, len(batch_sizes), sharey=True, squeeze=False)[0]
    for axes, batch_size in zip(panels, batch_sizes):
        _draw_panel(axes, [row for row in result["rows"] if row["batch_size"] == batch_size])
        side = result["settings"]["image_size"]
        axes.set_xlabel(f"milliseconds per call, batch {batch_size}, {side}×{side}")
    panels[0].set_ylabel("ImageNet top-1 %, as PaddleClas publishes it")
    panels[0].legend()
    figure.suptitle("\n".join(textwrap.wrap(result["machine"], 100 * len(batch_sizes))), fontsize=8)
    with atomic_file(path) as partial:
        figure.savefig(partial, format=os.path.splitext(path)[1][1:], dpi=150)


def _draw_panel(axes, rows):
    accuracy = {row.variant: row.top1 for row in PUBLISHED.values() if row.top1 is not None}
    rows = [row for row in rows if row["variant"] in accuracy]
    for backend in dict.fromkeys(row["backend"] for row in rows):
        points = [(row["milliseconds"], accuracy[row["variant"]]) for row in rows if row["backend"] == backend]
        axes.plot(*zip(*points), marker="o", label=BACKENDS[backend])
    slowest = {row["variant"]: row for row in sorted(rows, key=lambda row: row["milliseconds"])}
    for variant, row in slowest.items():
        place = (row["milliseconds"], accuracy[variant])
        axes.annotate(variant.upper(), place, textcoords="offset points", xytext=(6, -10))
    axes.set_xscale("log")
    axes.grid(alpha=0.3, which="both")


def benchmark_conversion(variants, rounds=3):
    """
    Converts a `.pdparams` file of each variant with random weights, without verification, each time in a fresh
    process.

    Args:
        variants (`list[str]`): rows of the table of variants with four stages.
        rounds (`int`): conversions per variant; the slowest and the largest count.

    Returns:
        `str`: the machine, the versions and one line per variant: size of the file, seconds of the conversion (the
        imports, which take about as long whatever is converted, apart), and the peak memory of the process as a
        multiple of the file: in all, and what the conversion added to the imports.
    """
    lines = [
        machine_and_versions(),
        f"conversion of a .pdparams without verification, worst of {rounds}; memory: peak resident set / size of the "
        "file",
        f"{'variant':<9}{'file MB':>9}{'seconds':>9}{'imports s':>11}"
        f"{'peak MB':>9}{'peak / file':>13}{'added / file':>14}",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for variant in variants:
            path = os.path.join(folder, f"{variant}.pdparams")
            model = modeling.PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(variant))
            write_paddle_file(rename_back(model.state_dict(), LAYOUTS["paddleclas"]), path)
            del model
            runs = [
                _measured_conversion(path, os.path.join(folder, "out"))
                for _ in tqdm(range(rounds), desc=variant, unit="conversion", leave=False)
            ]
            imports, seconds, before, peak = map(max, zip(*runs))
            size = os.path.getsize(path)
            lines.append(
                f"{variant:<9}{size / 1e6:>9.1f}{seconds:>9.2f}{imports:>11.2f}{peak / 1e6:>9.0f}{peak / size:>13.2f}"
                f"{(peak - before) / size:>14.2f}"
            )
    return "\n".join(lines)


def _measured_conversion(path, target):
    """Seconds of the imports and of the conversion, and bytes resident before and at the peak."""
    command = [sys.executable, "-c", _CONVERT, path, target]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return [float(value) for value in run.stdout.splitlines()[-1].split()]


_CONVERT = """
import sys, time
start = time.perf_counter()
import hgnetv2_hf.conversion, hgnetv2_hf.model.modeling_hgnetv2
from hgnetv2_hf.benchmark.memory import peak_memory
imported, before = time.perf_counter(), peak_memory()
hgnetv2_hf.conversion.convert_checkpoint(sys.argv[1], sys.argv[2], overwrite=True)
print(imported - start, time.perf_counter() - imported, before, peak_memory())
"""


def time_in_turn(calls, rounds):
    """Median milliseconds per call of each function in ``calls``, timed in alternating half-second blocks."""
    with torch.inference_mode():
        for call in calls:
            call()
        samples = [[] for _ in calls]
        for turn in range(rounds):
            order = list(enumerate(calls))
            for index, call in order if turn % 2 == 0 else reversed(order):
                samples[index].append(_one_block(call))
    return [statistics.median(values) * 1e3 for values in samples]


def _one_block(call):
    count, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < BLOCK_SECONDS:
        call()
        count += 1
    return elapsed / count


def _pair(variant):
    """Transformers' own classifier and ours, with the same weights."""
    from transformers.models.hgnet_v2 import configuration_hgnet_v2, modeling_hgnet_v2

    config = HGNetV2Config.from_variant(variant, num_labels=1000)
    ours = with_random_statistics(modeling.HGNetV2ForImageClassification(config)).eval().requires_grad_(False)
    stock_config = configuration_hgnet_v2.HGNetV2Config.from_dict(config.to_dict())
    stock = modeling_hgnet_v2.HGNetV2ForImageClassification(stock_config).eval().requires_grad_(False)
    stock.load_state_dict(ours.state_dict())
    return stock, ours


def with_random_statistics(model):
    """Batch norm and LAB as after training: not the identity that a program could leave out. A fifth of the LAB scales
    is negative."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for index, (name, tensor) in enumerate(model.state_dict().items()):
            if name.endswith(("running_mean", "normalization.bias", "norm.bias", "lab.bias")):
                tensor.normal_(0.0, 0.1, generator=generator)
            elif name.endswith(("running_var", "normalization.weight", "norm.weight", "lab.scale")):
                tensor.uniform_(0.8, 1.2, generator=generator)
                if name.endswith("lab.scale") and index % 5 == 0:
                    tensor.neg_()
    return model


def machine_and_versions():
    others = []
    for name in ("timm", "openvino", "onnxruntime", "nncf"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            others.append(f", {name} {importlib.metadata.version(name)}")
    return (
        f"{platform.processor() or platform.machine()} {_cpu_name()} ({_matrix_units()}), {torch.get_num_threads()} "
        f"threads; Python {platform.python_version()}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}" + "".join(others)
    )


def _matrix_units():
    """What the processor has for bfloat16 and int8 products (Linux)."""
    found = [flag for flag in ("amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni") if flag in cpu_flags()]
    return ", ".join(found) or "no bfloat16 units known"


def _cpu_name():
    return _cpu_line("model name")


def _cpu_line(key):
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith(key))
    except (OSError, StopIteration):
        return ""
