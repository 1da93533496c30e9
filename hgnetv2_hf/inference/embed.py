"""Pooled features of many image files, as a folder of Parquet files: in order, in constant memory, resumable.

The files grow in a hidden folder beside the output, which takes the output's name when the last one is there. An
interrupted run leaves it, and the next run with the same model and options continues after its last whole file.
"""

import hashlib
import importlib.util
import itertools
import json
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel

from ..backbone import check_name, load_image_processor
from ..errors import InferenceError, raised_as
from ..files.atomic import claim, resumable_folder
from ..files.images import UNREADABLE, file_stamp, find_images, folder_stamp, printable_path
from ..wording import counted, printable, sentence
from .optimize import optimize_for_inference
from .precision import fastest_dtype
from .predictors import UNLOADABLE, prepare
from .runtime import is_exported, load_exported
from .stages import in_stages


ROWS_PER_FILE = 4096
_ABOUT = "_embeddings.json"  # readers of a folder of Parquet leave out what begins so
_JOURNAL = ".journal.jsonl"  # per file a line that changes with the images it was made from


@raised_as(InferenceError)
def embed(
    paths, model, output_dir, dtype="float32", stored_dtype="float32", batch_size=16, workers=None, device=None,
    overwrite=False, show=print,
):  # fmt: skip
    """
    Writes the pooled features of image files: the mean of the last stage's map, a vector per image.

    Args:
        paths (`list[str]`): files, folders (with those inside) or globs.
        model (`str` or `os.PathLike`): the folder or repository of a classifier or backbone of HGNetV2, or an exported
            backbone.
        output_dir (`str` or `os.PathLike`): the folder to write; complete or absent. It gets `part-00000.parquet`, …,
            each with up to 4096 rows in the order of the images: `image` (its name), `sha256` (of the file's bytes),
            `features` and `error`; and `_embeddings.json`, which says what made them.
        dtype (`str`, defaults to `"float32"`): or `"bfloat16"`, `"float16"`, `"auto"` (bfloat16 where it is native,
            else float32): the precision of the network.
        stored_dtype (`"float32"` or `"float16"`, defaults to `"float32"`): of the features in the files.
        batch_size (`int`, defaults to 16): images per call of the network.
        workers (`int`, *optional*): threads that decode and resize; by default one per core.
        device (`str`, *optional*): such as `"cpu"` or `"cuda"`; by default the GPU, if there is one.
        overwrite (`bool`, defaults to `False`): replace an existing folder of this command.
        show (callable, defaults to `print`): receives the summary.

    Returns:
        `dict`: `images`, `unreadable`, `width` (of a vector), `resumed` (rows that an earlier, interrupted run had
            left), and `images_per_second` of this run, the loading of the model apart.

    Raises:
        `InferenceError`: no images, no such model, or the folder cannot be written. An image that cannot be read is no
            error: its row says why.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise InferenceError(f"Unsupported {name} {value}: expected a positive whole number.")
    if dtype not in ("float32", "bfloat16", "float16", "auto"):
        raise InferenceError(f"Unsupported dtype {dtype}: float32, bfloat16, float16 or auto.")
    if stored_dtype not in ("float32", "float16"):
        raise InferenceError(f"Features are stored in float32 or float16, not {stored_dtype}.")
    if importlib.util.find_spec("pyarrow") is None:
        raise InferenceError('Parquet needs pyarrow: pip install "hgnetv2-hf[parquet]".')
    if os.path.isdir(model) and Path(output_dir).resolve().is_relative_to(Path(model).resolve()):
        raise InferenceError(f"{output_dir} lies in the model's folder; choose another place.")
    with claim(output_dir, [*paths, model], overwrite, _ABOUT):
        total = sum(1 for _ in find_images(paths))
        processor, features, width, computed = load_embedder(model, dtype, device)
        about = {"model": os.fspath(model), "features": "mean of the last stage's map", "width": width}
        about |= {"dtype": computed, "stored_dtype": stored_dtype, "rows_per_file": ROWS_PER_FILE}
        with resumable_folder(output_dir, _key(about, model)) as folder:
            with open(folder / _JOURNAL, "a+", encoding="utf-8") as journal:
                done = _resume(journal, find_images(paths))
                for path in folder.glob("part-*"):
                    if path.name not in [_name(number) for number in range(done)]:
                        path.unlink()
                resumed = min(done * ROWS_PER_FILE, total)
                remaining = itertools.islice(find_images(paths), resumed, None)
                start = time.perf_counter()
                with tqdm(total=total, initial=resumed, desc="embed", unit="image", mininterval=0.5) as progress:
                    rows = embedded_rows(remaining, processor, features, batch_size, workers, progress.update)
                    for number in itertools.count(done):
                        if not (chunk := list(itertools.islice(rows, ROWS_PER_FILE))):
                            break
                        _write(chunk, width, stored_dtype, folder / _name(number))
                        journal.write(json.dumps(_digest(row["image"] for row in chunk)) + "\n")
                        journal.flush()
                speed = (total - resumed) / max(time.perf_counter() - start, 1e-9)
            unreadable = _count_errors(folder)
            (folder / _JOURNAL).unlink()
            (folder / _ABOUT).write_text(json.dumps({**about, "images": total, "unreadable": unreadable}, indent=2))
    show(
        f"features of {counted(total - unreadable, 'image')}, {width} numbers each -> {printable_path(output_dir)}"
        + (f"; {counted(unreadable, 'image')} could not be read" if unreadable else "")
        + (f"; continued after {counted(resumed, 'row')} of an interrupted run" if resumed else "")
    )
    counts = {"images": total, "unreadable": unreadable, "width": width, "resumed": resumed}
    return {**counts, "images_per_second": speed}


def load_embedder(model, dtype="float32", device=None):
    """
    Returns:
        `tuple`: the image processor; a function from a float32 array `(batch, channels, height, width)` to the pooled
            features `(batch, width)`; the width; and the precision that is computed in.

    Raises:
        `InferenceError`: it is no classifier or backbone of HGNetV2, or cannot be loaded.
    """
    name = printable_path(model)
    try:
        if is_exported(model):
            return _load_exported(model, name, dtype, device)
        check_name(model)
        config = AutoConfig.from_pretrained(model)
        if config.model_type not in ("hgnet_v2", "pp_hgnet_v2"):
            raise InferenceError(f"{name} holds a {config.model_type} model, no classifier or backbone of HGNetV2.")
        network, found = AutoModel.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
        if lacking := sorted(each for each in found["missing_keys"] if not each.endswith("num_batches_tracked")):
            raise ValueError(f"its files lack {lacking[0]}")
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        dtype = fastest_dtype(device) if dtype == "auto" else getattr(torch, dtype)
        network = optimize_for_inference(network.eval().to(device), dtype=dtype)
        processor = load_image_processor(model)
    except (*UNLOADABLE, RuntimeError, AssertionError) as error:  # the last two: no such device
        raise InferenceError(f"{name} cannot be loaded: {sentence(error)[:300]}") from error

    def features(pixel_values):
        with torch.inference_mode():
            output = network(torch.from_numpy(pixel_values).to(network.device, network.dtype))
        return output.pooler_output.float().cpu().numpy()

    return processor, features, config.stage_out_channels[-1], str(network.dtype).removeprefix("torch.")


def _load_exported(folder, name, dtype, device):
    if device not in (None, "cpu"):
        raise InferenceError(f"{name} is an exported folder, which runs on the CPU; leave --device out.")
    exported = load_exported(folder, dtype)
    if exported.names[0] in ("logits", "labels"):
        raise InferenceError(f"{name} gives {exported.names[0]}, no features; pass the model's own folder.")
    config = AutoConfig.from_pretrained(folder)
    last = f"stage{len(config.stage_out_channels)}"
    if last not in exported.names:
        raise InferenceError(f"{name} gives {', '.join(exported.names)}, and not {last}; export the backbone with it.")

    def features(pixel_values):
        return exported.run(pixel_values)[last].mean((2, 3))

    return load_image_processor(folder), features, config.stage_out_channels[-1], exported.dtype


def embedded_rows(files, processor, features, batch_size=16, workers=None, done=lambda: None):
    """
    Args:
        files (iterable of `str`)
        processor, features: of [`load_embedder`].
        batch_size, workers: as in [`embed`].
        done (callable, *optional*): called after each row.

    Yields:
        `dict`: `image`, `sha256`, `features` (float32 array `(width,)`) and `error`, in the order of the files; one of
            the last two is `None`.
    """
    staged = in_stages(
        files, partial(_decode, processor), partial(_compute, features),
        lambda file, decoded, vector: lambda: (decoded[1], vector), batch_size, workers or os.cpu_count() or 1,
    )  # fmt: skip
    for file, error, row in staged:
        digest, vector = row or (None, None)
        yield {"image": file, "sha256": digest, "features": vector, "error": error}
        done()


def _decode(processor, file):
    """The pixels and the file's digest, or the error as text."""
    try:
        content = Path(file).read_bytes()
        return prepare(processor, file), hashlib.sha256(content).hexdigest()
    except UNREADABLE as error:
        return sentence(error)


