"""Labels for many images: read in parallel with the network, in order, in constant memory, resumable.

Rows of a table are first appended to a journal beside the output, one JSON line each, and become the table when the
last one is there. An interrupted run leaves the journal, and the next run with the same model and options continues
after its last whole line. A folder of Parquet files grows part by part, see `files.parts`.
"""

import contextlib
import csv
import glob
import importlib.util
import itertools
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModelForImageClassification

from ..backbone import check_name, load_image_processor
from ..errors import InferenceError, raised_as
from ..files.atomic import atomic_file, lock
from ..files.images import printable_path
from ..files.journal import resume
from ..files.parts import ROWS_PER_PART, TABLES, check_outside, claimed_output, fill, growing, put
from ..files.sources import Sources
from ..files.storage import is_url, resolved
from ..structure import contains_hgnetv2
from ..wording import counted, printable, sentence
from .cluster import check_engine, computed, default_workers
from .optimize import optimize_for_inference
from .precision import fastest_dtype, warn_if_emulated
from .predictors import UNLOADABLE, decoded, first_error, refuse_inside_model, run_key
from .runtime import is_exported, load_exported, top_labels


_ABOUT = "_labels.json"  # readers of a folder of Parquet leave out what begins so
_PARQUET_ROWS = 10_000


@raised_as(InferenceError)
def classify(
    paths, model, output=None, top_k=5, batch_size=16, dtype="float32", compile=False, workers=None, overwrite=False,
    show=print, engine="local", image_column=None, threshold=0.0,
):  # fmt: skip
    """
    Classifies images and writes one row per image, in their order.

    Args:
        paths (`list[str]`): files, folders (with those inside) or globs, of this machine or of a URL (`s3://`, `gs://`,
            `hf://`, …); Parquet files and WebDataset's tars; see [`Sources`].
        model (`str` or `os.PathLike`): a classifier's folder or repository, or a folder of `hgnetv2-hf export`.
        output (`str`, *optional*): a `.csv`, `.jsonl` or `.parquet` file, complete or absent; or a folder of this
            machine or of a URL, which gets `part-00000.parquet`, … with 4096 rows each and `_labels.json`, which says
            what made them; by default rows are printed. A file whose name is no UTF-8 appears as its `file://` URI
            (see `files.images.printable_path`).
        top_k (`int`, defaults to 5): labels per image.
        batch_size (`int`, defaults to 16): images per call of the network.
        dtype (`str`, defaults to `"float32"`): or `"bfloat16"`, `"float16"`, `"auto"` (bfloat16 where it is native,
            else float32): the precision of the network.
        compile (`bool`, defaults to `False`): compile the network first; worth it for thousands of images.
        workers (`int`, *optional*): threads that decode and resize; by default one per core.
        overwrite (`bool`, defaults to `False`): replace an existing output file.
        show (callable, defaults to `print`): receives the summary.
        engine (`"local"` or `"ray"`, defaults to `"local"`): this machine, or a cluster; see [`in_cluster`].
        image_column (`str`, *optional*): of Parquet files; by default the only one that holds images.
        threshold (`float`, defaults to 0.0): leave labels out whose score is below it. Scores are the softmax over
            all labels, and sigmoids of multi-label classifiers.

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
    if not 0 <= threshold < 1:
        raise InferenceError(f"Unsupported threshold {threshold}: expected a score of at least 0 and below 1.")
    check_engine(engine, compile=compile, workers=workers)
    if output is not None:
        output = resolved(output)
        refuse_inside_model(output, model)
    in_parts = output is not None and _is_folder(output)
    claimed = claimed_output(output, [*paths, model], overwrite, _ABOUT) if in_parts else _claimed(output, overwrite)
    with claimed as folder:
        sources = Sources(paths, image_column)
        if output is not None:
            check_outside(sources, output)
        network = _load(model, dtype, compile, batch_size, "cpu" if engine == "ray" else None)
        rows = partial(
            _rows, engine=engine, network=network, model=model, dtype=dtype, top_k=top_k, threshold=threshold,
            batch_size=batch_size, workers=workers or default_workers(sources),
        )  # fmt: skip
        if in_parts:
            counts, error = _write_parts(folder, sources, rows, paths, model, dtype, top_k, threshold)
        else:
            counts, error = _write_rows(output, sources, rows, model, dtype, top_k, threshold)
    resumed = counts["resumed"]
    if output is not None:
        show(
            f"{counted(counts['images'], 'image')} -> {printable_path(output)}"
            + (f", {counts['unreadable']} of them unreadable{first_error(error)}" if counts["unreadable"] else "")
            + (f"; continued after {counted(resumed, 'row')} of an interrupted run" if resumed else "")
        )
    return counts


@contextlib.contextmanager
def _claimed(output, overwrite):
    """The lock on a table."""
    _check_output(output, overwrite)
    if output is None:
        yield
        return
    with lock(f"{output}.journal", output):
        _check_output(output, overwrite)  # another run may have come and gone
        yield


def _progress(total, resumed=0):
    return tqdm(total=total, initial=resumed, desc="classify", unit="image", mininterval=0.5)


def _write_rows(output, sources, rows, model, dtype, top_k, threshold):
    """Prints the rows, or writes them in a table."""
    total, unreadable, resumed, error = len(sources), 0, 0, None
    with _journal(output, run_key(model, top_k, dtype, threshold)) as journal:
        if journal:
            resumed = resume(journal, ((found.name, found.stamp) for found in sources))
        start = time.perf_counter()
        with _progress(total, resumed) as progress:
            for row in rows(itertools.islice(sources, resumed, None)):
                error = error or row["error"]
                if journal:
                    journal.write(json.dumps(row) + "\n")
                    journal.flush()
                else:
                    unreadable += row["error"] is not None
                    progress.write(_line(row))
                progress.update()
        speed = (total - resumed) / (time.perf_counter() - start)
        if journal:
            unreadable = _write_table(journal, Path(output), top_k)
    counts = {"images": total, "unreadable": unreadable, "resumed": resumed, "images_per_second": speed}
    return counts, error


def _write_parts(output, sources, rows, paths, model, dtype, top_k, threshold):
    import pyarrow

    columns = _columns(top_k)
    about = {"model": os.fspath(model), "dtype": dtype, "top_k": top_k, "threshold": threshold}

    def table(made):
        return pyarrow.Table.from_pylist([_flat(row, columns) for row in made], schema=_schema(columns))

    with growing(output, run_key(model, about), _ABOUT) as folder, _progress(len(sources)) as progress:
        start = time.perf_counter()
        resumed, unreadable, error = fill(folder, sources, rows, table, progress)
        speed = (len(sources) - resumed) / max(time.perf_counter() - start, 1e-9)
        about |= {"paths": list(map(printable_path, paths)), "rows_per_file": ROWS_PER_PART}
        about |= {"images": len(sources), "unreadable": unreadable}
        put(folder, _ABOUT, json.dumps(about, indent=2).encode())
    counts = {"images": len(sources), "unreadable": unreadable, "resumed": resumed, "images_per_second": speed}
    return counts, error


def _is_folder(output):
    """A name with the ending of a table is one; any other ending is a mistake, unless a slash follows it."""
    if output.endswith(TABLES):
        if is_url(output):
            raise InferenceError(f"{output} is a table in a storage, where folders are written: leave its ending out.")
        return False
    if is_url(output) or output.endswith(("/", os.sep)) or os.path.isdir(output) or not Path(output).suffix:
        if importlib.util.find_spec("pyarrow") is None:
            raise InferenceError('Parquet needs pyarrow: pip install "hgnetv2-hf[parquet]".')
        return True
    raise InferenceError(
        f"Unsupported table {output}: expected a name that ends with {', '.join(TABLES)}, or a folder, whose name has "
        "no ending or a slash at the end."
    )


def _check_output(output, overwrite):
    if output is None:
        return
    if str(output).endswith(".parquet") and importlib.util.find_spec("pyarrow") is None:
        raise InferenceError('Parquet needs pyarrow: pip install "hgnetv2-hf[parquet]".')
    if os.path.lexists(output) and not overwrite:
        raise InferenceError(f"{output} exists already; choose another name or pass --overwrite.")
    if os.path.isdir(output):
        raise InferenceError(f"{output} is a folder.")


class _Network(NamedTuple):
    processor: Any
    config: Any
    logits: Callable  # float32 array (batch, channels, height, width), channels last in memory -> array


def _load(folder, dtype, compile, batch_size, device=None):
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
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
            raise InferenceError(f"{folder} is no image classifier (for a detector, use detect).")
        model = AutoModelForImageClassification.from_pretrained(folder, dtype=torch.float32).eval()
        processor = load_image_processor(folder)
        model = _fastest(model.to(device), dtype, compile)
    except UNLOADABLE as error:
        raise InferenceError(f"{folder} is no classifier that can be loaded: {sentence(error)[:300]}") from error
    means, channels = getattr(processor, "image_mean", None), getattr(config, "num_channels", None)
    if isinstance(means, (list, tuple)) and channels not in (None, len(means)):
        raise InferenceError(
            f"{folder} takes images of {counted(channels, 'channel')}, and its processor prepares {len(means)}; "
            "correct image_mean and image_std in preprocessor_config.json."
        )

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


def _rows(founds, engine, network, model, dtype, top_k, threshold, batch_size, workers):
    """A row per image, in order."""
    staged = computed(
        engine, founds, partial(decoded, network.processor), network,
        partial(_labels, top_k=top_k, threshold=threshold), model,
        partial(_load, dtype=dtype, compile=False, batch_size=batch_size), batch_size, workers,
    )  # fmt: skip
    for found, error, labels in staged:
        yield {"image": found.name, "stamp": found.stamp, "labels": labels or [], "error": error}


def _labels(network, arrays, top_k, threshold):
    """The best labels of each image that reach the threshold; sizes differ only where nothing crops or scales."""
    if len({array.shape for array in arrays}) > 1:
        return [_labels(network, [array], top_k, threshold)[0] for array in arrays]
    logits = network.logits(np.moveaxis(np.stack(arrays), -1, 1))
    if not np.isfinite(logits).all():
        raise InferenceError("The network's logits are not finite; try --dtype float32.")
    best = [top_labels(each, network.config, top_k) for each in logits]
    return [[label for label in each if label["score"] >= threshold] for each in best]


def _line(row):
    if row["error"] is not None:
        return printable(f"{printable_path(row['image'])}: {row['error']}")
    labels = ", ".join(f"{each['label']} {each['score']:.4f}" for each in row["labels"])
    return printable(f"{printable_path(row['image'])}: {labels}")


@contextlib.contextmanager
def _journal(output, key):
    """The journal of this output and run, open at its end; removed unless the block raises."""
    if output is None:
        yield None
        return
    output = Path(output).absolute()
    name = output.with_name(f".{output.name}.{key}.partial.jsonl")
    try:
        with open(name, "a+", encoding="utf-8", errors="replace") as journal:
            yield journal
        for each in output.parent.glob(f".{glob.escape(output.name)}.*.partial.jsonl"):
            each.unlink()  # those of other models and options too: the output is there now
    except OSError as error:
        raise InferenceError(f"Cannot write {output}: {error.strerror or error}.") from error


def _write_table(journal, output, top_k):
    """Turns the journal into the table; returns how many images are unreadable."""
    columns, unreadable = _columns(top_k), 0

    def rows():
        nonlocal unreadable
        journal.seek(0)
        for line in journal:
            row = json.loads(line)
            unreadable += row["error"] is not None
            yield _flat(row, columns)

    with atomic_file(output) as partial:
        _WRITERS[output.suffix](rows(), columns, partial)
    return unreadable


def _columns(top_k):
    labels = [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("label", "score")]
    return ["image", *labels, "error"]


def _flat(row, columns):
    flat = {"image": printable_path(row["image"]), "error": row["error"] and printable(row["error"])}
    for rank, each in enumerate(row["labels"], 1):
        flat[f"label_{rank}"], flat[f"score_{rank}"] = printable(each["label"]), each["score"]
    return {column: flat.get(column) for column in columns}


def _schema(columns):
    import pyarrow

    return pyarrow.schema(
        {name: pyarrow.float32() if name.startswith("score_") else pyarrow.string() for name in columns}.items()
    )


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

    schema = _schema(columns)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(itertools.islice(rows, _PARQUET_ROWS)):
            writer.write_table(pyarrow.Table.from_pylist(chunk, schema=schema))


_WRITERS = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
