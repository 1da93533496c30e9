"""Images with labels for training: folders, data sets of the ``datasets`` library, and the digits that need no file.

An image folder is either ``DATA/train/CLASS/…`` with ``DATA/val/CLASS/…`` (see `TRAIN_NAMES` and `VALIDATION_NAMES`), or
``DATA/CLASS/…``, of which a part is held out. For distillation the images to learn from may lie in ``DATA`` without classes.
"""

import contextlib
import dataclasses
import hashlib
import io
import itertools
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from ..errors import DataError
from ..files.images import UNREADABLE, find_images, is_image_name
from ..model.image_processing_hgnetv2 import to_rgb
from ..wording import sentence


TRAIN_NAMES = ("train", "training")  # in any case, and so below
VALIDATION_NAMES = ("val", "validation", "valid", "test", "testing")  # the first that is there counts
_CHECKED_AT_ONCE = 1024  # images
_SHUFFLE_BUFFER = 10_000  # images of a stream
_DATASETS_FILES = (".parquet", ".arrow", "dataset_dict.json", "state.json", ".py")


@dataclasses.dataclass
class Split:
    """Images, decoded when they are asked for, and the index of each one's class; ``None`` without labels."""

    images: Sequence
    labels: Optional[list[int]]

    def __len__(self):
        return len(self.images)

    def renumber(self, order):
        if self.labels is not None:
            self.labels = [order[label] for label in self.labels]

    def select(self, indices):
        labels = None if self.labels is None else [self.labels[index] for index in indices]
        return Split(_Selection(self.images, indices), labels)


@dataclasses.dataclass
class Data:
    title: str
    train: Split
    validation: Optional[Split]
    classes: Optional[list[str]]  # the name of each class; None without labels
    held_out: str  # where the validation images come from, in words
    skipped: list[str] = dataclasses.field(default_factory=list)  # images that cannot be read, each with the reason
    understood: list[str] = dataclasses.field(default_factory=list)  # how a folder was read, in sentences

    def fingerprint(self):
        """What changes when an image comes, goes, or changes its class or its part; a stream is not known before it is read."""
        splits = [split for split in (self.train, self.validation) if isinstance(split, Split)]
        digest = hashlib.sha256(repr(self.classes).encode())
        for split in splits:
            digest.update(str(len(split)).encode())
            for index in range(len(split)):
                label = None if split.labels is None else split.labels[index]
                digest.update(f"{split.images.key(index)}\0{label}\0".encode("utf-8", "surrogateescape"))
        return {"images": sum(map(len, splits)), "sha256": digest.hexdigest()}

    def renumber(self, classes):
        """Gives the labels the order of ``classes``.

        Raises:
            `DataError`: a class is not among them.
        """
        if self.classes is None or self.classes == classes:
            return
        unknown = [name for name in self.classes if name not in classes]
        if unknown:
            raise DataError(f"The model does not know these classes of {self.title}: {', '.join(unknown[:5])}.")
        order = [classes.index(name) for name in self.classes]
        for split in (self.train, self.validation):
            if split is not None:
                split.renumber(order)
        self.classes = classes


class ImageFiles(Sequence):
    """Files, decoded as PaddleClas decodes."""

    def __init__(self, paths):
        self.paths = np.array([os.fsencode(path) for path in paths])  # one block of memory, which forked workers share

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return _open(self.name(index))

    def name(self, index):
        return os.fsdecode(bytes(self.paths[index]))

    def key(self, index):
        name = self.name(index)
        return f"{os.path.abspath(name)} {os.path.getsize(name) if os.path.exists(name) else None}"


class _Arrays(Sequence):
    def __init__(self, arrays):
        self.arrays = arrays

    def __len__(self):
        return len(self.arrays)

    def __getitem__(self, index):
        return PIL.Image.fromarray(self.arrays[index]).convert("RGB")

    def name(self, index):
        return f"image {index}"

    key = name


class _Column(Sequence):
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


