# ruff: noqa
# fmt: off
"""Model outputs and targets made of seeded NumPy numbers: nothing of them has to be stored. Needs NumPy only."""

import numpy as np

CASES = {"several": (11, (5, 0, 1)), "empty": (12, (0, 0)), "one": (13, (1,)), "crowd": (14, (12, 3))}  # name -> seed, boxes per image


def targets(random, counts, num_classes=80):
    """Per image: int64 labels and float64 boxes as cx, cy, w, h in 0...1 (inside the image)."""
    result = []
    for count in counts:
        size = random.uniform(0.05, 0.6, (count, 2))
        centre = size / 2 + random.uniform(0, 1, (count, 2)) * (1 - size)
        result.append({"labels": random.randint(0, num_classes, count).astype("int64"), "boxes": np.concatenate([centre, size], 1)})
    return result


def boxes_near(random, target, queries):
    """Half of the predictions near an object (so that overlaps are not all zero), some of them reaching out of the image."""
    boxes = np.concatenate([random.uniform(0, 1, (queries, 2)), random.uniform(0.02, 0.7, (queries, 2))], 1)
    for query in range(0, queries, 2):
        if len(target["boxes"]):
            near = target["boxes"][(query // 2) % len(target["boxes"])]
            boxes[query] = near + random.normal(0, 0.25, 4) * np.tile(near[2:], 2)
    boxes[:, 2:] = np.abs(boxes[:, 2:]) + 1e-3
    return boxes


def outputs(seed, counts, layers, dn_queries, corners, num_classes=80, queries=40, bins=33):
    """``(targets, arrays)``. Arrays, all float64, drawn in this order:

    class (layers + 1, images, dn_queries + queries, num_classes) and box (..., 4): first the "pre" entry, then the layers (the entry 0 is
    there for RT-DETRv2, too, and unused there); corners (layers, images, ..., 4 * bins); ref (images, ..., 4), one for all layers;
    enc_class, enc_box (images, queries, ...).
    """
    random = np.random.RandomState(seed)
    made = targets(random, counts, num_classes)
    total = dn_queries + queries
    logits, boxes, ref = [], [], []
    for layer in range(layers + 1):
        logits.append(random.normal(-2, 1.5, (len(counts), total, num_classes)))
        boxes.append(np.stack([boxes_near(random, target, total) for target in made]))
    arrays = {"class": np.stack(logits), "box": np.stack(boxes)}
    if corners:
        arrays["corners"] = np.cumsum(random.normal(0, 1, (layers, len(counts), total, 4 * bins)), 0)
        arrays["ref"] = np.stack([boxes_near(random, target, total) for target in made])
    arrays["enc_class"] = random.normal(-2, 1.5, (len(counts), queries, num_classes))
    arrays["enc_box"] = np.stack([boxes_near(random, target, queries) for target in made])
    return made, arrays
