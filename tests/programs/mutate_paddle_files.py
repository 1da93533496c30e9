"""Converts mutated files of Paddle: every one converts or ends in ``ConversionError``, and nothing else happens.

    python tests/programs/mutate_paddle_files.py [--kind pdparams|inference] [--count 10000] [--seed 0] [--jobs 2]

The kind is ``.pdparams`` files or exported inference models (programs of both formats, their parameters and settings,
in folders and archives). The mutations are bit flips, truncations, repeated and exchanged pieces, and spliced opcodes
or numbers, dangerous ones among them. Each conversion is watched: it may start no program, open no connection and
write nowhere but in its own folder (by Python's audit hook), take at most 10 seconds (a watchdog ends the process),
and add at most 1 GiB to the memory of the process.
"""

import argparse
import contextlib
import faulthandler
import io
import multiprocessing
import os
import pickle
import shutil
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np


GOLDENS = Path(__file__).parents[1] / "goldens"
SECONDS, BYTES = 10, 2**30
CHUNK = 250
_FORBIDDEN = ("os.system", "os.exec", "os.spawn", "os.posix_spawn", "os.fork", "subprocess.Popen", "socket.", "pty.")
_SPLICES = (
    b"cos\nsystem\n",
    b"cbuiltins\neval\n",
    b"c__builtin__\nexec\n",
    b"\x8c\x05posix\x8c\x06system\x93",
    b"X\x07\x00\x00\x00echo hi\x85R",
    b"}b",
    b")\x81",
    b"(i__builtin__\neval\n",
    b"\x8e" + (2**62).to_bytes(8, "little"),
    b"\x8b\xff\xff\xff\x7f",
    b"r\xff\xff\xff\xff",
    b"j\xff\xff\xff\xff",
    b"\x95" + (2**40).to_bytes(8, "little"),
    b"2" * 40,
    b"(" * 40 + b"l" * 40,
    b"\x85" * 40,
    b"Q",
    b"\x82\x01",
    b"\x96" + (2**62).to_bytes(8, "little"),
    b"\x97\x98",
    b"cnumpy._core.numeric\n_frombuffer\n",
    b"Vtext\n",
    b"0",
    b".",
)


_SPLICES_OF_PROGRAMS = (
    b"-1",
    b"999999999999",
    b"9" * 5000,
    b"1e999",
    b"null",
    b"[" * 3000,
    b'{"#": "p"},',
    b"[2147483647, 2147483647]",
    b"\xff" * 9 + b"\x01",
    b"\x80" * 11,
    b"\xff\xff\xff\x7f",
    b"\x00" * 16,
    b"!!python/object/apply:os.system ['echo hi']",
    b"&a [*a, *a]",
)


def originals():
    """Valid files: a small network in protocols 2 to 5, inside other dictionaries too, and the shipped checkpoint."""
    import torch

    import hgnetv2_hf
    from hgnetv2_hf.conversion.layouts import LAYOUTS, rename_back
    from hgnetv2_hf.hub.published import ASSETS, PUBLISHED

    torch.manual_seed(0)
    config = hgnetv2_hf.PPHGNetV2Config(
        stem_channels=[3, 4, 4],
        stage_in_channels=[4, 4],
        stage_mid_channels=[4, 4],
        stage_out_channels=[4, 4],
        stage_num_blocks=[1, 1],
        stage_downsample=[False, True],
        stage_light_block=[False, True],
        stage_kernel_size=[3, 5],
        stage_numb_of_layers=[1, 1],
        use_learnable_affine_block=True,
        class_expand=4,
        num_labels=2,
    )
    model = hgnetv2_hf.PPHGNetV2ForImageClassification(config)
    arrays = {name: t.detach().numpy() for name, t in rename_back(model.state_dict(), LAYOUTS["paddleclas"]).items()}
    arrays["StructuredToParameterName@@"] = {name: f"parameter_{i}" for i, name in enumerate(arrays)}
    small = [pickle.dumps(arrays, protocol=protocol) for protocol in (2, 3, 4, 5)]
    student = {f"Student.{name}": array for name, array in arrays.items() if not isinstance(array, dict)}
    teacher = {f"Teacher.{name}": array for name, array in list(arrays.items())[:3]}
    nested = {"state_dict": {**student, **teacher}, "epoch": 3}
    small += [pickle.dumps(nested, protocol=protocol) for protocol in (4, 5)]
    return [*small, (ASSETS / PUBLISHED["digits"].file_name).read_bytes()]