@dataclasses.dataclass
class Stream:
    """A data set of the ``datasets`` library that is read from front to back and never as a whole."""

    dataset: Any  # `datasets.IterableDataset`
    image_column: str
    label_column: str
    label_index: dict  # from what the label column holds to the index of the class
    unreadable: torch.Tensor = dataclasses.field(
        default_factory=lambda: torch.zeros((), dtype=torch.int64).share_memory_()
    )

    def renumber(self, order):
        self.label_index = {value: order[index] for value, index in self.label_index.items()}

    def rows(self, epoch):
        """(key, image, index of its class) of an epoch, a worker's share of them; images that cannot be read are counted."""
        dataset, worker = self.dataset, torch.utils.data.get_worker_info()
        worker_id = 0 if worker is None else worker.id
        dataset.set_epoch(epoch)
        if worker is not None and dataset.num_shards >= worker.num_workers:
            dataset = dataset.shard(worker.num_workers, worker_id)
        elif worker_id > 0:
            return
        for position, row in enumerate(dataset):
            try:
                image = decode(row[self.image_column])
            except UNREADABLE:
                self.unreadable += 1
                continue
            if row[self.label_column] in self.label_index:  # -1: the test splits of many data sets
                yield (epoch, worker_id, position), image, self.label_index[row[self.label_column]]


class _Selection(Sequence):
    def __init__(self, images, indices):
        self.images, self.indices = images, np.asarray(indices, dtype="int64")

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.images[self.indices[index]]

    def name(self, index):
        return self.images.name(self.indices[index])

    def key(self, index):
        return self.images.key(self.indices[index])


def decode(image):
    """An image of the ``datasets`` library, decoded or not, to RGB."""
    if isinstance(image, dict):
        image = _open(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"])
    return image if image.mode == "RGB" else to_rgb(image)


def _open(file):
    with PIL.Image.open(file) as image:
        return to_rgb(image).copy()


def load_data(
    source, validation_fraction=0.1, seed=0, needs_labels=True, image_column=None, label_column=None, config_name=None,
    streaming=False, class_folders=None,
):  # fmt: skip
    """
    Args:
        source (`str`): an image folder, the name or folder of a data set of the `datasets` library, or `"digits"`.
        validation_fraction (`float`, defaults to 0.1): held out, class by class, where the data have no validation part.
        seed (`int`): decides what is held out.
        needs_labels (`bool`, defaults to `True`): `False` takes images without classes too.
        image_column, label_column, config_name (`str`, *optional*): of a data set of the `datasets` library.
        streaming (`bool`, defaults to `False`): read such a data set as a stream, shuffled in a buffer.
        class_folders (`"outer"` or `"inner"`, *optional*): which folders are the classes where folders lie in folders
            (`animals/cat`, `plants/rose`).

    Returns:
        [`Data`]

    Raises:
        `DataError`: there are no such data, a class has no image, there is one class only, or the folders can be read in
            two ways.
    """
    if source == "digits":
        data = _digits()
    elif os.path.isdir(source) and not _holds_datasets_files(source):
        data = _image_folder(Path(source), needs_labels, class_folders)
    else:
        data = _datasets(source, image_column, label_column, config_name, streaming, seed)
        if streaming:
            _check_names(data)
            return data
    if streaming:
        raise DataError(f"{source} is no data set of the `datasets` library, and only those are streamed.")
    if data.validation is None and validation_fraction:
        _hold_out(data, validation_fraction, seed)
    _check_classes(data)
    return data


def _digits():
    from .digits import load_split

    try:
        train, held_out = load_split()
    except ImportError as error:
        raise DataError(
            'The digits come with scikit-learn: pip install "hgnetv2-hf[train]", or scikit-learn.'
        ) from error
    splits = [Split(_Arrays(scans), labels.tolist()) for scans, labels in (train, held_out)]
    return Data("scikit-learn's digits", *splits, [str(digit) for digit in range(10)], "a third, stratified, seed 0")


def _holds_datasets_files(folder):
    return any(name.endswith(_DATASETS_FILES) for name in os.listdir(folder))


def _image_folder(folder, needs_labels, class_folders):
    train_folder, validation_folder, unused = _parts(folder)
    classes = _class_folders(train_folder, class_folders)
    if not classes and needs_labels:
        raise DataError(
            f"{train_folder} holds no folders, one per class, with the images of the class inside. Images without classes can "
            "only be learnt from with --teacher."
        )
    train = _labelled_files(train_folder, classes) if classes else Split(ImageFiles(find_images([train_folder])), None)
    validation, used = None, list(classes.values())
    if validation_folder is not None:
        found = _class_folders(validation_folder, class_folders)
        unknown = sorted(set(found) - set(classes))
        if unknown and classes:
            raise DataError(f"{validation_folder} has classes that {train_folder} has not: {', '.join(unknown[:5])}.")
        classes = classes or found
        places = {name: found.get(name, []) for name in classes}
        validation = _labelled_files(validation_folder, places, may_lack_classes=True)
        used += places.values()
    _refuse_the_same_folder_twice(used)
    understood = _understood(train_folder, validation_folder, classes, unused)
    return Data(
        str(folder), train, validation, list(classes) or None, str(validation_folder or ""), understood=understood
    )


def _parts(folder):
    """The folders with the images to learn from and to validate with (``None``: none), and the names of those left unused."""
    names = [entry.name for entry in _folders(folder)]
    trains, held_outs = ([name for name in names if name.lower() in part] for part in (TRAIN_NAMES, VALIDATION_NAMES))
    held_outs.sort(key=lambda name: VALIDATION_NAMES.index(name.lower()))
    for same in (trains, [name for name in held_outs if name.lower() == held_outs[0].lower()]):
        if len(same) > 1:
            raise DataError(f"{folder} holds {' and '.join(same)}, which mean the same part; keep one of them.")
    others = [name for name in names if name not in trains and name not in held_outs]
    if not trains and held_outs and not others:
        raise DataError(f"{folder} holds {' and '.join(held_outs)} but no train; name the folder to learn from train.")
    are_classes = not trains or (others and not _folders(folder / trains[0]))  # one may be called train, or test
    if are_classes:
        return folder, None, []
    validation = folder / held_outs[0] if held_outs else None
    return folder / trains[0], validation, [*held_outs[1:], *others]


def _folders(folder):
    entries = (entry for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))
    return sorted(entries, key=lambda entry: entry.name)


