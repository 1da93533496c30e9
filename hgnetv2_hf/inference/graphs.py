"""What is exported: a model, folded, from pixels to named tensors; which sizes stay open; what it is compared on."""

import contextlib
import copy
import dataclasses
import math
from typing import Optional

import torch
from torch import nn

from ..errors import ExportError
from ..evaluation.boxes import surest_boxes
from ..wording import sentence
from .detections import END_TO_END
from .folding import FoldedConvLayer, fold
from .late_boxes import box_chosen_places
from .tracing import open_shapes


_STRIDE = 32  # sides of a detector's images are multiples of it
_LARGEST = 1e30  # what no value of a network reaches; ncnn does not read float32's largest number
_FIXED = ("litert", "ncnn", "coreml")  # whose graphs take one batch and size
_EXECUTORCH_MAXIMUM = {"batch": 8, "side": 512}  # its memory is planned for the largest input


@dataclasses.dataclass(frozen=True)
class Shapes:
    """What the graph takes; `None` stays open."""

    batch_size: Optional[int] = None
    image_size: Optional[tuple[int, int]] = None  # height, width
    largest_batch: Optional[int] = None
    largest_side: Optional[int] = None
    multiple: int = 1  # of which sides are

    def __str__(self):
        count = f"1 to {self.largest_batch}" if self.largest_batch else "any number of"
        count = count if self.batch_size is None else str(self.batch_size)
        if self.image_size is not None:
            return f"{count} images of {self.image_size[0]}×{self.image_size[1]}"
        if self.largest_side:
            return f"{count} images of up to {self.largest_side}×{self.largest_side}"
        return f"{count} images, any size" + (f" in multiples of {self.multiple}" if self.multiple > 1 else "")


def shapes_of(graph, format, batch_size, image_size, processor=None):
    """[`Shapes`] of an export with these options, `None` where one is left open."""
    if format in _FIXED:
        batch_size = batch_size or 1
        crop = getattr(processor, "crop_size", None) or {}
        image_size = image_size or ((crop["height"], crop["width"]) if {"height", "width"} <= set(crop) else None)
        if image_size is None:
            raise ExportError(f"A graph for {format} takes images of one size; say which with --image-size H W.")
        if batch_size > 1 and format == "ncnn":
            raise ExportError("A graph for ncnn takes one image; leave --batch-size out.")
    if image_size is not None and graph.is_detector and any(side % _STRIDE for side in image_size):
        raise ExportError(
            f"Images of {image_size[0]}×{image_size[1]} do not fit this detector: height and width are multiples of "
            f"{_STRIDE}."
        )
    image_size = None if image_size is None else tuple(image_size)
    limits = {}
    if format == "executorch":
        limits = {
            "largest_batch": _EXECUTORCH_MAXIMUM["batch"] if batch_size is None else None,
            "largest_side": _EXECUTORCH_MAXIMUM["side"] if image_size is None else None,
        }
    return Shapes(batch_size, image_size, multiple=_STRIDE if graph.is_detector else 1, **limits)


class Graph(nn.Module):
    """A model from pixels to a flat tuple of named tensors, the original and its folded form."""

    input_names = ["pixel_values"]

    def __init__(self, model, folded=True):
        super().__init__()
        self._original = (model,)  # no part of the module, or it would be traced along
        self.model = copy.deepcopy(model)
        if folded:
            fold(self.model)
            box_chosen_places(self.model)
        self.is_detector = "ForObjectDetection" in type(model).__name__
        if self.is_detector:
            self.names = ["logits", "pred_boxes"]
        elif hasattr(model, "out_features"):
            self.names = list(model.out_features)
        else:
            self.names = ["logits"] if hasattr(model, "fc") else ["last_hidden_state", "pooler_output"]
        for layer in self.modules():
            if isinstance(layer, FoldedConvLayer) and layer.minimum != 0.0 and not layer.clamps_nothing:
                # OpenVINO joins a clamp to the convolution if it has both bounds.
                layer.minimum, layer.maximum = max(layer.minimum, -_LARGEST), min(layer.maximum, _LARGEST)
            if getattr(layer, "pool_padding", None) == -math.inf:  # ncnn reads no infinity
                layer.pool_padding = -_LARGEST

    def forward(self, pixel_values):
        return self.outputs(self.model, pixel_values)

    def outputs(self, model, pixel_values):
        output = model(pixel_values, return_dict=True)
        if hasattr(output, "feature_maps"):
            return tuple(output.feature_maps)
        return tuple(output[name] for name in self.names)

    @property
    def original(self):
        return self._original[0]


