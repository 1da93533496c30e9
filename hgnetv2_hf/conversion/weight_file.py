"""Reads a weight file of any supported format: its content decides, never its name. Nothing in it is ever executed."""

import os
import pickle
import re
import zipfile
from typing import Optional, Union

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import ConversionError
from ..wording import sentence
from .keras_weights import SIGNATURE as _HDF5
from .keras_weights import read_keras_weights
from .nesting import Place, choose_weights, strip_prefixes
from .paddle_file import read_nested_paddle_file


MAX_NAME_LENGTH = 500
MAX_SHARING = 4  # names per byte of the file, on average: tied weights lie in it once
_ZIP = b"PK\x03\x04"
_OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the magic number of PyTorch before 1.6


def read_weights(
    path: Union[str, os.PathLike], weights: Optional[str] = None
) -> tuple[dict[str, torch.Tensor], Place]:
    """
    Reads the tensors of a Paddle (`.pdparams`), PyTorch (`.pth`, `.pt`, `.bin`), safetensors or Keras (`.h5`) file.

    Args:
        path (`str` or `os.PathLike`): the file.
        weights (`str`, *optional*): which of the sets in it (see `nesting.py`).

    Returns:
        `tuple[dict[str, torch.Tensor], Place]`: name to tensor, sharing memory with what was read; and the place
        inside the file, such as `"ema.module"`, with the names of other sets.

    Raises:
        `ConversionError`: the file is missing, truncated, of another format, claims more than it holds, or has no such
            set.
    """
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            start = file.read(16)
        size = os.path.getsize(path)
    except OSError as error:
        raise ConversionError(f"Cannot read {path}: {error.strerror or error}.") from error
    if start.startswith(_ZIP):
        _check_archive(path, size)
        tensors, taken, place = _read_torch_file(path, True, weights)
    elif start.startswith(_OLD_TORCH):
        tensors, taken, place = _read_torch_file(path, False, weights)
    elif start.startswith(_HDF5):
        tensors = read_keras_weights(path)
        taken, place = choose_weights(path, tensors, torch.Tensor, weights)
    elif _is_safetensors(start, size):
        tensors = _read_safetensors(path)
        taken, place = choose_weights(path, tensors, torch.Tensor, weights)
    else:
        tensors, taken, place = read_nested_paddle_file(path, weights)
    _check_tensors(path, tensors, size)
    return strip_prefixes(tensors, taken.prefix), place


def _is_safetensors(start, size):
    return len(start) > 8 and start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size


def _read_safetensors(path):
    try:
        return load_file(path)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ConversionError(f"{path} is a damaged safetensors file: {_short(error)}.") from error


def _check_archive(path, size):
    """PyTorch stores its records uncompressed; a compressed one could unfold to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise ConversionError(f"{path} is truncated or damaged: {_short(error)}.") from error
    if any(record.compress_type != zipfile.ZIP_STORED for record in records) or (
        sum(record.file_size for record in records) > size
    ):
        raise ConversionError(
            f"{path} is a zip archive, but not one that PyTorch writes (its records are compressed)."
        )


def _read_torch_file(path, mmap, weights):
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        raise ConversionError(
            f"{path} holds more than weights, so PyTorch refuses it (weights_only); nothing was executed: "
            f"{_short(_reason(error))}."
        ) from error
    except Exception as error:  # a damaged file fails in any of the loader's layers
        raise ConversionError(f"{path} is not a readable PyTorch file: {_short(error)}.") from error
    taken, place = choose_weights(path, content, torch.Tensor, weights)
    return _plain(path, taken.content), taken, place


def _reason(error):
    """PyTorch wraps the one sentence that matters in pages of advice."""
    lines = [line.strip() for line in str(error).splitlines() if "WeightsUnpickler error" in line or "GLOBAL" in line]
    if lines and (match := re.search(r"GLOBAL ([\w.]{1,80})", lines[0])):
        return (
            f"Python objects ({match[1]}); save its dictionary of tensors alone, with torch.save, where you trust the "
            "file"
        )
    return lines[0] if lines else error


def _plain(path, content):
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__} where a dictionary of tensors is expected.")
    for name, tensor in content.items():
        if not isinstance(name, str) or type(tensor) not in (torch.Tensor, torch.nn.Parameter):
            raise ConversionError(
                f"{path} holds something that is not a named tensor ({_short(type(tensor).__name__)})."
            )
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ConversionError(f"{path} holds {_short(name)}, which is not a plain tensor in memory.")
    return {name: tensor.detach() for name, tensor in content.items()}


def _check_tensors(path, tensors, size):
    """A view can claim any shape over a few bytes, so what is claimed is compared with what the file can hold."""
    if not tensors:
        raise ConversionError(f"{path} holds no tensors.")
    for name in tensors:
        if len(name) > MAX_NAME_LENGTH:
            raise ConversionError(f"{path} holds a tensor with a name of {len(name)} characters.")
    if sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) > MAX_SHARING * size:
        raise ConversionError(
            f"{path} claims tensors that are larger than the file itself (more than {MAX_SHARING} times)."
        )


def _short(error):
    text = sentence(error).rstrip(".")
    return text if len(text) <= 200 else text[:200] + "…"