_SETTINGS = b"""PreProcess:
  transform_ops:
  - ResizeImage: {resize_short: 232, interpolation: bicubic, backend: pil}
  - CropImage: {size: 224}
  - NormalizeImage: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225], scale: 1.0/255.0, order: ''}
PostProcess:
  Topk: {topk: 5, label_list: [one, two, three]}
"""


_DETECTOR_SETTINGS = b"""arch: DETR
Preprocess:
- {interp: 2, keep_ratio: false, target_size: [64, 64], type: Resize}
- {mean: [0.0, 0.0, 0.0], norm_type: none, std: [1.0, 1.0, 1.0], type: NormalizeImage}
- {type: Permute}
label_list: [title, text, table, figure, formula]
"""


_EXPORTS = (
    "softmax-json", "softmax-pdmodel", "backbone-json", "backbone-pdmodel", "sigmoid-json", "tiny-json",
    "tiny-pdmodel", "ml-json",
)  # fmt: skip


def original_models():
    """Valid inference models, each a table of names to contents: what the real Paddle wrote."""
    models = []
    with tarfile.open(GOLDENS / "paddle_exports.tar.xz") as archive:
        for folder in _EXPORTS:
            program = f"inference.{folder.rpartition('-')[2]}"
            names = (program, "inference.pdiparams")
            model = {name: archive.extractfile(f"./{folder}/{name}").read() for name in names}
            models.append(model if "backbone" in folder else {**model, "inference.yml": _SETTINGS})
    with tarfile.open(GOLDENS / "paddle_detector.tar.xz") as archive:
        for form in ("json", "pdmodel"):
            names = (f"inference.{form}", "inference.pdiparams")
            model = {name: archive.extractfile(f"./{form}/{name}").read() for name in names}
            models.append({**model, "inference.yml": _DETECTOR_SETTINGS})
    return models


def write_mutated_file(random, files, source):
    source.with_suffix(".pdparams").write_bytes(mutate(random, files))
    return source.with_suffix(".pdparams")


