"""What data loaders hand to a detector: examples and batches of `pixel_values` and what is in the images."""

import random

import torch

from ...data.examples import read_image


class DetectionDataset(torch.utils.data.Dataset):
    """
    Augmented training images of a [`DetectionSplit`]. The epoch lies in shared memory, so that workers that outlive an
    epoch see it.

    Args:
        split ([`DetectionSplit`])
        augmentation ([`DetectionAugmentation`])
        seed (`int`)
        strong_until (`int`): the first epoch without the strong augmentation.
    """

    def __init__(self, split, augmentation, seed, strong_until):
        self.split, self.seed, self.strong_until = split, seed, strong_until
        self.strong, self.weak = augmentation, augmentation.weak()
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def start_epoch(self, epoch):
        self._epoch.fill_(epoch)

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        epoch = int(self._epoch)
        example = self._example(index, epoch)
        pixel_values, labels = self._augmentation(epoch)(*example)
        return {"pixel_values": pixel_values, "labels": labels, "key": example[-1]}

    def drawn(self, index):
        """An image as it is learnt from in the first epoch, and its [`Objects`]."""
        example = self._example(index, epoch=0)
        return self._augmentation(epoch=0).drawn(*example)

    def _example(self, index, epoch):
        return read_image(self.split.images, index), self.split.objects[index], (self.seed, epoch, int(index))

    def _augmentation(self, epoch):
        return self.strong if epoch < self.strong_until else self.weak


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
    ``src/data/dataloader.py``.

    Args:
        sizes (`list[int]` or `None`): pixels per side to choose from; ``None`` for that of the images.
        strong_until (`int`): the first epoch without the choice.
    """

    def __init__(self, sizes, strong_until):
        self.sizes, self.strong_until = sizes, strong_until

    def __call__(self, examples):
        pixel_values = torch.stack([example["pixel_values"] for example in examples])
        key = examples[0]["key"]  # what is random is a function of it
        if self.sizes is not None and key[1] < self.strong_until:
            size = random.Random(repr(key)).choice(self.sizes)
            pixel_values = torch.nn.functional.interpolate(pixel_values, size=size)
        return {
            "pixel_values": pixel_values.contiguous(memory_format=torch.channels_last),
            "labels": [example["labels"] for example in examples],
        }


def collate_evaluation(examples):
    """Batches of validation images, with `sizes` `(images, 2)`, height and width, and `image_index` `(images,)`."""
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    return {
        "pixel_values": pixel_values.contiguous(memory_format=torch.channels_last),
        "sizes": torch.tensor([example["size"] for example in examples]),
        "image_index": torch.tensor([example["image_index"] for example in examples]),
    }
