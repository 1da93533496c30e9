"""Pooled features of many images, as a folder of Parquet files: in order, in constant memory, resumable."""

import importlib.util
import json
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel

from ..backbone import check_name, load_image_processor
from ..errors import InferenceError, raised_as
from ..files.images import printable_path
from ..files.parts import ROWS_PER_PART, TABLES, check_outside, claimed_output, fill, growing, put
from ..files.sources import Sources
from ..files.storage import resolved
from ..model.remote_code import NETWORK_TYPES
from ..wording import counted, printable, sentence
from .cluster import check_engine, computed, default_workers
from .optimize import optimize_for_inference
from .precision import fastest_dtype
from .predictors import UNLOADABLE, decoded_with_digest, first_error, refuse_inside_model, run_key
from .runtime import is_exported, load_exported


_ABOUT = "_embeddings.json"  # readers of a folder of Parquet leave out what begins so


@raised_as(InferenceError)
def embed(
    paths, model, output_dir, dtype="float32", stored_dtype="float32", batch_size=16, workers=None, device=None,
    overwrite=False, show=print, engine="local", image_column=None,
):  # fmt: skip
    """
    Writes the pooled features of image files: the mean of the last stage's map, a vector per image.

    Args:
        paths (`list[str]`): as in [`classify`].
        model (`str` or `os.PathLike`): the folder or repository of a classifier or backbone of HGNetV2, or an exported
            backbone.
        output_dir (`str` or `os.PathLike`): the folder to write, or its URL; complete or absent. It gets
            `part-00000.parquet`, …, each with up to 4096 rows in the order of the images: `image` (its name), `sha256`
            (of the encoded image), `features` and `error`; and `_embeddings.json`, which says what made them.
        dtype (`str`, defaults to `"float32"`): or `"bfloat16"`, `"float16"`, `"auto"` (bfloat16 where it is native,
            else float32): the precision of the network.
        stored_dtype (`"float32"` or `"float16"`, defaults to `"float32"`): of the features in the files.
        batch_size (`int`, defaults to 16): images per call of the network.
        workers (`int`, *optional*): threads that decode and resize; by default one per core.
        device (`str`, *optional*): such as `"cpu"` or `"cuda"`; by default the GPU, if there is one.
        overwrite (`bool`, defaults to `False`): replace an existing folder of this command.
        show (callable, defaults to `print`): receives the summary.
        engine, image_column: as in [`classify`].

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
    output_dir = resolved(output_dir)
    refuse_inside_model(output_dir, model)
    if output_dir.endswith(TABLES):
        raise InferenceError(
            f"Features are written as a folder of Parquet files: leave the ending of {output_dir} out."
        )
    check_engine(engine, device=device, workers=workers)
    with claimed_output(output_dir, [*paths, model], overwrite, _ABOUT) as output:
        sources = Sources(paths, image_column)
        check_outside(sources, output_dir)
        network = load_embedder(model, dtype, "cpu" if engine == "ray" and device is None else device)
        about = {"model": os.fspath(model), "features": "mean of the last stage's map", "width": network.width}
        about |= {"dtype": network.dtype, "stored_dtype": stored_dtype, "rows_per_file": ROWS_PER_PART}
        rows = partial(
            embedded_rows, network=network, batch_size=batch_size, workers=workers or default_workers(sources),
            engine=engine, model=model, dtype=network.dtype,
        )  # fmt: skip
        table = partial(_table, width=network.width, dtype=stored_dtype)
        with growing(output, run_key(model, about), _ABOUT) as folder:
            start = time.perf_counter()
            with tqdm(total=len(sources), desc="embed", unit="image", mininterval=0.5) as progress:
                resumed, unreadable, error = fill(folder, sources, rows, table, progress)
            speed = (len(sources) - resumed) / max(time.perf_counter() - start, 1e-9)
            about |= {"paths": list(map(printable_path, paths)), "images": len(sources), "unreadable": unreadable}
            put(folder, _ABOUT, json.dumps(about, indent=2).encode())
    total, width = len(sources), network.width
    show(
        f"features of {counted(total - unreadable, 'image')}, {width} numbers each -> {printable_path(output_dir)}"
        + (f"; {counted(unreadable, 'image')} could not be read{first_error(error)}" if unreadable else "")
        + (f"; continued after {counted(resumed, 'row')} of an interrupted run" if resumed else "")
    )
    counts = {"images": total, "unreadable": unreadable, "width": width, "resumed": resumed}
    return {**counts, "images_per_second": speed}


class Embedder(NamedTuple):
    """A loaded network."""

    processor: Any  # its image processor
    features: Callable  # a float32 array (batch, channels, height, width) -> pooled features (batch, width)
    width: int
    dtype: str  # that is computed in


def load_embedder(model, dtype="float32", device=None):
    """
    Returns:
        [`Embedder`]

    Raises:
        `InferenceError`: it is no classifier or backbone of HGNetV2, or cannot be loaded.
    """
    name = printable_path(model)
    try:
        if is_exported(model):
            return _load_exported(model, name, dtype, device)
        check_name(model)
        config = AutoConfig.from_pretrained(model)
        if config.model_type not in NETWORK_TYPES:
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

    return Embedder(processor, features, config.stage_out_channels[-1], str(network.dtype).removeprefix("torch."))


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

    return Embedder(load_image_processor(folder), features, config.stage_out_channels[-1], exported.dtype)


def embedded_rows(founds, network, batch_size, workers, engine, model, dtype):
    """
    Args:
        founds (iterable of [`Found`])
        network: of [`load_embedder`]; `model` and `dtype` are what it was loaded with, for `engine="ray"`.
        batch_size, workers, engine: as in [`embed`].

    Yields:
        `dict`: `image`, `sha256`, `features` (float32 array `(width,)`) and `error`, in the order of the images; one
            of the last two is `None`.
    """
    staged = computed(
        engine, founds, partial(decoded_with_digest, network.processor), network, _compute, model,
        partial(load_embedder, dtype=dtype), batch_size, workers,
    )  # fmt: skip
    for found, error, answer in staged:
        digest, vector = answer or (None, None)
        yield {"image": found.name, "sha256": digest, "features": vector, "error": error}


def _compute(network, decoded):
    """Digest and features of each."""
    if len({pixels.shape for pixels, _ in decoded}) > 1:
        return [_compute(network, [each])[0] for each in decoded]
    vectors = network.features(np.moveaxis(np.stack([pixels for pixels, _ in decoded]), -1, 1))
    if not np.isfinite(vectors).all():
        raise InferenceError("The network's features are not finite; try --dtype float32.")
    return [(digest, vector) for (_, digest), vector in zip(decoded, vectors)]


def _table(rows, width, dtype):
    import pyarrow

    stored = np.stack([np.zeros(width) if row["features"] is None else row["features"] for row in rows]).astype(dtype)
    if not np.isfinite(stored).all():
        raise InferenceError("A feature is too large for float16; store float32.")
    missing = pyarrow.array([row["features"] is None for row in rows])
    flat = pyarrow.array(stored.reshape(-1))
    return pyarrow.table(
        {
            "image": pyarrow.array([printable_path(row["image"]) for row in rows], pyarrow.string()),
            "sha256": pyarrow.array([row["sha256"] for row in rows], pyarrow.string()),
            "features": pyarrow.FixedSizeListArray.from_arrays(flat, width, mask=missing),
            "error": pyarrow.array([row["error"] and printable(row["error"]) for row in rows], pyarrow.string()),
        }
    )
