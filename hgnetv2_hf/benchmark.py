"""Times models in turn, in blocks of half a second, so that a machine's drift hits all alike; and conversions."""

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial

import torch
import transformers
from tqdm.auto import tqdm

from . import modeling_hgnetv2 as modeling
from .configuration_hgnetv2 import HGNetV2Config, PPHGNetV2Config
from .conversion.layouts import LAYOUTS, rename_back
from .conversion.paddle_file import write_paddle_file


BLOCK_SECONDS = 0.5


def benchmark(variants, batch_sizes, image_size=224, rounds=10, threads=None):
    """
    Eager float32 inference of this package's `hgnet_v2` classifier against Transformers' own, same weights.

    Args:
        variants (`list[str]`): rows of the table of variants with four stages.
        batch_sizes (`list[int]`): images per call.
        image_size (`int`): pixels per side.
        rounds (`int`): half-second blocks per model.
        threads (`int`, *optional*): CPU threads.

    Returns:
        `str`: the machine, the versions and one line per variant and batch size: median milliseconds per call, and the
        ratio of the stock model's time to ours (above 1: we are faster).
    """
    if threads is not None:
        torch.set_num_threads(threads)
    lines = [
        machine_and_versions(),
        f"eager float32, {image_size}×{image_size}, medians of {rounds} blocks of {BLOCK_SECONDS} s, in turn",
        f"{'variant':<9}{'batch':>5}{'stock ms':>11}{'ours ms':>10}{'stock / ours':>14}",
    ]
    cases = [(variant, batch_size) for variant in variants for batch_size in batch_sizes]
    for variant, batch_size in tqdm(cases, desc="benchmark", unit="case", leave=False):
        stock, ours = _pair(variant)
        pixel_values = torch.randn(batch_size, 3, image_size, image_size)
        times = time_in_turn([partial(model, pixel_values) for model in (stock, ours)], rounds)
        lines.append(f"{variant:<9}{batch_size:>5}{times[0]:>11.2f}{times[1]:>10.2f}{times[0] / times[1]:>14.3f}")
    return "\n".join(lines)


def benchmark_conversion(variants, rounds=3):
    """
    Converts a `.pdparams` file of each variant with random weights, without verification, each time in a fresh process.

    Args:
        variants (`list[str]`): rows of the table of variants with four stages.
        rounds (`int`): conversions per variant; the slowest and the largest count.

    Returns:
        `str`: the machine, the versions and one line per variant: size of the file, seconds of the conversion (the imports,
        which take about as long whatever is converted, apart), and the peak memory of the process as a multiple of the file:
        in all, and what the conversion added to the imports.
    """
    lines = [
        machine_and_versions(),
        f"conversion of a .pdparams without verification, worst of {rounds}; memory: peak resident set / size of the file",
        f"{'variant':<9}{'file MB':>9}{'seconds':>9}{'imports s':>11}{'peak MB':>9}{'peak / file':>13}{'added / file':>14}",
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
import hgnetv2_hf.conversion, hgnetv2_hf.modeling_hgnetv2
from hgnetv2_hf.memory import peak_memory
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
    ours = modeling.HGNetV2ForImageClassification(config).eval()
    stock_config = configuration_hgnet_v2.HGNetV2Config.from_dict(config.to_dict())
    stock = modeling_hgnet_v2.HGNetV2ForImageClassification(stock_config).eval()
    stock.load_state_dict(ours.state_dict())
    return stock, ours


def machine_and_versions():
    return (
        f"{platform.processor() or platform.machine()} {_cpu_name()}, {torch.get_num_threads()} threads; Python "
        f"{platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    )


def _cpu_name():
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return ""