def _class_folders(folder, class_folders):
    """The name of each class and its folders. Where folders hold nothing but folders, ``class_folders`` says which are meant."""
    outer = {entry.name: [Path(entry.path)] for entry in _folders(folder)}
    inside = {name: _folders(path) for name, (path,) in outer.items()}
    if class_folders == "inner" and outer and not any(inside.values()):
        raise DataError(f"{folder} holds no folders in its folders; leave --class-folders inner out.")
    are_nested = any(inside.values()) and not any(_holds_images(path) for (path,) in outer.values())
    if class_folders == "outer" or (class_folders is None and not are_nested):
        return outer
    inner = {}
    for entries in inside.values():
        for entry in entries:
            inner.setdefault(entry.name, []).append(Path(entry.path))
    if class_folders == "inner":
        return dict(sorted(inner.items()))
    example = next(name for name, entries in inside.items() if entries)
    raise DataError(
        f"{folder} holds folders in folders ({example}/{inside[example][0].name}): pass --class-folders outer if the classes are "
        f"{_some(outer)}, or --class-folders inner if they are {_some(inner)}."
    )


def _refuse_the_same_folder_twice(places):
    """Links can make one folder two classes, or a part of both parts."""
    seen = {}
    for place in (place for each in places for place in each):
        real = os.path.realpath(place)
        if real in seen:
            raise DataError(
                f"{seen[real]} and {place} are the same folder, so its images would be used twice; remove a link."
            )
        seen[real] = place


def _holds_images(folder):
    return any(entry.is_file() and is_image_name(entry.name) for entry in os.scandir(folder))


def _some(names, limit=5):
    names = list(names)
    return ", ".join(names[:limit]) + (f" … ({len(names)} in all)" if len(names) > limit else "")


def _labelled_files(folder, classes, may_lack_classes=False):
    paths, labels, empty = [], [], []
    for index, (name, places) in enumerate(classes.items()):
        files = []
        for place in places:
            with contextlib.suppress(DataError):  # a folder without an image
                files += find_images([place])
        if not files:
            empty.append(name)
        paths += files
        labels += [index] * len(files)
    if empty and not may_lack_classes:
        raise DataError(f"{folder} has classes without an image: {_some(empty)}. Fill or remove these folders.")
    return Split(ImageFiles(paths), labels)


