"""Reads the architecture off the tensors: every width, depth and kernel size, not only those of the named variants."""

import re

from ..errors import ConversionError
from ..model.variants import (
    ALL_VARIANTS,
    PP_HGNET_STAGE_FIELDS,
    STAGE_FIELDS,
    PPHGNetStage,
    Stage,
    architecture_fields,
)
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
    fields = _pp_hgnet_trunk(shape) if "embedder.stem.0.convolution.weight" in tensors else _trunk(shape)
    if "fc.weight" in tensors or SIGNATURE in tensors:
        fields.update(decoder_fields(shape) if SIGNATURE in tensors else {"num_labels": shape.of("fc.weight", 2)[0]})
        fields["has_keras_head"] = "last_conv.convolution.weight" in tensors
        convolution = "last_conv.convolution.weight" if fields["has_keras_head"] else "last_conv.weight"
        fields["use_last_conv"] = convolution in tensors
        if fields["use_last_conv"]:
            fields["class_expand"] = shape.of(convolution, 4)[0]
    return fields


def is_pp_hgnet(fields):
    """Whether these fields are those of PP-HGNet, which has no LAB."""
    return "use_learnable_affine_block" not in fields


def _trunk(shape):
    stages = _stages(shape, _stage)
    stem_channels = [shape.width_in("embedder.stem1"), shape.width("embedder.stem1"), shape.width("embedder.stem4")]
    return {
        "num_channels": stem_channels[0],
        "stem_channels": stem_channels,
        "use_learnable_affine_block": any(name.endswith(".lab.scale") for name in shape.tensors),
        **{field: list(column) for field, column in zip(STAGE_FIELDS, zip(*stages))},
    }


def _pp_hgnet_trunk(shape):
    stages = _stages(shape, _pp_hgnet_stage)
    layers = [f"embedder.stem.{index}" for index in range(shape.count("embedder.stem"))]
    stem_channels = [shape.width_in(layers[0]), *map(shape.width, layers)]
    return {
        "num_channels": stem_channels[0],
        "stem_channels": stem_channels,
        **{field: list(column) for field, column in zip(PP_HGNET_STAGE_FIELDS, zip(*stages))},
    }


def _stages(shape, stage):
    stages = [stage(shape, index) for index in range(shape.count("encoder.stages"))]
    if not stages:
        raise ConversionError("The file holds no stages of an HGNetV2 (no tensor stages.0.…).")
    if sum(stage.num_blocks * (stage.num_layers + 2) for stage in stages) > len(shape.tensors):
        raise ConversionError("Tensors are missing: the first blocks have more layers than the file has tensors for.")
    return stages


def name_variant(fields):
    """The published variant with these widths and depths, or ``None``."""
    for name in ALL_VARIANTS:
        if all(fields.get(field) == value for field, value in architecture_fields(name).items()):
            return name
    return None


def missing_in_paddleclas(config):
    """Why PaddleClas's classes cannot build a network of this configuration, in words; ``None`` where they can."""
    if config.hidden_act != "relu" or not config.has_default_strides():
        return "these strides or this activation"
    if config.model_type == "pp_hgnet" and config.num_channels != 3:
        return f"images of {config.num_channels} channels"
    if config.model_type == "pp_hgnet" and len(set(config.stage_numb_of_layers)) > 1:
        return "stages with different numbers of layers"
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


def _pp_hgnet_stage(shape, index):
    stage = f"encoder.stages.{index}"
    block = f"{stage}.blocks.0"
    return PPHGNetStage(
        in_channels=shape.width_in(f"{block}.layers.0"),
        mid_channels=shape.width(f"{block}.layers.0"),
        out_channels=shape.width(f"{block}.aggregation.0"),
        num_blocks=shape.count(f"{stage}.blocks"),
        downsample=f"{stage}.downsample.convolution.weight" in shape.tensors,
        num_layers=shape.count(f"{block}.layers"),
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