class PostProcessing(nn.Module):
    """A detector's outputs and the images' sizes to `labels`, `boxes` and `scores`, the surest first."""

    names = list(END_TO_END)
    input_names = ["logits", "pred_boxes", "sizes"]

    def forward(self, logits, pred_boxes, sizes):
        scores, labels, boxes = surest_boxes(logits, pred_boxes, sizes, logits.shape[1])
        return labels, boxes, scores


def samples_of(graph, shapes, processor):
    """Inputs to compare with, the first to trace with: of two batch sizes and several sizes where they are open."""
    config = graph.original.config
    sizes = _detector_sizes(config, processor) if graph.is_detector else _sizes(processor)
    if shapes.image_size is not None:
        sizes = [(batch, *shapes.image_size) for batch, _, _ in sizes]
    if shapes.batch_size is not None:
        sizes = [(shapes.batch_size, *size) for _, *size in sizes]
    return _random(config, sizes)


def _random(config, sizes):
    generator = torch.Generator().manual_seed(0)
    channels = getattr(config, "num_channels", 3)
    return [
        torch.randn(batch, channels, height, width, generator=generator)
        for batch, height, width in dict.fromkeys(sizes)
    ]


def _sizes(processor):
    sizes = [(2, 224, 256), (3, 192, 160)]
    crop = getattr(processor, "crop_size", None)
    return sizes if crop is None else [*sizes, (1, crop["height"], crop["width"])]


def _detector_sizes(config, processor):
    own = getattr(processor, "size", None) or {}
    if "height" not in own or "width" not in own:
        raise ExportError("The detector's folder has no image processor with a height and a width to export for.")
    return [*_small_detector_sizes(config), (1, own["height"], own["width"])]


def _small_detector_sizes(config):
    """A lying one and an upright one, with at least as many places as there are queries."""
    side = 3 * _STRIDE
    while sum((side // stride) ** 2 for stride in config.feat_strides) < config.num_queries:
        side += _STRIDE
    return [(2, side, side + _STRIDE), (1, side + 2 * _STRIDE, side)]


def small_samples(graph):
    """As [`samples_of`], of a model without an image processor."""
    config = graph.original.config
    return _random(config, _small_detector_sizes(config) if graph.is_detector else _sizes(None))


def trace(graph, sample, shapes):
    """
    The graph as PyTorch's exporter sees it, with open batch and size where they are open.

    Args:
        graph ([`Graph`])
        sample (`torch.Tensor`): `(batch, channels, height, width)`.
        shapes ([`Shapes`])

    Raises:
        `ExportError`: PyTorch cannot trace this model.
    """
    hint = torch.export.Dim.AUTO if shapes.largest_side or shapes.largest_batch else _dynamic
    batch = {} if shapes.batch_size is not None else {0: hint(min=1, max=shapes.largest_batch)}
    side = {"min": 32, "max": shapes.largest_side}
    sides = {} if shapes.image_size is not None else {2: hint(**side), 3: hint(**side)}
    prepared = open_shapes(graph.model) if graph.is_detector else contextlib.nullcontext()
    with prepared:
        return _traced(graph, (sample,), {"pixel_values": {**batch, **sides}})


def trace_post_processing(graph, sample, shapes, processing=PostProcessing):
    """The same for what is computed behind this graph."""
    with torch.no_grad():
        outputs = graph(sample)
    further = (torch.tensor([[480, 640]] * len(sample)),) if "sizes" in processing.input_names else ()
    batch = {} if shapes.batch_size is not None else {0: _dynamic()}
    return _traced(processing(), (*outputs, *further), dict.fromkeys(processing.input_names, batch))


def _traced(module, arguments, dynamic_shapes):
    try:
        with torch.no_grad():
            return torch.export.export(module, arguments, dynamic_shapes=dynamic_shapes, strict=False)
    except Exception as error:
        raise ExportError(f"PyTorch cannot trace this model: {sentence(error)[:300]}") from error


def _dynamic(**_):
    return torch.export.Dim.DYNAMIC
