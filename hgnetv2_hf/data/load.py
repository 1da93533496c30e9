"""One call for all data: folders, data sets of the ``datasets`` library, and the digits that need no file."""

import os
from collections.abc import Sequence
from pathlib import Path

import PIL.Image

from ..errors import DataError
from .checking import check_classes, check_names
from .class_folders import read_class_folders
from .datasets_library import holds_datasets_files, read_dataset
from .digits import load_split
from .splits import Data, Split, hold_out


def load_data(
    source, validation_fraction=0.1, seed=0, needs_labels=True, image_column=None, label_column=None, config_name=None,
    streaming=False, class_folders=None,
):  # fmt: skip
    """
    Args:
        source (`str`): an image folder, the name or folder of a data set of the `datasets` library, or `"digits"`.
        validation_fraction (`float`, defaults to 0.1): held out, class by class, where the data have no validation
            part.
        seed (`int`): decides what is held out.
        needs_labels (`bool`, defaults to `True`): `False` takes images without classes too.
        image_column, label_column, config_name (`str`, *optional*): of a data set of the `datasets` library.
        streaming (`bool`, defaults to `False`): read such a data set as a stream, shuffled in a buffer.
        class_folders (`"outer"` or `"inner"`, *optional*): which folders are the classes where folders lie in folders
            (`animals/cat`, `plants/rose`).

    Returns:
        [`Data`]

    Raises:
        `DataError`: there are no such data, a class has no image, there is one class only, or the folders can be read
        in
            two ways.
    """
    if source == "digits":
        data = _digits()
    elif os.path.isdir(source) and not holds_datasets_files(source):
        data = read_class_folders(Path(source), needs_labels, class_folders)
    elif not os.path.exists(source) and is_path(source):
        raise DataError(
            f"There is no folder {source}; expected an image folder, a data set of the `datasets` library, or digits."
        )
    else:
        data = read_dataset(source, image_column, label_column, config_name, streaming, seed)
        if streaming:
            check_names(data)
            return data
    if streaming:
        raise DataError(f"{source} is no data set of the `datasets` library, and only those are streamed.")
    if data.validation is None and validation_fraction:
        data = hold_out(data, validation_fraction, seed)
    check_classes(data)
    return data


def is_path(name):
    """Whether a name cannot be a data set's on the Hub, which is called `name` or `user/name`."""
    return name.startswith(("/", ".", "~")) or name.endswith("/") or name.count("/") > 1


class _Scans(Sequence):
    def __init__(self, scans):
        self.scans = scans

    def __len__(self):
        return len(self.scans)

    def __getitem__(self, index):
        return PIL.Image.fromarray(self.scans[index]).convert("RGB")

    def name(self, index):
        return f"image {index}"

    key = name


def _digits():
    try:
        train, held_out = load_split()
    except ImportError as error:
        raise DataError(
            'The digits come with scikit-learn: pip install "hgnetv2-hf[train]", or scikit-learn.'
        ) from error
    splits = [Split(_Scans(scans), labels.tolist()) for scans, labels in (train, held_out)]
    return Data("scikit-learn's digits", *splits, [str(digit) for digit in range(10)], "a third, stratified, seed 0")
