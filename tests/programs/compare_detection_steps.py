"""What a step of a detector's training costs, and how long it waits for data.

python tests/programs/compare_detection_steps.py [--model dfine-n] [--pixels 640] [--images 4] [--rounds 5]

Steps (forward, loss, backward) of stock Transformers' loss and of the original's, in turn in one run, on the
same model, images and labels. Then a training loop with augmented JPEG files of 640×480 pixels, of
which the time without an image at hand is measured.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL.Image
import torch

from hgnetv2_hf.data.class_folders import ImageFiles
from hgnetv2_hf.data.detection import DetectionSplit, Objects
from hgnetv2_hf.training import detection_losses
from hgnetv2_hf.training.detection.architectures import build_detector
from hgnetv2_hf.training.detection.augmentation import DetectionAugmentation
from hgnetv2_hf.training.detection.examples import DetectionCollator, DetectionDataset


OBJECTS = 10  # in each image


def timed(step, model):
    model.zero_grad()
    start = time.perf_counter()
    step().backward()
    return time.perf_counter() - start


def compare(model, arguments):
    pixel_values = torch.rand(arguments.images, 3, arguments.pixels, arguments.pixels)
    targets = [
        {"labels": torch.randint(0, 80, (OBJECTS,)), "boxes": torch.rand(OBJECTS, 4) * 0.3 + 0.3}
        for _ in range(arguments.images)
    ]
    labels = [{"class_labels": each["labels"], "boxes": each["boxes"]} for each in targets]
    steps = {
        "Transformers' loss": lambda: model(pixel_values=pixel_values, labels=labels).loss,
        "the original's loss": lambda: sum(detection_losses(model, pixel_values, targets).values()),
    }
    seconds = {name: [] for name in steps}
    for index in range(arguments.rounds + 1):
        for name, step in steps.items():
            elapsed = timed(step, model)
            if index:  # the first of each warms up
                seconds[name].append(elapsed)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name}: {value * 1000:.0f} ms a step")
    ours, stock = medians["the original's loss"], medians["Transformers' loss"]
    print(f"ratio: {ours / stock:.2f}")


def _total(model, batch):
    return sum(detection_losses(model, batch["pixel_values"], batch["labels"]).values())


def waiting(model, arguments):
    random, count = np.random.RandomState(0), arguments.images * (arguments.rounds + 2)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.jpg" for index in range(count)]
        for path in paths:
            small = PIL.Image.fromarray(random.randint(0, 255, (30, 40, 3), dtype="uint8"))
            small.resize((640, 480), PIL.Image.Resampling.BICUBIC).save(path, quality=90)
        corners = random.uniform(0, 300, (count, OBJECTS, 2))
        boxes = np.concatenate([corners, corners + random.uniform(20, 180, (count, OBJECTS, 2))], -1)
        objects = [Objects(each, np.arange(OBJECTS), np.zeros(OBJECTS, bool), np.ones(OBJECTS)) for each in boxes]
        size = (arguments.pixels, arguments.pixels)
        dataset = DetectionDataset(DetectionSplit(ImageFiles(paths), objects), DetectionAugmentation(size), 0, 1)
        loader = torch.utils.data.DataLoader(
            dataset, arguments.images, collate_fn=DetectionCollator(None, 1), num_workers=1
        )
        waited = worked = 0.0
        batches = iter(loader)
        next(batches)  # the worker's start
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            if batch is None:
                break
            middle = time.perf_counter()
            timed(
                lambda batch=batch: sum(detection_losses(model, batch["pixel_values"], batch["labels"]).values()),
                model,
            )
            waited, worked = waited + middle - start, worked + time.perf_counter() - middle
    print(f"waiting for data: {waited / (waited + worked):.1%} of the time, with one worker")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="dfine-n")
    parser.add_argument("--pixels", type=int, default=640)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    detector = build_detector(arguments.model, num_labels=80, anchor_image_size=None).train()
    compare(detector, arguments)
    waiting(detector, arguments)
