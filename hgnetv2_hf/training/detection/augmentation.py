"""What a detector learns from an image: other colours, a smaller image on black, a crop around objects, a flip; four
images in one.

Sources: D-FINE and RT-DETRv2 ``configs/**/dataloader.yml`` and ``src/data/transforms``: torchvision's transforms in
this order, the first three until the strong augmentation ends. DEIM ``engine/data/transforms/mosaic.py``.
"""

import dataclasses
from typing import Any

import numpy as np
import PIL.Image
import torch

from ...data.detection import Objects
from ...errors import TrainingError
from ..augmentation import seeded
from ..preprocessing import normalisation
from .boxes import to_centres


_SMALLEST = 1  # pixels per side of a box that is kept, as in the originals
_LARGEST = 2  # times the network's size: larger photographs are made so large before the strong augmentation


@dataclasses.dataclass(frozen=True)
class DetectionAugmentation:
    """
    A transform of images with [`Objects`]; what is random in it is a function of a key only.

    Args:
        size (`tuple[int, int]`): height and width of what the network gets.
        photometric (`float`, defaults to 0.5): probability of each of another brightness, contrast, saturation, hue
            and order of the channels.
        zoom_out (`float`, defaults to 0.5): probability of one to four times the sides, filled with black.
        crop (`float`, defaults to 0.8): probability of a crop that objects overlap with (that of SSD).
        flip (`float`, defaults to 0.5): probability of a horizontal flip.
        rescale_factor, image_mean, image_std, resample: those of the image processor.
    """

    size: tuple[int, int]
    photometric: float = 0.5
    zoom_out: float = 0.5
    crop: float = 0.8
    flip: float = 0.5
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    image_std: tuple[float, ...] = (1.0, 1.0, 1.0)
    resample: int = PIL.Image.Resampling.BILINEAR

    @classmethod
    def for_processor(cls, processor, size, **probabilities):
        """With the size and the normalisation of an image processor."""
        require_torchvision()
        return cls(size, **normalisation(processor), **probabilities)

    def weak(self):
        """The same once the strong augmentation has ended: flip and resize."""
        return dataclasses.replace(self, photometric=0.0, zoom_out=0.0, crop=0.0)

    def of_a_mosaic(self):
        """The same for four images in one: neither zoomed out of nor cropped."""
        return dataclasses.replace(self, zoom_out=0.0, crop=0.0)

    def __call__(self, image, objects, key):
        """
        Args:
            image (`PIL.Image.Image`): RGB.
            objects ([`Objects`]): what is in it; a crowd is not learnt from.
            key: decides everything random.

        Returns:
            `tuple[torch.Tensor, dict]`: pixels `(3, height, width)`, and `labels` `(n,)` and `boxes` `(n, 4)`, centre
            and size in 0…1.
        """
        image, boxes, labels = self._transformed(image, objects, key)
        height, width = self.size
        scale = torch.tensor([width, height, width, height], dtype=torch.float32)
        return self._normalised(image), {"labels": labels, "boxes": to_centres(boxes.float()) / scale}

    def drawn(self, image, objects, key):
        """As [`__call__`], before the normalisation: an image and its [`Objects`] in pixels, to look at."""
        image, boxes, labels = self._transformed(image, objects, key)
        boxes = boxes.double().numpy()
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        return image, Objects(boxes, labels.numpy(), np.zeros(len(boxes), dtype=bool), areas)

    def _transformed(self, image, objects, key):
        from torchvision import tv_tensors

        learnt = ~np.asarray(objects.crowd, dtype=bool)
        image, scale = self._limited(image)
        sample = {
            "image": image,
            "boxes": tv_tensors.BoundingBoxes(
                torch.from_numpy((np.asarray(objects.boxes)[learnt].reshape(-1, 4) * scale).astype("float32")),
                format="XYXY",
                canvas_size=(image.height, image.width),
            ),
            "labels": torch.from_numpy(np.asarray(objects.labels)[learnt].astype("int64")),
        }
        with seeded(key):
            for transform, probability in self._transforms(len(sample["labels"])):
                if probability >= 1 or (probability > 0 and torch.rand(()) < probability):
                    sample = transform(sample)
        return sample["image"], torch.Tensor(sample["boxes"]), sample["labels"]

    def _limited(self, image):
        """The image, no larger than the transforms need it: zoom out makes a canvas of up to sixteen times its pixels.
        And what boxes are multiplied with."""
        largest = _LARGEST * max(self.size)
        is_weak = not (self.photometric or self.zoom_out or self.crop)
        if is_weak or max(image.size) <= largest:
            return image, np.ones(4)
        size = [max(1, round(side * largest / max(image.size))) for side in image.size]
        return image.resize(size, self.resample), np.tile(np.array(size) / image.size, 2)

    def _transforms(self, objects) -> list[tuple[Any, float]]:
        from torchvision.transforms import v2

        tidy = v2.SanitizeBoundingBoxes(min_size=_SMALLEST)
        return [
            (
                v2.RandomPhotometricDistort(p=self.photometric),
                float(self.photometric > 0),
            ),  # each of the five by itself
            (v2.RandomZoomOut(fill=0, p=1.0), self.zoom_out),
            (v2.RandomIoUCrop(), self.crop if objects else 0.0),  # it finds none without objects, after many trials
            (tidy, 1.0),
            (v2.RandomHorizontalFlip(p=1.0), self.flip),
            (v2.Resize(self.size, interpolation=_interpolation(self.resample)), 1.0),
            (v2.ClampBoundingBoxes(), 1.0),  # rounding puts some just outside, which would be left out
            (tidy, 1.0),
        ]

    def _normalised(self, image):
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() * self.rescale_factor
        mean, std = (
            torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (self.image_mean, self.image_std)
        )
        return (pixels - mean) / std