def _understood(train_folder, validation_folder, classes, unused):
    lines = []
    if classes:
        lines.append(f"classes: the folders in {train_folder}: {_some(classes)}")
    nested = [name for name, places in classes.items() if len(places) == 1 and _folders(places[0])]
    if nested:
        lines.append(f"images in folders inside a class belong to the class: {_some(nested)}")
    if validation_folder is not None:
        lines.append(f"validation: {validation_folder}")
    if unused:
        lines.append(f"not used: {_some(unused)}")
    return lines


def _datasets(source, image_column, label_column, config_name, streaming, seed):
    if not os.path.exists(source) and "/" not in str(source):
        raise DataError(
            f"There is no folder {source}; expected an image folder, a data set of the Hub as USER/NAME, or digits."
        )
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f'{source} is no image folder, and data sets by name need the library: pip install "hgnetv2-hf[train]".'
        ) from error
    try:
        loaded = datasets.load_dataset(str(source), config_name, streaming=streaming)
    except Exception as error:  # a script, a network and a dozen file formats stand behind this call
        raise DataError(f"{source} is no image folder and no data set: {sentence(error)[:300]}") from error
    if "train" not in loaded:
        raise DataError(f"{source} has no split named train; it has {', '.join(loaded)}.")
    features = loaded["train"].features
    image_column = image_column or _only(features, datasets.Image, "image")
    label_column = label_column or _only(features, datasets.ClassLabel, "label")
    for column in (image_column, label_column):
        if column not in features:
            raise DataError(f"{source} has no column {column}; it has {', '.join(features)}.")
    loaded = loaded.cast_column(image_column, datasets.Image(decode=False))
    names = getattr(features[label_column], "names", None)
    if names is None and streaming:
        raise DataError(
            f"The classes of {source} have no names (column {label_column}), which a stream cannot collect."
        )
    if names is None:
        values = sorted({value for split in loaded.values() for value in split[label_column]})
        names, index = [str(value) for value in values], {value: position for position, value in enumerate(values)}
    else:
        index = {position: position for position in range(len(names))}
    held_out = next((name for name in VALIDATION_NAMES if name in loaded), None)
    held_out_words = f"the split {held_out}" if held_out else ""
    if streaming:
        train, *held = (
            Stream(loaded[name], image_column, label_column, dict(index)) for name in ("train", held_out) if name
        )
        train.dataset = train.dataset.shuffle(seed=seed, buffer_size=_SHUFFLE_BUFFER)
        return Data(str(source), train, held[0] if held else None, names, held_out_words)

    def split(name):
        labels = [index.get(value, -1) for value in loaded[name][label_column]]
        keep = [
            position for position, label in enumerate(labels) if label >= 0
        ]  # -1: the test splits of many data sets
        whole = Split(_Column(loaded[name], image_column), labels)
        return whole if len(keep) == len(labels) else whole.select(keep)

    return Data(str(source), split("train"), split(held_out) if held_out else None, names, held_out_words)


def _only(features, kind, fallback):
    """The name of the only column of a kind."""
    names = [name for name, feature in features.items() if isinstance(feature, kind)]
    return names[0] if len(names) == 1 else fallback


def _hold_out(data, fraction, seed):
    """Takes the same part of every class, at least one image of each that has two, out of the training images."""
    generator = np.random.RandomState(seed)
    labels = np.zeros(len(data.train), dtype="int64") if data.train.labels is None else np.array(data.train.labels)
    held_out = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        held_out += members[:count].tolist()
    if not held_out:  # one image per class
        return
    held_out = sorted(held_out)
    rest = sorted(set(range(len(data.train))) - set(held_out))
    data.train, data.validation = data.train.select(rest), data.train.select(held_out)
    data.held_out = f"{fraction:.0%} of each class, seed {seed}"


def _check_classes(data):
    if not len(data.train):
        raise DataError(f"{data.title} holds no image to learn from.")
    if data.validation is not None and not len(data.validation):
        raise DataError(f"{data.held_out} of {data.title} holds no image to validate with; fill or remove it.")
    if data.train.labels is None:
        return
    missing = sorted(set(range(len(data.classes))) - set(data.train.labels))
    if missing:
        names = ", ".join(data.classes[index] for index in missing[:5])
        raise DataError(f"{data.title} has classes without a training image: {names}.")
    _check_names(data)


