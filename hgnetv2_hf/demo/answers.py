"""What the page shows: the answer of one model for one image file."""

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Optional

import PIL.Image

from ..errors import InferenceError
from ..files.images import UNREADABLE, open_upright
from ..inference.detect import draw_detections
from ..inference.detections import as_objects
from ..inference.explain import draw_explained, load_network
from ..inference.grad_cam import maps_and_logits
from ..inference.predictors import load_predictor, recognise
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
    name = recognised.name.rstrip("/").rpartition("/")[2]
    return Model(name, recognised, load_predictor(recognised), explained)


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
    with model.lock:
        times = [time.perf_counter()]
        pixels = model.predictor.pixels(image)
        times.append(time.perf_counter())
        (found,) = model.predictor([pixels], [(image.height, image.width)])
        times.append(time.perf_counter())
    took = "{:.0f} ms to prepare, {:.0f} ms to compute".format(*(1000 * (b - a) for a, b in zip(times, times[1:])))
    if model.task == "classifier":
        scores = {}
        for each in top_labels(found, model.recognised.config, TOP_K):
            scores.setdefault(each["label"], each["score"])  # two of ImageNet's classes have the same label as another
        return Answer(took, scores=scores)
    objects = as_objects(found, model.recognised.labels, threshold)
    return Answer(f"{counted(len(objects), 'object')}, {took}", picture=draw_detections(image, objects))


def heat_map(model, path, label):
    """
    Args:
        model ([`Model`]): one with `explained`.
        path (`str`): an image file.
        label (`str`): the class to look for.

    Returns:
        `PIL.Image.Image`: left what the network sees, right the same under the heat map.
    """
    network, processor = model.explained
    pixel_values = processor(images=_open(path), return_tensors="pt")["pixel_values"]
    with model.lock:
        maps, _ = maps_and_logits(network, pixel_values.to(network.device), label)
    return draw_explained(processor, pixel_values, maps[0].cpu().numpy())


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
    return "unknown format" if isinstance(error, PIL.UnidentifiedImageError) else sentence(error).rstrip(".")[:200]
