"""Labels for many image files: read in parallel with the network, in order, in constant memory, resumable.

Rows are first appended to a journal beside the output, one JSON line each, and become the table when the last one is
there. An interrupted run leaves the journal, and the next run with the same model and options continues after its last
whole line.

The journals of an output are locked: a second run to the same output stops.

Under ``torchrun`` or ``accelerate launch`` every process takes each n-th file and has a journal; the first joins them.
"""

import contextlib
import csv
import datetime
import glob
import hashlib
import importlib.util
import itertools
import json
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForImageClassification

from ..backbone import check_name, load_image_processor
from ..errors import InferenceError, raised_as
from ..files.atomic import atomic_file, lock
from ..files.images import UNREADABLE, file_stamp, find_images, folder_stamp, printable_path
from ..files.journal import resume
from ..files.processes import in_main_process, number_of_processes
from ..structure import contains_hgnetv2
from ..wording import counted, printable, sentence
from .optimize import optimize_for_inference
from .precision import fastest_dtype, warn_if_emulated
from .predictors import UNLOADABLE, prepare
from .runtime import is_exported, load_exported, top_labels


TABLES = (".csv", ".jsonl", ".parquet")
_BATCHES_AHEAD = 3
_PARQUET_ROWS = 10_000
_PATIENCE = datetime.timedelta(days=30)  # for slower processes


@raised_as(InferenceError)
def classify(
    paths, model, output=None, top_k=5, batch_size=16, dtype="float32", compile=False, workers=None, overwrite=False,
    show=print,
):  # fmt: skip
    """
    Classifies image files and writes one row per file, in the order of the files.

    Args:
        paths (`list[str]`): files, folders (with those inside) or globs.
        model (`str` or `os.PathLike`): a classifier's folder or repository, or a folder of `hgnetv2-hf export`.
        output (`str`, *optional*): a `.csv`, `.jsonl` or `.parquet` file, complete or absent; by default rows are
            printed. A file whose name is no UTF-8 appears as its `file://` URI (see `files.images.printable_path`).
        top_k (`int`, defaults to 5): labels per image.
        batch_size (`int`, defaults to 16): images per call of the network.
        dtype (`str`, defaults to `"float32"`): or `"bfloat16"`, `"float16"`, `"auto"` (bfloat16 where it is native,
            else float32): the precision of the network.
        compile (`bool`, defaults to `False`): compile the network first; worth it for thousands of images.
        workers (`int`, *optional*): threads that decode and resize; by default one per core.
        overwrite (`bool`, defaults to `False`): replace an existing output file.
        show (callable, defaults to `print`): receives the summary.

    Returns:
        `dict`: `images`, `unreadable`, `resumed` (rows that an earlier, interrupted run had left), and
            `images_per_second` of this run, the loading of the model apart.

    Raises:
        `InferenceError`: no images, no classifier, or the output cannot be written. An image that cannot be read is no
            error: its row says why.
    """
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value < 1:
            raise InferenceError(f"Unsupported {name} {value}: expected a positive whole number.")
    processes = _processes()
    with _claimed(output, overwrite, processes):
        return _classify(
            paths, model, output, top_k, batch_size, dtype, compile, workers or os.cpu_count() or 1, show, processes
        )


@contextlib.contextmanager
def _claimed(output, overwrite, processes):
    """The first process holds the lock on the journals for all."""
    with contextlib.ExitStack() as stack:

        def claim():
            _check_output(output, overwrite)
            if output is not None:
                stack.enter_context(lock(f"{output}.journal", output))
                _check_output(output, overwrite)  # another run may have come and gone

        in_main_process(processes.is_main_process, claim)
        yield