_TILE = 0.5  # of the network's size: the shorter side of an image in a mosaic
_ROTATION, _TRANSLATION, _SCALE = 10, (0.1, 0.1), (0.5, 1.5)  # degrees; share of the sides; of all four together


def mosaic(samples, size, key):
    """
    Four images in one, turned, moved and scaled together.

    Args:
        samples (`list[tuple[PIL.Image.Image, Objects]]`): four; a crowd is left out.
        size (`tuple[int, int]`): height and width of what the network gets.
        key: decides everything random.

    Returns:
        `tuple[PIL.Image.Image, Objects]`
    """
    from torchvision import tv_tensors
    from torchvision.transforms import v2

    tiles = [_tile(image, objects, round(_TILE * min(size))) for image, objects in samples]
    width, height = (max(image.size[side] for image, *_ in tiles) for side in (0, 1))
    canvas = PIL.Image.new("RGB", (2 * width, 2 * height))
    boxes, labels = [], []
    for (image, tile_boxes, tile_labels), place in zip(tiles, ((0, 0), (width, 0), (0, height), (width, height))):
        canvas.paste(image, place)
        boxes.append(tile_boxes + np.tile(place, 2))
        labels.append(tile_labels)
    sample = {
        "image": canvas,
        "boxes": tv_tensors.BoundingBoxes(
            torch.from_numpy(np.concatenate(boxes).astype("float32")),
            format="XYXY",
            canvas_size=(canvas.height, canvas.width),
        ),
        "labels": torch.from_numpy(np.concatenate(labels).astype("int64")),
    }
    with seeded(key):
        sample = v2.RandomAffine(_ROTATION, translate=_TRANSLATION, scale=_SCALE, fill=0)(sample)
        sample = v2.SanitizeBoundingBoxes(min_size=_SMALLEST)(sample)
    boxes = torch.Tensor(sample["boxes"]).double().numpy()
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return sample["image"], Objects(boxes, sample["labels"].numpy(), np.zeros(len(boxes), dtype=bool), areas)


def _tile(image, objects, shorter):
    """The image with its shorter side of so many pixels, its boxes and their labels."""
    scale = shorter / min(image.size)
    size = [max(1, round(side * scale)) for side in image.size]
    learnt = ~np.asarray(objects.crowd, dtype=bool)
    boxes = np.asarray(objects.boxes, dtype="float64")[learnt].reshape(-1, 4)
    scales = np.tile(np.array(size) / image.size, 2)
    return image.resize(size, PIL.Image.Resampling.BILINEAR), boxes * scales, np.asarray(objects.labels)[learnt]


def _interpolation(resample):
    from torchvision.transforms import InterpolationMode

    return {
        PIL.Image.Resampling.NEAREST: InterpolationMode.NEAREST,
        PIL.Image.Resampling.BILINEAR: InterpolationMode.BILINEAR,
        PIL.Image.Resampling.BICUBIC: InterpolationMode.BICUBIC,
    }[PIL.Image.Resampling(resample)]


def require_torchvision():
    """Raises ``TrainingError`` where torchvision is missing."""
    try:
        import torchvision.transforms.v2  # noqa: F401
    except (ImportError, RuntimeError) as error:
        raise TrainingError('Detectors are trained with torchvision: pip install "hgnetv2-hf[detection]".') from error
