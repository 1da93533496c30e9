"""Data sets of the ``datasets`` library that are read from front to back and never as a whole."""

import dataclasses
import itertools
from typing import Any

import torch

from ..files.images import UNREADABLE
from .decoding import decode


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images with labels, in the order in which they come."""

    dataset: Any  # `datasets.IterableDataset`
    image_column: str
    label_column: str
    label_index: dict  # from what the label column holds to the index of the class
    unreadable: torch.Tensor = dataclasses.field(
        default_factory=lambda: torch.zeros((), dtype=torch.int64).share_memory_()
    )  # how many images could not be read; in memory that workers share

    def renumbered(self, order):
        """The same stream; class `i` becomes ``order[i]``."""
        label_index = {value: order[index] for value, index in self.label_index.items()}
        return dataclasses.replace(self, label_index=label_index)

    def rows(self, epoch):
        """(key, image, index of its class) of an epoch, a worker's share of them; images that cannot be read are
        counted."""
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
                self.unreadable.add_(1)
                continue
            if row[self.label_column] in self.label_index:  # -1: the test splits of many data sets
                yield (epoch, worker_id, position), image, self.label_index[row[self.label_column]]


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