def _classify(paths, model, output, top_k, batch_size, dtype, compile, workers, show, processes):
    def files():
        """Those of this process."""
        return itertools.islice(find_images(paths), processes.process_index, None, processes.num_processes)

    total = sum(1 for _ in files())
    network = _load(model, dtype, compile, batch_size, processes.device)
    run = [os.path.abspath(model), folder_stamp(model), top_k, dtype]
    with _journals(output, run, processes) as journals:
        journal = journals[processes.process_index] if journals else None
        resumed = resume(journal, files()) if journal else 0
        remaining = itertools.islice(files(), resumed, None)
        unreadable, start = 0, time.perf_counter()
        with tqdm(total=total, initial=resumed, desc="classify", unit="image", mininterval=0.5) as progress:
            for rows in _rows(remaining, network, top_k, batch_size, workers):
                unreadable += sum(row["error"] is not None for row in rows)
                if journal:
                    journal.write("".join(json.dumps(row) + "\n" for row in rows))
                    journal.flush()
                else:
                    for row in rows:
                        progress.write(_line(row))
                progress.update(len(rows))
        speed = (total - resumed) / (time.perf_counter() - start)
        processes.wait_for_everyone()
        if journal and processes.is_main_process:
            total, unreadable = _write_table(journals, Path(output), top_k)
    if output is not None and processes.is_main_process:
        show(
            f"{counted(total, 'image')} -> {printable_path(output)}"
            + (f", {unreadable} of them unreadable" if unreadable else "")
            + (f"; continued after {counted(resumed, 'row')} of an interrupted run" if resumed else "")
        )
    return {"images": total, "unreadable": unreadable, "resumed": resumed, "images_per_second": speed}


def _processes():
    """This process among those of `torchrun` or `accelerate launch`, or alone."""
    alone = number_of_processes() == 1
    return PartialState(cpu=not torch.cuda.is_available(), **({} if alone else {"timeout": _PATIENCE}))


def _check_output(output, overwrite):
    if output is None:
        return
    if not str(output).endswith(TABLES):
        raise InferenceError(f"Unsupported table {output}: expected a name that ends with {', '.join(TABLES)}.")
    if str(output).endswith(".parquet") and importlib.util.find_spec("pyarrow") is None:
        raise InferenceError('Parquet needs pyarrow: pip install "hgnetv2-hf[parquet]".')
    if os.path.lexists(output) and not overwrite:
        raise InferenceError(f"{output} exists already; choose another name or pass --overwrite.")
    if os.path.isdir(output):
        raise InferenceError(f"{output} is a folder.")


class _Network:
    """From files to pixels, in any thread, and from the pixels of a batch to logits."""

    def __init__(self, processor, config, logits):
        self.processor = processor
        self.config = config
        self._logits = logits  # float32 array (batch, channels, height, width), channels last in memory -> array

    def pixels(self, path):
        return prepare(self.processor, path)

    def __call__(self, arrays):
        return self._logits(np.moveaxis(np.stack(arrays), -1, 1))


