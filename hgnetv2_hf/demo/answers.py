"""What the page shows: the answer of one model for one image file."""

import contextlib
import threading
import time
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import PIL.Image
import torch

from ..errors import InferenceError
from ..files.images import UNREADABLE, open_upright
from ..inference.detect import draw_detections
from ..inference.detections import as_objects
from ..inference.explain import draw_explained, load_network
from ..inference.grad_cam import maps_and_logits
from ..inference.predictors import load_predictor, prepare, recognise
from ..inference.runtime import top_labels
from ..structure import contains_hgnetv2
from ..wording import counted, sentence


MOST_PIXELS = 50_000_000
TOP_K = 5


@dataclass(frozen=True)
class Model:
    """A loaded model, which answers one person after the other."""

    name: str
    recognised: Any
    predictor: Any
    explained: Optional[tuple]  # network and image processor of a classifier that has heat maps
    lock: Any = field(default_factory=threading.Lock)

    @property
    def task(self):
        return self.recognised.task


@dataclass(frozen=True)
class Answer:
    time: str  # what it took, for people
    scores: Optional[dict[str, float]] = None  # of a classifier, best first
    classes: Optional[list[tuple[str, int]]] = None  # the same names, and their indices
    picture: Optional[PIL.Image.Image] = None  # of a detector, with its boxes


def load(model):
    """
    Args:
        model (`str` or `os.PathLike`): what [`recognise`] takes.

    Raises:
        `InferenceError`: there is no such model, or it cannot be loaded.
    """
    recognised = recognise(model)
    explained = None
    if recognised.task == "classifier" and recognised.runtime == "torch":
        explained = load_network(recognised)
        explained = explained if contains_hgnetv2(explained[0]) else None
    return Model(recognised.name, recognised, load_predictor(recognised), explained)


def answer(model, path, threshold=0.5):
    """
    Args:
        model ([`Model`])
        path (`str`): an image file.
        threshold (`float`, defaults to 0.5): of a detector's objects.

    Raises:
        `InferenceError`: the file is no image, or too large.
    """
    image = _open(path)
    with model.lock, _sentences():
        times = [time.perf_counter()]
        pixels = model.predictor.pixels(path if model.task == "classifier" else image)  # its own way to open a file
        times.append(time.perf_counter())
        (found,) = model.predictor([pixels], [(image.height, image.width)])
        times.append(time.perf_counter())
    took = "{:.0f} ms to prepare, {:.0f} ms to compute".format(*(1000 * (b - a) for a, b in zip(times, times[1:])))
    if model.task == "classifier":
        best = top_labels(found, model.recognised.config, TOP_K)
        classes = [
            (_name(model.recognised.labels, index), int(index)) for index in np.argsort(-found, kind="stable")[:TOP_K]
        ]
        return Answer(took, {name: each["score"] for (name, _), each in zip(classes, best)}, classes)
    objects = as_objects(found, model.recognised.labels, threshold)
    return Answer(f"{counted(len(objects), 'object')}, {took}", picture=draw_detections(image, objects))


def _name(labels, index):
    """The label, with its index where another class has the same, as two of ImageNet's have."""
    return labels[index] if labels.count(labels[index]) == 1 else f"{labels[index]} ({index})"


def heat_map(model, path, target):
    """
    Args:
        model ([`Model`]): one with `explained`.
        path (`str`): an image file.
        target (`int` or `str`): the class to look for.

    Returns:
        `PIL.Image.Image`: left what the network sees, right the same under the heat map.
    """
    network, processor = model.explained
    _open(path)  # or it raises
    with model.lock, _sentences():
        pixel_values = torch.from_numpy(np.moveaxis(prepare(processor, path), -1, 0)[None])
        maps, _ = maps_and_logits(network, pixel_values.to(network.device), target)
    return draw_explained(processor, pixel_values, maps[0].cpu().numpy())


@contextlib.contextmanager
def _sentences():
    """What an image processor or a network raises, as an error of this package."""
    try:
        yield
    except (*UNREADABLE, RuntimeError) as error:
        raise InferenceError(f"The model does not take this image: {sentence(error).rstrip('.')[:200]}.") from error


def _open(path):
    too_large = f"The image is too large: at most {MOST_PIXELS // 1_000_000} million pixels are taken."
    try:
        with PIL.Image.open(path) as image:  # reads the size alone
            pixels = image.width * image.height
        if pixels > MOST_PIXELS:
            raise InferenceError(too_large)
        return open_upright(path)
    except PIL.Image.DecompressionBombError as error:
        raise InferenceError(too_large) from error
    except UNREADABLE as error:
        raise InferenceError(f"This is no image that can be read: {_reason(error)}.") from error


def _reason(error):
    """Without the name that the server gave to the file."""
    if isinstance(error, PIL.UnidentifiedImageError):
        return "unknown format"
    if isinstance(error, FileNotFoundError):
        return "it has been removed since; upload it again"
    return (getattr(error, "strerror", None) or sentence(error)).rstrip(".")[:200]
