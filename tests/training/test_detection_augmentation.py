"""What detectors learn from: boxes follow the pixels, randomness is a function of a key, nothing else is changed."""

import random

import numpy as np
import PIL.Image
import pytest
import torch
import transformers

from hgnetv2_hf.data.detection import DetectionSplit, Objects
from hgnetv2_hf.training.detection.augmentation import DetectionAugmentation, mosaic
from hgnetv2_hf.training.detection.examples import (
    DetectionCollator,
    DetectionDataset,
    EvaluationDataset,
    Stages,
    mix,
)


pytest.importorskip("torchvision", reason="comes with the extra [detection]")
SIZE = (96, 96)


def objects(*boxes, crowd=None):
    boxes = np.array(boxes, dtype="float64").reshape(-1, 4)
    flags = np.zeros(len(boxes), dtype=bool) if crowd is None else np.array(crowd)
    return Objects(boxes, np.arange(len(boxes)), flags, (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


def picture(size=(120, 90), box=(30, 20, 80, 60)):
    image = PIL.Image.new("RGB", size, (0, 0, 60))
    image.paste((250, 250, 0), box)
    return image, objects(box)


def test_boxes_follow_the_pixels():
    image, what = picture()
    augmentation, seen = DetectionAugmentation(SIZE), 0
    for epoch in range(60):
        drawn, found = augmentation.drawn(image, what, (0, epoch, 0))
        if not len(found):
            continue
        pixels = np.asarray(drawn).astype(int)
        bright = pixels.max(-1) > 110  # no colour distortion makes the ground so bright, or the box so dark
        if not bright.any():
            continue
        rows, columns = np.flatnonzero(bright.any(1)), np.flatnonzero(bright.any(0))
        extent = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        assert np.abs(found.boxes[0] - extent).max() <= 2.0, (epoch, found.boxes[0], extent)
        seen += 1
    assert seen >= 45


def test_the_same_key_gives_the_same_bits_and_the_generators_stay_as_they_were():
    image, what = picture()
    augmentation = DetectionAugmentation(SIZE)
    first = [augmentation(image, what, (0, 0, index)) for index in range(8)]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    second = [augmentation(image, what, (0, 0, index)) for index in range(8)]
    assert torch.equal(states[0], torch.get_rng_state()) and random.getstate() == states[2]
    assert (np.random.get_state()[1] == states[1]).all()
    for one, other in zip(first, second):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1]["boxes"], other[1]["boxes"])
    assert any(not torch.equal(first[0][0], other[0]) for other in first[1:])


def test_without_strong_augmentation_an_image_is_what_the_image_processor_makes_of_it():
    image = PIL.Image.fromarray(np.random.RandomState(0).randint(0, 255, (90, 120, 3), dtype="uint8"))
    processor = transformers.RTDetrImageProcessor(size={"height": 96, "width": 96}, do_normalize=False, do_pad=False)
    plain = DetectionAugmentation.for_processor(processor, SIZE, photometric=0, zoom_out=0, crop=0, flip=0)
    ours, targets = plain(image, objects((0, 0, 60, 45)), (0, 0, 0))
    split = DetectionSplit([image], [objects()])
    theirs = EvaluationDataset(split, processor)[0]
    assert theirs["size"] == (90, 120)
    assert (ours - theirs["pixel_values"]).abs().max() <= 2.5 / 255  # two levels: torchvision's resize against PIL's
    np.testing.assert_allclose(targets["boxes"], [[0.25, 0.25, 0.5, 0.5]], atol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (3, 500), (500, 3), (2000, 1500)])
def test_odd_images_and_images_without_objects_are_data(size):
    image = PIL.Image.new("RGB", size)
    for index in range(6):
        pixels, targets = DetectionAugmentation(SIZE)(image, objects(), (0, 0, index))
        assert pixels.shape == (3, *SIZE) and targets["boxes"].shape == (0, 4) and len(targets["labels"]) == 0
    processor = transformers.RTDetrImageProcessor(size={"height": 96, "width": 96}, do_normalize=False, do_pad=False)
    assert EvaluationDataset(DetectionSplit([image], [objects()]), processor)[0]["pixel_values"].shape == (3, *SIZE)


def test_a_crowd_is_not_learnt_from():
    image, _ = picture()
    what = objects((10, 10, 50, 50), (30, 20, 80, 60), crowd=[True, False])
    _, targets = DetectionAugmentation(SIZE, crop=0, zoom_out=0)(image, what, (0, 0, 0))
    assert targets["labels"].tolist() == [1]