def _load(folder, dtype, compile, batch_size, device):
    if is_exported(folder):
        if compile:
            raise InferenceError("An exported model is compiled by its runtime; leave --compile out.")
        exported = load_exported(folder, dtype)
        if not hasattr(exported, "image_processor"):
            raise InferenceError(f"{folder} is no classifier.")
        return _Network(exported.image_processor, exported.config, lambda pixels: exported.run(pixels)["logits"])
    check_name(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
        if not any("ForImageClassification" in name for name in config.architectures or []):
            raise InferenceError(f"{folder} is no image classifier.")
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        processor = load_image_processor(folder)
        model = _fastest(model.to(device), dtype, compile)
    except UNLOADABLE as error:
        raise InferenceError(f"{folder} is no classifier that can be loaded: {sentence(error)[:300]}") from error

    def logits(pixel_values):
        count = len(pixel_values)
        if compile and count < batch_size:  # every other shape would be compiled anew
            pixel_values = np.concatenate([pixel_values, np.repeat(pixel_values[:1], batch_size - count, axis=0)])
        with torch.inference_mode():
            output = model(torch.from_numpy(pixel_values).to(model.device, model.dtype))
        return output.logits[:count].float().cpu().numpy()

    return _Network(processor, config, logits)


def _fastest(model, dtype, compile):
    dtype = fastest_dtype(model.device) if dtype == "auto" else getattr(torch, dtype)
    if contains_hgnetv2(model):
        return optimize_for_inference(model, dtype=dtype, compile=compile)
    warn_if_emulated(dtype, model.device)
    model = model.to(dtype)
    return torch.compile(model) if compile else model


def _rows(files, network, top_k, batch_size, workers):
    """Lists of rows, a batch each. At most a few batches are decoded ahead of the network."""
    with ThreadPoolExecutor(workers) as pool:
        ahead = deque()
        for file in files:
            ahead.append((file, file_stamp(file), pool.submit(_decode, network, file)))
            if len(ahead) == batch_size * _BATCHES_AHEAD:
                yield _batch([ahead.popleft() for _ in range(batch_size)], network, top_k)
        while ahead:
            yield _batch([ahead.popleft() for _ in range(min(batch_size, len(ahead)))], network, top_k)


def _decode(network, file):
    """The pixels, or the error as text."""
    try:
        return network.pixels(file)
    except UNREADABLE as error:
        return sentence(error)


def _batch(waiting, network, top_k):
    decoded = [(file, stamp, future.result()) for file, stamp, future in waiting]
    arrays = [pixels for _, _, pixels in decoded if not isinstance(pixels, str)]
    # Sizes differ only where the image processor does not crop.
    if len({array.shape for array in arrays}) <= 1:
        logits = iter(network(arrays)) if arrays else iter(())
    else:
        logits = (network([array])[0] for array in arrays)
    return [
        {"image": file, "stamp": stamp, "labels": [], "error": pixels}
        if isinstance(pixels, str)
        else {
            "image": file,
            "stamp": stamp,
            "labels": top_labels(next(logits), network.config, top_k),
            "error": None,
        }
        for file, stamp, pixels in decoded
    ]


def _line(row):
    if row["error"] is not None:
        return printable(f"{printable_path(row['image'])}: {row['error']}")
    labels = ", ".join(f"{each['label']} {each['score']:.4f}" for each in row["labels"])
    return printable(f"{printable_path(row['image'])}: {labels}")


@contextlib.contextmanager
def _journals(output, run, processes):
    """The journals of this output and run, one per process, open at their ends; removed unless the block raises."""
    if output is None:
        yield None
        return
    key = hashlib.sha256(json.dumps([*run, processes.num_processes]).encode()).hexdigest()[:12]
    output = Path(output).absolute()
    names = [f".{output.name}.{key}.{index}.partial.jsonl" for index in range(processes.num_processes)]
    try:
        with contextlib.ExitStack() as stack:
            yield [
                stack.enter_context(open(output.with_name(name), "a+", encoding="utf-8", errors="replace"))
                for name in names
            ]
        if processes.is_main_process:
            for journal in output.parent.glob(f".{glob.escape(output.name)}.*.partial.jsonl"):
                journal.unlink()  # those of other models and options too: the output is there now
    except OSError as error:
        raise InferenceError(f"Cannot write {output}: {error.strerror or error}.") from error


def _write_table(journals, output, top_k):
    """Turns the journals into the table, in the order of the files; returns how many, and how many are unreadable."""
    columns = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("label", "score")]
    columns = ["image", *columns, "error"]
    count = unreadable = 0

    def rows():
        nonlocal count, unreadable
        for journal in journals:
            journal.seek(0)
        for journal in itertools.cycle(journals):
            if not (line := journal.readline()):
                return  # files were dealt out in turn, so the first journal to end ends all
            row = json.loads(line)
            count, unreadable = count + 1, unreadable + (row["error"] is not None)
            flat = {"image": printable_path(row["image"]), "error": row["error"] and printable(row["error"])}
            for rank, each in enumerate(row["labels"], 1):
                flat[f"label_{rank}"], flat[f"score_{rank}"] = printable(each["label"]), each["score"]
            yield {column: flat.get(column) for column in columns}

    with atomic_file(output) as partial:
        _WRITERS[output.suffix](rows(), columns, partial)
    return count, unreadable


def _write_csv(rows, columns, path):
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _write_jsonl(rows, columns, path):
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(
                json.dumps({name: value for name, value in row.items() if value is not None}, ensure_ascii=False)
                + "\n"
            )


def _write_parquet(rows, columns, path):
    import pyarrow
    import pyarrow.parquet

    types = {name: pyarrow.float32() if name.startswith("score_") else pyarrow.string() for name in columns}
    schema = pyarrow.schema(types.items())
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(itertools.islice(rows, _PARQUET_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema=schema))


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
