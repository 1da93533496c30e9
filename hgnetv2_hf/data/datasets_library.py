"""Data sets of Hugging Face's ``datasets`` library, by name or folder, as a whole or as streams."""

import os
from collections.abc import Sequence

from ..errors import DataError
from ..wording import sentence
from .decoding import decode
from .splits import VALIDATION_NAMES, Data, Split
from .streams import Stream


_FILES = (".parquet", ".arrow", "dataset_dict.json", "state.json", ".py")
_SAVED = ("dataset_dict.json", "state.json")  # by `save_to_disk`
_SHUFFLE_BUFFER = 10_000  # images of a stream


def holds_datasets_files(folder):
    """Whether a folder is one of the library's, and no image folder."""
    return any(name.endswith(_FILES) for name in os.listdir(folder))


class Column(Sequence):
    """The images of a data set of the ``datasets`` library, whose own decoding is off."""

    def __init__(self, dataset, column):
        self.dataset, self.column = dataset, column

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        return decode(self.dataset[int(index)][self.column])

    def name(self, index):
        return self.dataset[int(index)][self.column].get("path") or f"image {index}"

    def key(self, index):
        return f"{index} of {len(self)}"  # its path could only be had with its bytes


def load(source, config_name=None, streaming=False):
    """
    Args:
        source (`str`): a name or a folder, also one that `save_to_disk` wrote.
        config_name (`str`, *optional*): of the data set.
        streaming (`bool`, defaults to `False`): streams instead of splits.

    Returns:
        `datasets.DatasetDict`, or `datasets.IterableDatasetDict`.

    Raises:
        `DataError`: the library is missing, or it has no such data set.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f'{source} is no image folder, and data sets by name need the library: pip install "hgnetv2-hf[train]".'
        ) from error
    try:
        if not streaming and any(os.path.isfile(os.path.join(source, name)) for name in _SAVED):
            saved = datasets.load_from_disk(str(source))
            return saved if isinstance(saved, dict) else datasets.DatasetDict({"train": saved})
        return datasets.load_dataset(str(source), config_name, streaming=streaming)
    except Exception as error:  # a script, a network and a dozen file formats stand behind this call
        raise DataError(f"{source} is no image folder and no data set: {sentence(error)[:300]}") from error


def read_dataset(source, image_column, label_column, config_name, streaming, seed):
    """
    Args:
        source (`str`): a name or a folder.
        image_column, label_column (`str`, *optional*): by default the only one of its kind, else `image` and `label`.
        config_name (`str`, *optional*): of the data set.
        streaming (`bool`): streams instead of splits, the one to learn from shuffled in a buffer with this ``seed``.

    Returns:
        [`Data`]

    Raises:
        `DataError`: the library is missing, or it has no such data set, split or column.
    """
    loaded = load(source, config_name, streaming)
    import datasets

    if "train" not in loaded:
        raise DataError(f"{source} has no split named train; it has {', '.join(loaded)}.")
    features = loaded["train"].features
    image_column = image_column or only_column(features, datasets.Image, "image")
    label_column = label_column or only_column(features, datasets.ClassLabel, "label")
    for column in (image_column, label_column):
        if column not in features:
            raise DataError(f"{source} has no column {column}; it has {', '.join(features)}.")
    loaded = loaded.cast_column(image_column, datasets.Image(decode=False))
    names = getattr(features[label_column], "names", None)
    if names is None and streaming:
        raise DataError(
            f"The classes of {source} have no names (column {label_column}), which a stream cannot collect."
        )
    values = range(len(names or ()))  # of the label column
    if names is None:
        values = sorted({value for split in loaded.values() for value in split[label_column]})
        names = [str(value) for value in values]
    index = {value: position for position, value in enumerate(values)}
    held_out = next((name for name in VALIDATION_NAMES if name in loaded), None)
    train, validation = loaded["train"], loaded[held_out] if held_out else None
    if streaming:
        train = train.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
    read = Stream if streaming else _split
    train, validation = (
        None if part is None else read(part, image_column, label_column, index) for part in (train, validation)
    )
    return Data(str(source), train, validation, names, f"the split {held_out}" if held_out else "")


def _split(dataset, image_column, label_column, index):
    labels = [index.get(value, -1) for value in dataset[label_column]]
    whole = Split(Column(dataset, image_column), labels)
    keep = [position for position, label in enumerate(labels) if label >= 0]  # -1: the test splits of many data sets
    return whole if len(keep) == len(labels) else whole.select(keep)


def only_column(features, kind, fallback):
    """The name of the only column of a kind."""
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    return names[0] if len(names) == 1 else fallback