def test_the_strong_augmentation_ends_at_its_epoch():
    image, what = picture()
    dataset = DetectionDataset(DetectionSplit([image], [what]), DetectionAugmentation(SIZE, flip=0), 0, Stages(2))
    views = []
    for epoch in range(6):
        dataset.start_epoch(epoch)
        views.append(dataset[0]["pixel_values"])
    assert not torch.equal(views[0], views[1]) and all(torch.equal(views[2], view) for view in views[3:])


@pytest.mark.parametrize("strong_until", [0, 1])
def test_what_is_drawn_is_what_the_first_epoch_learns_from(strong_until):
    image, what = picture()
    split = DetectionSplit([image] * 6, [what] * 6, list(range(6)))
    dataset = DetectionDataset(split, DetectionAugmentation(SIZE), seed=0, stages=Stages(strong_until))
    for index in range(6):
        drawn, found = dataset.drawn(index)
        learnt = dataset[index]
        assert len(found) == len(learnt["labels"]["boxes"])
        pixels = torch.from_numpy(np.array(drawn)).permute(2, 0, 1) / 255
        assert torch.allclose(pixels, learnt["pixel_values"], atol=1 / 255 + 1e-6)


def test_in_a_mosaic_boxes_follow_the_pixels_too():
    """Four images of different sizes with a box of a colour of its own each."""
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    samples = []
    for index, (colour, size) in enumerate(zip(colours, [(120, 90), (90, 120), (200, 60), (64, 64)])):
        box = tuple(round(side * share) for share in (0.3, 0.6) for side in size)
        image = PIL.Image.new("RGB", size, (40, 40, 40))
        image.paste(colour, box)
        what = objects(box)
        samples.append((image, Objects(what.boxes, np.array([index]), what.crowd, what.areas)))
    seen = 0
    for key in range(40):
        image, found = mosaic(samples, SIZE, (key,))
        pixels = np.asarray(image).astype(int)
        for box, label in zip(found.boxes, found.labels):
            near = np.abs(pixels - np.array(colours[label])).max(-1) < 60
            at_the_edge = min(box[:2]) <= 0 or box[2] >= image.width or box[3] >= image.height
            if not near.any() or at_the_edge:  # where a turned rectangle is cut off, its box is not
                continue
            rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
            inside = columns[0] >= box[0] - 2 and rows[0] >= box[1] - 2
            inside = inside and columns[-1] + 1 <= box[2] + 2 and rows[-1] + 1 <= box[3] + 2
            # A turned rectangle's box is larger than what is seen of it, and touches it on every side.
            assert inside and max(columns[0] - box[0], box[2] - columns[-1] - 1) <= 4, (key, label, box)
            seen += 1
    assert seen > 50
    one, other = (mosaic(samples, SIZE, (5,)) for _ in range(2))
    assert np.array_equal(one[0], other[0]) and np.array_equal(one[1].boxes, other[1].boxes)


def test_mosaics_and_mixtures_begin_and_end_at_their_epochs():
    split = DetectionSplit([picture()[0]] * 4, [picture()[1]] * 4, list(range(4)))
    stages = Stages(until=4, start=1, dense_until=3)
    dataset = DetectionDataset(split, DetectionAugmentation(SIZE), 0, stages, mosaic=1.0)
    collate = DetectionCollator(None, stages, mixup=1.0)
    counts = []
    for epoch in range(5):
        dataset.start_epoch(epoch)
        batch = collate([dataset[index] for index in range(4)])
        counts.append([len(each["boxes"]) for each in batch["labels"]])
    # One object in an image; four images in one, of which the affine transform moves some out; and two of these mixed.
    assert counts[0] == counts[4] == [1] * 4 and max(counts[3]) <= 1
    assert min(counts[1]) > 2 and max(counts[1]) > 4 and min(counts[2]) > 2


def test_a_mixture_is_each_image_with_the_one_before_and_the_objects_of_both():
    pixel_values = torch.rand(3, 3, 8, 8)
    labels = [
        {"labels": torch.tensor([index] * index), "boxes": torch.full((index, 4), 0.1 * index)} for index in range(3)
    ]
    mixed, both = mix(pixel_values, labels, 0.45)
    assert torch.allclose(mixed[0], 0.45 * pixel_values[0] + 0.55 * pixel_values[2])
    assert [each["labels"].tolist() for each in both] == [[2, 2], [1], [2, 2, 1]]
    assert [len(each["boxes"]) for each in both] == [2, 1, 3]
