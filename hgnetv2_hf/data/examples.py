"""What data loaders hand to a model: examples and batches of `pixel_values` and, where there are any, `labels`."""

import torch

from ..errors import DataError
from ..files.images import UNREADABLE
from ..wording import sentence


class ImageDataset(torch.utils.data.Dataset):
    """The examples of a [`Split`].

    `transform(image, key)` gets a key that is a function of seed, epoch and image. The epoch lies in shared memory, so
    that workers that outlive an epoch see it.
    """

    def __init__(self, split, transform, seed=0):
        self.split, self.transform, self.seed = split, transform, seed
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def start_epoch(self, epoch):
        self._epoch.fill_(epoch)

    def __len__(self):
        return len(self.split)

    def __getitem__(self, index):
        image = read_image(self.split.images, index)
        example = {"pixel_values": self.transform(image, (self.seed, int(self._epoch), int(index)))}
        if self.split.labels is not None:
            example["labels"] = self.split.labels[index]
        return example


def read_image(images, index):
    """An image of a split, decoded. Raises ``DataError`` where it cannot be read."""
    try:
        return images[index]
    except UNREADABLE as error:
        raise DataError(f"{images.name(index)} cannot be read: {sentence(error)}") from error


def collate(examples):
    """A batch, its images channels-last in memory."""
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    batch = {"pixel_values": pixel_values.contiguous(memory_format=torch.channels_last)}
    if "labels" in examples[0]:
        batch["labels"] = torch.tensor([example["labels"] for example in examples])
    return batch