def write_mutated_model(random, models, source):
    """A folder, or every fourth time an archive, in which one file is mutated."""
    model = dict(models[random.randint(len(models))])
    name = list(model)[random.randint(len(model))]
    others = [each[name] for each in models if name in each]
    model[name] = mutate(random, [model[name], *others], _SPLICES_OF_PROGRAMS)
    if random.randint(4):
        source.mkdir()
        for name, content in model.items():
            (source / name).write_bytes(content)
        return source
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz" if random.randint(2) else "w") as archive:
        for name, data in model.items():
            member = tarfile.TarInfo(f"model_infer/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    data = content.getvalue()
    if random.randint(2):
        data = mutate(random, [data], _SPLICES_OF_PROGRAMS)
    source.with_suffix(".tar").write_bytes(data)
    return source.with_suffix(".tar")


# What a kind's originals are, and what writes a mutated one.
KINDS = {"pdparams": (originals, write_mutated_file), "inference": (original_models, write_mutated_model)}


def mutate(random, files, splices=_SPLICES):
    """One mutated file."""
    data = bytearray(files[random.randint(len(files))])
    if random.randint(3) == 0:  # a third of the files differ in one bit
        data[random.randint(len(data))] ^= 1 << random.randint(8)
        return bytes(data)
    for _ in range(random.randint(1, 4)):
        start, end = sorted(random.randint(0, len(data) + 1, 2).tolist())
        end = min(end, start + 400)
        kind = random.randint(6)
        if kind == 0:
            for _ in range(random.randint(1, 9)):
                data[random.randint(len(data))] ^= 1 << random.randint(8)
        elif kind == 1:
            del data[start : None if random.randint(2) else end]
        elif kind == 2:
            data[start:start] = data[start:end]
        elif kind == 3:
            data[start:start] = splices[random.randint(len(splices))]
        elif kind == 4:
            other = files[random.randint(len(files))]
            data[start:end] = other[start:end]
        else:
            data[start:start] = random.bytes(random.randint(1, 12))
        if not data:
            break
    return bytes(data)


class Watch:
    """Python's audit hook: remembers what a conversion must not do."""

    def __init__(self, folder):
        self.folder, self.seen = str(folder), []
        sys.addaudithook(self.hook)

    def hook(self, event, arguments):
        if event.startswith(_FORBIDDEN):
            self.seen.append(f"{event} {arguments}"[:200])
        elif event == "open" and isinstance(arguments[0], str) and isinstance(arguments[2], int):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and not os.path.abspath(arguments[0]).startswith((self.folder, "/dev/null", "/dev/shm")):
                self.seen.append(f"wrote {arguments[0]}"[:200])


def run_chunk(job):
    """Converts the files of one seed: ``(converted, refused, slowest seconds, bytes added, problems)``."""
    kind, seed, count = job
    from hgnetv2_hf import ConversionError, convert_checkpoint
    from hgnetv2_hf.benchmark.memory import peak_memory

    (read_originals, write), random = KINDS[kind], np.random.RandomState(seed)
    files = read_originals()
    folder = Path(tempfile.mkdtemp(prefix="mutated-"))
    tempfile.tempdir = str(folder)  # where archives are unpacked
    target = folder / "out"
    converted = refused = 0
    slowest, problems = 0.0, []
    try:
        for _ in range(2):  # imports and caches are not the files' doing
            with contextlib.redirect_stderr(io.StringIO()):
                convert_checkpoint("digits", target, overwrite=True)
        shutil.rmtree(target)
        watch = Watch(folder)
        before = peak_memory()
        for number in range(count):
            source = write(random, files, folder / "source")
            faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
            start = time.perf_counter()
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    convert_checkpoint(source, target)
                converted += 1
            except ConversionError as error:
                refused += 1
                if not str(error).strip() or len(str(error)) > 2000:
                    problems.append(f"seed {seed}, file {number}: no sentence: {str(error)[:200]!r}")
            except BaseException as error:
                problems.append(f"seed {seed}, file {number}: {type(error).__name__}: {error}"[:300])
            faulthandler.cancel_dump_traceback_later()
            slowest = max(slowest, time.perf_counter() - start)
            shutil.rmtree(target, ignore_errors=True)
            shutil.rmtree(source) if source.is_dir() else source.unlink()
            left = sorted(path.name for path in folder.iterdir())
            if left:
                problems.append(f"seed {seed}, file {number}: left {left}")
        added = peak_memory() - before
        problems += [f"seed {seed}: {what}" for what in watch.seen]
        return converted, refused, slowest, added, problems
    finally:
        tempfile.tempdir = None
        shutil.rmtree(folder, ignore_errors=True)


def _prepare():
    import torch

    torch.set_num_threads(1)
    os.environ["HF_HUB_OFFLINE"] = "1"


def run(count, seed, jobs, kind="pdparams", show=print):
    """Returns whether every file converted or was refused with a sentence, within the limits."""
    from concurrent.futures import ProcessPoolExecutor

    from tqdm.auto import tqdm

    chunks = [(kind, seed * 100_000 + start // CHUNK, min(CHUNK, count - start)) for start in range(0, count, CHUNK)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_prepare) as pool:
        results = list(tqdm(pool.map(run_chunk, chunks), total=len(chunks), desc="mutated files", unit=f"×{CHUNK}"))
    converted, refused, slowest, added, problems = zip(*results)
    show(
        f"{sum(converted) + sum(refused)} of {count} mutated files: {sum(converted)} converted, {sum(refused)} "
        f"refused; slowest {max(slowest):.2f} s, memory added {max(added) / 2**20:.0f} MiB; "
        f"{sum(map(len, problems))} problems"
    )
    for problem in sum(problems, []):
        show(f"  {problem}")
    done = sum(converted) + sum(refused) == count and not any(problems)
    return done and max(slowest) <= SECONDS and max(added) <= BYTES


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kind", choices=tuple(KINDS), default="pdparams")
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    sys.exit(0 if run(**vars(arguments)) else 1)
