"""What data loaders hand to a detector: examples and batches of `pixel_values` and what is in the images."""

import random
from typing import NamedTuple

import torch

from ...data.examples import read_image
from .augmentation import mosaic


class Stages(NamedTuple):
    """The epochs of a training: from ``start`` on the strong augmentation, until ``until``; Mosaic and MixUp from
    ``start`` until ``dense_until``."""

    until: int
    start: int = 0
    dense_until: int = 0

    def is_strong(self, epoch):
        return self.start <= epoch < self.until

    def is_dense(self, epoch):
        return self.start <= epoch < self.dense_until


class DetectionDataset(torch.utils.data.Dataset):
    """
    Augmented training images of a [`DetectionSplit`]. The epoch lies in shared memory, so that workers that outlive an
    epoch see it.

    Args:
        split ([`DetectionSplit`])
        augmentation ([`DetectionAugmentation`])
        seed (`int`)
        stages ([`Stages`])
        mosaic (`float`, defaults to 0.0): probability that an image and three others are one.
    """

    def __init__(self, split, augmentation, seed, stages, mosaic=0.0):
        self.split, self.seed, self.stages, self.mosaic = split, seed, stages, mosaic
        self.strong, self.weak, self.of_a_mosaic = augmentation, augmentation.weak(), augmentation.of_a_mosaic()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def start_epoch(self, epoch):
        self._epoch.fill_(epoch)

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        augmentation, image, objects, key = self._example(index, int(self._epoch))
        pixel_values, labels = augmentation(image, objects, key)
        return {"pixel_values": pixel_values, "labels": labels, "key": key}

    def drawn(self, index):
        """An image as it is learnt from in the first epoch with all augmentation, and its [`Objects`]."""
        epoch = self.stages.start if self.stages.is_strong(self.stages.start) else 0
        augmentation, image, objects, key = self._example(index, epoch)
        return augmentation.drawn(image, objects, key)

    def _example(self, index, epoch):
        """The augmentation of an epoch, an image, its objects, and what decides everything random."""
        key = (self.seed, epoch, int(index))
        if self.mosaic and self.stages.is_dense(epoch):
            choose = random.Random(repr((*key, "mosaic")))
            if choose.random() < self.mosaic:
                indices = [index, *choose.choices(range(len(self)), k=3)]
                samples = [(read_image(self.split.images, each), self.split.objects[each]) for each in indices]
                return self.of_a_mosaic, *mosaic(samples, self.strong.size, (*key, "mosaic")), key
        augmentation = self.strong if self.stages.is_strong(epoch) else self.weak
        return augmentation, read_image(self.split.images, index), self.split.objects[index], key


class EvaluationDataset(torch.utils.data.Dataset):
    """Validation images of a [`DetectionSplit`] as an image processor prepares them."""

    def __init__(self, split, image_processor):
        self.split, self.image_processor = split, image_processor

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        image = read_image(self.split.images, index)
        pixel_values = self._prepared(image)
        return {"pixel_values": pixel_values, "size": (image.height, image.width), "image_index": int(index)}

    def _prepared(self, image):
        # Said, because the library guesses where the channels are, wrongly for an image of three pixels' width.
        prepared = self.image_processor(images=image, return_tensors="pt", input_data_format="channels_last")
        return prepared["pixel_values"][0]


class DetectionCollator:
    """
    Batches of training images, all of one size that may change from batch to batch, as D-FINE's and RT-DETR's
    ``src/data/dataloader.py``; each mixed with the one before it, as DEIM's ``engine/data/dataloader.py``.

    Args:
        sizes (`list[int]` or `None`): pixels per side to choose from; ``None`` for that of the images.
        stages ([`Stages`]): sizes change until the strong augmentation ends.
        mixup (`float`, defaults to 0.0): probability that a batch is mixed.
    """

    def __init__(self, sizes, stages, mixup=0.0):
        self.sizes, self.stages, self.mixup = sizes, stages, mixup

    def __call__(self, examples):
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        labels = [example["labels"] for example in examples]
        key = examples[0]["key"]  # what is random is a function of it
        choose = random.Random(repr((*key, "mixup")))
        if self.stages.is_dense(key[1]) and choose.random() < self.mixup:
            pixel_values, labels = mix(pixel_values, labels, choose.uniform(*_SHARES))
        if self.sizes is not None and key[1] < self.stages.until:
            size = random.Random(repr(key)).choice(self.sizes)
            pixel_values = torch.nn.functional.interpolate(pixel_values, size=size)
        return {
            "pixel_values": pixel_values.contiguous(memory_format=torch.channels_last),
            "labels": labels,
        }


_SHARES = (0.45, 0.55)  # of an image in a mixture of two


def mix(pixel_values, labels, share):
    """
    Each image mixed with the one before it, and the objects of both.

    Args:
        pixel_values (`torch.Tensor`): `(images, 3, height, width)`.
        labels (`list[dict]`): of each image, `labels` `(n,)` and `boxes` `(n, 4)`.
        share (`float`): of each image itself.

    Returns:
        `tuple[torch.Tensor, list[dict]]`: the same of the mixtures.
    """
    mixed = share * pixel_values + (1 - share) * pixel_values.roll(1, 0)
    before = [*labels[-1:], *labels[:-1]]
    return mixed, [
        {name: torch.cat([own[name], other[name]]) for name in ("labels", "boxes")}
        for own, other in zip(labels, before)
    ]


def collate_evaluation(examples):
    """Batches of validation images, with `sizes` `(images, 2)`, height and width, and `image_index` `(images,)`."""
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    return {
        "pixel_values": pixel_values.contiguous(memory_format=torch.channels_last),
        "sizes": torch.tensor([example["size"] for example in examples]),
        "image_index": torch.tensor([example["image_index"] for example in examples]),
    }
