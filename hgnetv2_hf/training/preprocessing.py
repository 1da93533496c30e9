"""What training needs of an image processor, whichever model it belongs to."""

import numpy as np
import torch

from ..errors import TrainingError
from ..model.image_processing_hgnetv2 import HGNetV2ImageProcessor
from .augmentation import Augmentation


class Preprocessing:
    """An image processor as the transform of a data set: the key, which decides randomness elsewhere, changes
    nothing."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, image, key=None):
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


def build_augmentation(processor, options):
    """The [`Augmentation`] that [`Options`] ask for, with the size and the normalisation of an image processor."""
    return Augmentation(
        network_size(processor),
        crop_scale=tuple(options.crop_scale),
        shift=options.shift,
        flip=options.flip,
        rand_augment=options.rand_augment,
        random_erasing=options.random_erasing,
        **normalisation(processor),
    )


def network_size(processor):
    """Height and width of what the network gets."""
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", True) else None
    size = dict(crop or processor.size)
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return size["height"], size["width"]


def set_network_size(processor, pixels):
    """Makes a processor of this package crop to squares of ``pixels``, in place; the share that it crops stays."""
    if not isinstance(processor, HGNetV2ImageProcessor):
        raise TrainingError(f"--image-size is about this package's image processor, not {type(processor).__name__}.")
    crop, short = processor.crop_size["height"], processor.size.get("shortest_edge", processor.size.get("height"))
    processor.crop_size = {"height": pixels, "width": pixels}
    processor.size = {"shortest_edge": max(pixels, round(pixels * short / crop))}


def normalisation(processor):
    """How an image processor interpolates, scales and normalises; what it does not do leaves pixels as they are."""
    does_normalise, does_rescale = (getattr(processor, f"do_{what}", True) for what in ("normalize", "rescale"))
    resample = getattr(processor, "resample", None)
    return {
        "rescale_factor": processor.rescale_factor if does_rescale else 1.0,
        "image_mean": tuple(processor.image_mean) if does_normalise else (0.0, 0.0, 0.0),
        "image_std": tuple(processor.image_std) if does_normalise else (1.0, 1.0, 1.0),
        "resample": int(Augmentation.resample if resample is None else resample),
    }


def between(processor, other):
    """Scale and shift from one processor's normalised pixels to another's, each `(1, 3, 1, 1)`; ``None`` where they
    are the same."""
    (mean, std), (other_mean, other_std) = (
        [np.array(values[name]) / values["rescale_factor"] for name in ("image_mean", "image_std")]
        for values in map(normalisation, (processor, other))
    )
    if np.allclose(mean, other_mean) and np.allclose(std, other_std):
        return None
    scale, shift = std / other_std, (mean - other_mean) / other_std
    return tuple(torch.tensor(each, dtype=torch.float32).view(1, -1, 1, 1) for each in (scale, shift))
