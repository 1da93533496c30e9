"""What is wrong with data before anything is learnt from them: classes without images, names, images that cannot be
read."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

from tqdm.auto import tqdm

from ..errors import DataError
from ..files.images import UNREADABLE
from ..wording import sentence


_CHECKED_AT_ONCE = 1024  # images


def check_classes(data):
    """Raises ``DataError`` unless there are images to learn from, of every class, and two classes."""
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
    check_names(data)


def check_names(data):
    """Raises ``DataError`` unless there are two classes, and every name can be written."""
    for name in data.classes:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"{data.title} has a class whose name is no UTF-8, {name!a}; rename its folder."
            ) from error
    if len(data.classes) < 2:
        raise DataError(f"{data.title} has one class only, {data.classes[0]}; a classifier needs two.")


def check_images(data, workers=None):
    """
    Decodes every image once and takes those that cannot be read out of the data; `skipped` names them.

    Args:
        data ([`Data`]): no stream.
        workers (`int`, *optional*): threads that decode; by default one per core.

    Returns:
        [`Data`]: the same, without them.

    Raises:
        `DataError`: a class, or everything, would be left without an image.
    """
    for part in ("train", "validation"):
        split = getattr(data, part)
        bad = {} if split is None else unreadable(split.images, f"checking {part} images", workers)
        if bad:
            skipped = [f"{split.images.name(index)}: {reason}" for index, reason in bad.items()]
            kept = split.select([index for index in range(len(split)) if index not in bad])
            data = dataclasses.replace(data, **{part: kept}, skipped=[*data.skipped, *skipped])
    try:
        check_classes(data)
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
            reasons = zip(indices, pool.map(reason, indices))
            found.update({index: text for index, text in reasons if text is not None})
            progress.update(len(indices))
    return found
