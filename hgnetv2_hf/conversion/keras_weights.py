"""KerasHub's ``.weights.h5`` files, read and written with h5py alone (the extra ``[keras]``)."""

import contextlib

import numpy as np
import torch

from ..errors import ConversionError
from ..wording import sentence


SIGNATURE = b"\x89HDF\r\n\x1a\n"  # the first bytes of an HDF5 file
_TRUNK = "layers/hg_net_v2_backbone/"  # where `save_weights` of a whole classifier puts its backbone
_IGNORED = "optimizer/"
_MAX_OBJECTS = 100_000
_MAX_DEPTH = 30


def read_keras_weights(path):
    """
    Args:
        path (`str`): an HDF5 file.

    Returns:
        `dict[str, torch.Tensor]`: the place inside the file to its values, in Keras's orientation; a classifier's
        backbone under the names that it has alone, and no state of an optimizer.

    Raises:
        `ConversionError`: h5py is not installed; the file is damaged; it points outside itself, or claims more than it
            holds.
    """
    h5py = _h5py(path)
    try:
        with open(path, "rb") as stream, h5py.File(stream, "r") as file:
            tensors = {name: _read(path, name, dataset) for name, dataset in _datasets(path, file, h5py)}
    except ConversionError:
        raise
    except Exception as error:  # a damaged file fails in any of the library's layers
        raise ConversionError(f"{path} is a damaged HDF5 file: {sentence(error)[:200].rstrip('.')}.") from error
    return tensors


def write_keras_weights(tensors, path):
    """
    Args:
        tensors (`dict[str, torch.Tensor]`): place to values, as [`read_keras_weights`] gives them.
        path (`str` or `os.PathLike`): the file to write.

    Raises:
        `ConversionError`: h5py is not installed.
    """
    h5py = _h5py(path)
    with h5py.File(path, "w") as file:
        for name, tensor in tensors.items():
            file.create_dataset(name, data=tensor.contiguous().numpy())


def _h5py(path):
    try:
        import h5py
    except ImportError as error:
        raise ConversionError(
            f"{path} is a weight file of Keras, which takes h5py: pip install 'hgnetv2-hf[keras]'."
        ) from error
    return h5py


def _datasets(path, file, h5py):
    """Name and dataset of everything that holds values. No link that leads elsewhere is followed."""
    waiting, seen = [("", file, 0)], 0
    while waiting:
        prefix, group, depth = waiting.pop()
        for name in group:
            seen += 1
            if seen > _MAX_OBJECTS or depth > _MAX_DEPTH:
                raise ConversionError(f"{path} holds more groups inside each other than Keras writes.")
            place = prefix + name
            if place.startswith(_IGNORED):
                continue
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise ConversionError(f"{path} holds a link to another place ({place[:100]}); Keras writes none.")
            child = group[name]
            if isinstance(child, h5py.Group):
                waiting.append((place + "/", child, depth + 1))
            elif isinstance(child, h5py.Dataset):
                yield place.removeprefix(_TRUNK), child
            else:
                raise ConversionError(f"{path} holds {place[:100]}, which is neither a group nor values.")


def _read(path, name, dataset):
    """The values, if they lie in this file as they are: in no other, not compressed, and as many as it claims."""
    properties = dataset.id.get_create_plist()
    if dataset.is_virtual or properties.get_external_count():
        raise ConversionError(f"{path} keeps {name[:100]} in another file; Keras keeps all in one.")
    if properties.get_nfilters():
        raise ConversionError(f"{path} holds {name[:100]} compressed; Keras writes it as it is.")
    if dataset.shape is None or dataset.dtype.kind not in "fiuV" or dataset.dtype.hasobject:
        raise ConversionError(f"{path} holds {name[:100]}, which is not a table of numbers.")
    if dataset.id.get_storage_size() != dataset.size * dataset.dtype.itemsize:
        raise ConversionError(f"{path} claims more values for {name[:100]} than it holds.")
    values = dataset[()]
    if dataset.dtype.itemsize == 2 and dataset.dtype.kind in "Vu" and dataset.attrs.get("dtype") == "bfloat16":
        return torch.from_numpy(np.atleast_1d(values).view("int16")).view(torch.bfloat16).reshape(dataset.shape)
    with contextlib.suppress(TypeError):
        return torch.from_numpy(np.array(values, dtype=dataset.dtype.newbyteorder("=")))
    raise ConversionError(f"{path} holds {name[:100]} as {dataset.dtype}, which is no type of weights.")
