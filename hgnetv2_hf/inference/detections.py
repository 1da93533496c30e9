"""From a detector's outputs to the objects of an image."""

import inspect
from types import SimpleNamespace

import numpy as np

from ..evaluation.boxes import best_boxes


END_TO_END = ("labels", "boxes", "scores")  # the outputs of a graph with the post-processing inside
SIDES = ("xmin", "ymin", "xmax", "ymax")


def detections_of(processor):
    """
    Args:
        processor: a detector's image processor.

    Returns:
        callable: named outputs (tensors in float32) and the images' sizes (height, width) to a list of dictionaries of
            arrays: `scores` `(n,)`, best first, `labels` `(n,)` and `boxes` `(n, 4)`, left, top, right, bottom in
            pixels.
    """
    own = getattr(processor, "post_process_object_detection", None)
    is_focal = own is None or "use_focal_loss" in inspect.signature(own).parameters  # RT-DETR's, and what uses it

    def choose(outputs, sizes):
        if is_focal:
            found = best_boxes(outputs["logits"], outputs["pred_boxes"], sizes, outputs["logits"].shape[1])
        else:
            found = own(SimpleNamespace(**outputs), threshold=0.0, target_sizes=[tuple(size) for size in sizes])
        found = [{name: each[name].numpy() for name in ("scores", "labels", "boxes")} for each in found]
        order = [np.argsort(-each["scores"], kind="stable") for each in found]
        return [{name: array[rows] for name, array in each.items()} for each, rows in zip(found, order)]

    return choose


def as_objects(found, id2label, threshold, top_k=None):
    """What `pipeline` answers for the detections of one image, those above the threshold, with fractions of pixels."""
    sure = np.flatnonzero(found["scores"] > threshold)[:top_k]
    return [
        {
            "score": float(found["scores"][row]),
            "label": id2label[int(found["labels"][row])],
            "box": dict(zip(SIDES, found["boxes"][row].tolist())),
        }
        for row in sure
    ]
