"""Reads the architecture off the tensors: every width, depth and kernel size, not only those of the named variants."""

import re

from ..errors import ConversionError
from ..model.variants import STAGE_FIELDS, VARIANTS, Stage, architecture_fields
from .ml_decoder import SIGNATURE, decoder_fields


def recognise_architecture(tensors):
    """
    Args:
        tensors (`dict[str, torch.Tensor]`): the network's tensors under their Transformers names.

    Returns:
        `dict`: the configuration fields that the tensors show: widths, depths, kernel sizes, LAB, head, class count.

    Raises:
        `ConversionError`: a tensor that shows a width is missing or has the wrong number of dimensions.
    """
    shape = Shapes(tensors)
    stages = [_stage(shape, index) for index in range(shape.count("encoder.stages"))]
    if not stages:
        raise ConversionError("The file holds no stages of an HGNetV2 (no tensor stages.0.…).")
    if sum(stage.num_blocks * (stage.num_layers + 2) for stage in stages) > len(tensors):
        raise ConversionError("Tensors are missing: the first blocks have more layers than the file has tensors for.")
    stem_channels = [shape.width_in("embedder.stem1"), shape.width("embedder.stem1"), shape.width("embedder.stem4")]
    fields = {
        "num_channels": stem_channels[0],
        "stem_channels": stem_channels,
        "use_learnable_affine_block": any(name.endswith(".lab.scale") for name in tensors),
        **{field: list(column) for field, column in zip(STAGE_FIELDS, zip(*stages))},
    }
    if "fc.weight" in tensors or SIGNATURE in tensors:
        fields.update(decoder_fields(shape) if SIGNATURE in tensors else {"num_labels": shape.of("fc.weight", 2)[0]})
        fields["use_last_conv"] = "last_conv.weight" in tensors
        if fields["use_last_conv"]:
            fields["class_expand"] = shape.of("last_conv.weight", 4)[0]
    return fields


def name_variant(fields):
    """The published variant with these widths and depths, or ``None``."""
    for name in VARIANTS:
        expected = architecture_fields(name)
        if all(fields[field] == value for field, value in expected.items()):
            return name
    return None


def _stage(shape, index):
    stage = f"encoder.stages.{index}"
    block = f"{stage}.blocks.0"
    num_layers = shape.count(f"{block}.layers")
    light = any(name.startswith(f"{block}.layers.0.conv1.") for name in shape.tensors)
    first = f"{block}.layers.0.conv1" if light else f"{block}.layers.0"
    kernel = f"{block}.layers.0.conv2" if light else first
    return Stage(
        in_channels=shape.width_in(first),
        mid_channels=shape.width(first),
        out_channels=shape.width(f"{block}.aggregation.1"),
        num_blocks=shape.count(f"{stage}.blocks"),
        downsample=f"{stage}.downsample.convolution.weight" in shape.tensors,
        light_block=light,
        kernel_size=shape.of(f"{kernel}.convolution.weight", 4)[-1],
        num_layers=num_layers,
    )


class Shapes:
    """Asks a file for shapes; what is missing or of another shape is a sentence."""

    def __init__(self, tensors):
        self.tensors = tensors

    def of(self, name, dimensions):
        if name not in self.tensors:
            raise ConversionError(f"The tensor {name} is missing.")
        shape = list(self.tensors[name].shape)
        if len(shape) != dimensions:
            raise ConversionError(f"The tensor {name} has shape {shape}; expected {dimensions} dimensions.")
        if not all(shape):
            raise ConversionError(f"The tensor {name} has shape {shape}: it is empty.")
        return shape

    def width(self, layer):
        return self.of(f"{layer}.convolution.weight", 4)[0]

    def width_in(self, layer):
        return self.of(f"{layer}.convolution.weight", 4)[1]

    def count(self, prefix):
        """How many children ``prefix.0``, ``prefix.1``, … the file holds."""
        pattern = re.compile(re.escape(prefix) + r"\.(\d{1,4})\.")
        found = {int(match[1]) for match in map(pattern.match, self.tensors) if match}
        missing = set(range(max(found, default=-1) + 1)) - found
        if missing:
            raise ConversionError(
                f"Tensors are missing: there is no {prefix}.{min(missing)}, but a {prefix}.{max(found)}."
            )
        return len(found)