def _check_names(data):
    for name in data.classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{data.title} has a class whose name is no UTF-8, {name!a}; rename its folder."
            ) from error
    if len(data.classes) < 2:
        raise DataError(f"{data.title} has one class only, {data.classes[0]}; a classifier needs two.")


def only_classes(data, names, per_class=None):
    """Keeps some classes, in the order given, and the first ``per_class`` training images of each."""
    unknown = [name for name in names if name not in data.classes]
    if unknown:
        raise DataError(f"{data.title} has no class {', '.join(unknown)}; it has {', '.join(data.classes[:20])}.")
    new = {data.classes.index(name): position for position, name in enumerate(names)}

    def keep(split, limit):
        seen, indices = Counter(), []
        for index, label in enumerate(split.labels):
            if label in new and (limit is None or seen[label] < limit):
                seen[label] += 1
                indices.append(index)
        kept = split.select(indices)
        kept.labels = [new[label] for label in kept.labels]
        return kept

    data.train = keep(data.train, per_class)
    data.validation = keep(data.validation, None) if data.validation is not None else None
    data.classes = list(names)
    _check_classes(data)


def check_images(data, workers=None):
    """
    Decodes every image once and takes those that cannot be read out of the data; `skipped` names them.

    Returns:
        [`Data`]: the same, without them.

    Raises:
        `DataError`: a class, or everything, would be left without an image.
    """
    for split_name in ("train", "validation"):
        split = getattr(data, split_name)
        if split is None:
            continue
        bad = unreadable(split.images, f"checking {split_name} images", workers)
        if not bad:
            continue
        data.skipped += [f"{split.images.name(index)}: {reason}" for index, reason in bad.items()]
        setattr(data, split_name, split.select([index for index in range(len(split)) if index not in bad]))
    try:
        _check_classes(data)
    except DataError as error:
        if not data.skipped:
            raise
        raise DataError(f"{error} {len(data.skipped)} images cannot be read; the first: {data.skipped[0]}") from error
    return data


def unreadable(images, title, workers=None):
    """Index -> why that image cannot be read."""

    def reason(index):
        try:
            images[index]
        except UNREADABLE as error:
            return sentence(error)
        return None

    found = {}
    with (
        ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool,
        tqdm(total=len(images), desc=title, unit="image", mininterval=1) as progress,
    ):
        for start in range(0, len(images), _CHECKED_AT_ONCE):
            indices = range(start, min(start + _CHECKED_AT_ONCE, len(images)))
            found.update(zip(indices, pool.map(reason, indices)))
            found = {index: text for index, text in found.items() if text is not None}
            progress.update(len(indices))
    return found


class ImageDataset(torch.utils.data.Dataset):
    """What `Trainer` takes: `pixel_values` and, unless there are none, `labels`.

    `transform(image, key)` gets a key that is a function of seed, epoch and image. The epoch lies in shared memory, so that
    workers that outlive an epoch see it.
    """

    def __init__(self, split, transform, seed=0):
        self.split, self.transform, self.seed = split, transform, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def start_epoch(self, epoch):
        self._epoch.fill_(epoch)

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        try:
            image = self.split.images[index]
        except UNREADABLE as error:
            raise DataError(f"{self.split.images.name(index)} cannot be read: {sentence(error)}") from error
        example = {"pixel_values": self.transform(image, (self.seed, int(self._epoch), int(index)))}
        if self.split.labels is not None:
            example["labels"] = self.split.labels[index]
        return example


class StreamDataset(torch.utils.data.IterableDataset):
    """The examples of a [`Stream`]: again and again for training, once for an evaluation."""

    def __init__(self, stream, transform, seed=0, repeats=False, labelled=True):
        self.stream, self.transform, self.seed = stream, transform, seed
        self.repeats, self.labelled = repeats, labelled

    def __iter__(self):
        for epoch in itertools.count() if self.repeats else (0,):
            for key, image, label in self.stream.rows(epoch):
                example = {"pixel_values": self.transform(image, (self.seed, *key))}
                yield {**example, "labels": label} if self.labelled else example


def collate(examples):
    """A batch, its images channels-last in memory."""
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    batch = {"pixel_values": pixel_values.contiguous(memory_format=torch.channels_last)}
    if "labels" in examples[0]:
        batch["labels"] = torch.tensor([example["labels"] for example in examples])
    return batch
