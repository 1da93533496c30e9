"""PaddleClas's training transform: random crop, flip, RandAugment, normalisation, random erasing.

Source: PaddleClas ``ppcls/configs/ImageNet/PPHGNetV2`` (``RandCropImage``, ``RandFlipImage``, ``TimmAutoAugment``,
``NormalizeImage``, ``RandomErasing``) and ``ppcls/data/preprocess/ops``. RandAugment and random erasing are timm's
there, and here.

Every random decision is a function of a key (seed, epoch, image), so an image looks the same whichever process, worker
or resumed run prepares it.
"""

import contextlib
import dataclasses
import hashlib
import importlib
import math
import random
from typing import Optional

import numpy as np
import PIL.Image
import torch

from ..errors import TrainingError


@dataclasses.dataclass
class Augmentation:
    """
    Args:
        size (`tuple[int, int]`): height and width of what the network gets.
        crop_scale, crop_ratio (`tuple[float, float]`): of the random crop's area and aspect ratio; PaddleClas's
            defaults.
        shift (`float`, defaults to 0): with 0, the crop is PaddleClas's: anywhere inside the image, ``crop_scale`` in
            the image's area. Above 0 it keeps the scale that an evaluation shows: ``crop_scale`` in the area of the
            largest square, also above 1, moved along the longer side, and in both directions by up to this share of
            the square's side; where that leaves the image, its border is repeated.
        flip (`float`, defaults to 0.5): probability of a horizontal flip.
        rand_augment (`str`, defaults to `"rand-m7-mstd0.5-inc1"`): timm's notation, `"none"` for none.
        random_erasing (`float`, defaults to 0.25): probability; the erased pixels are noise.
        rescale_factor, image_mean, image_std, resample: of the image processor.
    """

    size: tuple[int, int]
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    shift: float = 0.0
    flip: float = 0.5
    rand_augment: str = "rand-m7-mstd0.5-inc1"
    random_erasing: float = 0.25
    rescale_factor: float = 1 / 255
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)
    resample: int = PIL.Image.Resampling.BICUBIC

    def __post_init__(self):
        self._rand_augment = self._erase = None
        if self.rand_augment != "none":
            self._rand_augment = self._build_rand_augment()
        if self.random_erasing:
            self._erase = timm("random_erasing").RandomErasing(
                self.random_erasing, min_area=0.02, max_area=1 / 3, min_aspect=0.3, mode="pixel", device="cpu"
            )
        self._mean = np.array(self.image_mean, dtype="float32")
        self._std = np.array(self.image_std, dtype="float32")

    def _build_rand_augment(self):
        parameters = {
            "translate_const": int(min(self.size) * 0.45),
            "img_mean": tuple(min(255, round(255 * mean)) for mean in self.image_mean),
            "interpolation": self.resample,
        }
        try:
            return timm("auto_augment").rand_augment_transform(self.rand_augment, parameters)
        except (AssertionError, ValueError, KeyError) as error:
            raise TrainingError(
                f"Unsupported rand_augment {self.rand_augment!r}: expected timm's notation, such as "
                "rand-m7-mstd0.5-inc1, or none."
            ) from error

    def __call__(self, image: PIL.Image.Image, key: Optional[tuple] = None) -> torch.Tensor:
        """An RGB image to a float32 tensor (3, height, width), its channels last in memory. ``key`` decides all
        randomness."""
        with seeded(key) if key is not None else contextlib.nullcontext():
            image = self._random_zoom(image) if self.shift else self._random_crop(image)
            if random.random() < self.flip:
                image = image.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
            if self._rand_augment is not None:
                image = self._rand_augment(image)
            pixels = (np.asarray(image, dtype="float32") * np.float32(self.rescale_factor) - self._mean) / self._std
            tensor = torch.from_numpy(pixels).permute(2, 0, 1)
            return tensor if self._erase is None else self._erase(tensor)

    def _random_crop(self, image):
        """As PaddleClas's ``RandCropImage``: the ratio first, then an area that fits."""
        width, height = image.size
        aspect = math.sqrt(random.uniform(*self.crop_ratio))
        bound = min(width / height / aspect**2, height / width * aspect**2)
        area = random.uniform(min(self.crop_scale[0], bound), min(self.crop_scale[1], bound)) * width * height
        crop_width = max(1, int(math.sqrt(area) * aspect))
        crop_height = max(1, int(math.sqrt(area) / aspect))
        left, top = random.randint(0, width - crop_width), random.randint(0, height - crop_height)
        return self._cut(image, left, top, crop_width, crop_height)

    def _random_zoom(self, image):
        """A window of about the size that an evaluation sees; where it leaves the image, the border is repeated."""
        side = min(image.size)
        area, aspect = random.uniform(*self.crop_scale) * side**2, math.sqrt(random.uniform(*self.crop_ratio))
        window = [max(1, round(math.sqrt(area) * aspect)), max(1, round(math.sqrt(area) / aspect))]
        corner = []
        for length, cut in zip(image.size, window):
            reach = (length - side) / 2 + self.shift * side
            corner.append(round((length - cut) / 2 + random.uniform(-reach, reach)))
        left, top = (max(0, -start) for start in corner)
        right, bottom = (max(0, start + cut - length) for start, cut, length in zip(corner, window, image.size))
        if left or top or right or bottom:
            pixels = np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge")
            image = PIL.Image.fromarray(pixels)
        return self._cut(image, corner[0] + left, corner[1] + top, *window)

    def _cut(self, image, left, top, width, height):
        crop = image.crop((left, top, left + width, top + height))
        return crop.resize((self.size[1], self.size[0]), self.resample)


@contextlib.contextmanager
def seeded(key):
    """Python's, NumPy's and PyTorch's generators, as the key says, and afterwards as they were."""
    states = random.getstate(), np.random.get_state(), torch.default_generator.get_state()
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest(), "little")
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPUs too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.default_generator.set_state(states[2])


def timm(module):
    """A module of ``timm.data``. Raises ``TrainingError`` where timm is missing."""
    try:
        return importlib.import_module(f"timm.data.{module}")
    except ImportError as error:
        raise TrainingError(
            'RandAugment and random erasing are timm\'s: pip install "hgnetv2-hf[timm]", or pass --rand-augment none '
            "--random-erasing 0."
        ) from error