def _compute(features, decoded):
    arrays = [pixels for pixels, _ in decoded]
    if len({array.shape for array in arrays}) > 1:
        return [_compute(features, [each])[0] for each in decoded]
    vectors = features(np.moveaxis(np.stack(arrays), -1, 1))
    if not np.isfinite(vectors).all():
        raise InferenceError("The network's features are not finite; try --dtype float32.")
    return list(vectors)


def _write(rows, width, dtype, path):
    import pyarrow
    import pyarrow.parquet

    stored = np.stack([np.zeros(width) if row["features"] is None else row["features"] for row in rows]).astype(dtype)
    if not np.isfinite(stored).all():
        raise InferenceError("A feature is too large for float16; store float32.")
    missing = pyarrow.array([row["features"] is None for row in rows])
    flat = pyarrow.array(stored.reshape(-1))
    columns = {
        "image": pyarrow.array([printable_path(row["image"]) for row in rows], pyarrow.string()),
        "sha256": pyarrow.array([row["sha256"] for row in rows], pyarrow.string()),
        "features": pyarrow.FixedSizeListArray.from_arrays(flat, width, mask=missing),
        "error": pyarrow.array([row["error"] and printable(row["error"]) for row in rows], pyarrow.string()),
    }
    partial_file = path.with_suffix(".partial")
    pyarrow.parquet.write_table(pyarrow.table(columns), partial_file)
    partial_file.rename(path)


def _resume(journal, files):
    """How many files of the folder belong to these images, unchanged; cuts the journal off there."""
    journal.seek(0)
    done, end = 0, 0
    while (line := journal.readline()).endswith("\n"):
        chunk = list(itertools.islice(files, ROWS_PER_FILE))
        if not chunk or line != json.dumps(_digest(chunk)) + "\n":
            break
        done, end = done + 1, journal.tell()
    journal.seek(end)
    journal.truncate()
    return done


def _digest(files):
    rows = [[os.fsencode(file).hex(), file_stamp(file)] for file in files]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _name(number):
    return f"part-{number:05}.parquet"


def _count_errors(folder):
    import pyarrow.parquet

    columns = (pyarrow.parquet.read_table(path, columns=["error"]) for path in sorted(folder.glob("part-*.parquet")))
    return sum(len(table) - table["error"].null_count for table in columns)


def _key(about, model):
    """Changes with the model and what else the files depend on."""
    run = [about, os.path.abspath(model), folder_stamp(model)]
    return hashlib.sha256(json.dumps(run).encode()).hexdigest()[:12]
