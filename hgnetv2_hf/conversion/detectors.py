"""Whole detectors: how D-FINE, RT-DETRv2 and PaddleDetection name their tensors.

The names on the right are those of the files that Transformers writes, which are the same in every version.
"""

import re
from typing import NamedTuple

from ..errors import ConversionError
from .layouts import LAYOUTS, rename, split_detector


class Detector(NamedTuple):
    """Renaming rules, applied in order, and what a file holds that its program computes itself."""

    title: str
    model_type: str
    backbone_layout: str
    signature: str  # a tensor that every file of this program holds
    rules: tuple[tuple[str, str], ...]
    computed: tuple[str, ...]  # patterns of tensors that may be dropped
    anchors: str = "decoder.anchors"  # shows the image size, where the file holds it
    is_paddle: bool = False  # linear weights are (in, out), and no class stands for "nothing" among the denoising ones


_ENCODER_LAYER = (
    (r"\.linear([12])\.", r".fc\1."),
    (r"(\.encoder\.\d+\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(\.encoder\.\d+\.layers\.\d+)\.norm2\.", r"\1.final_layer_norm."),
)
_DECODER_LAYER = (
    (r"^decoder\.decoder\.", "model.decoder."),
    (r"\.cross_attn\.", ".encoder_attn."),
    (r"(decoder\.layers\.\d+)\.norm1\.", r"\1.self_attn_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm2\.", r"\1.encoder_attn_layer_norm."),
    (r"(decoder\.layers\.\d+)\.norm3\.", r"\1.final_layer_norm."),
)
_HEADS = (
    (r"^decoder\.dec_score_head\.", "model.decoder.class_embed."),
    (r"^decoder\.dec_bbox_head\.", "model.decoder.bbox_embed."),
    (r"^decoder\.(query_pos_head|pre_bbox_head|up|reg_scale)", r"model.decoder.\1"),
    (r"^decoder\.enc_output\.proj\.", "model.enc_output.0."),
    (r"^decoder\.enc_output\.norm\.", "model.enc_output.1."),
    (r"^decoder\.", "model."),
)
_PROJECTIONS = (
    (r"^encoder\.input_proj\.(\d+)\.conv\.", r"model.encoder_input_proj.\1.0."),
    (r"^encoder\.input_proj\.(\d+)\.norm\.", r"model.encoder_input_proj.\1.1."),
    (r"^decoder\.input_proj\.(\d+)\.conv\.", r"model.decoder_input_proj.\1.0."),
    (r"^decoder\.input_proj\.(\d+)\.norm\.", r"model.decoder_input_proj.\1.1."),
)
_DFINE_NECK = (
    (r"_blocks\.(\d+)\.cv1\.", r"_blocks.\1.conv1."),
    (r"_blocks\.(\d+)\.cv2\.0\.", r"_blocks.\1.csp_rep1."),
    (r"_blocks\.(\d+)\.cv2\.1\.", r"_blocks.\1.conv2."),
    (r"_blocks\.(\d+)\.cv3\.0\.", r"_blocks.\1.csp_rep2."),
    (r"_blocks\.(\d+)\.cv3\.1\.", r"_blocks.\1.conv3."),
    (r"_blocks\.(\d+)\.cv4\.", r"_blocks.\1.conv4."),
    (r"downsample_convs\.(\d+)\.0\.cv([12])\.", r"downsample_convs.\1.conv\2."),
)
_ENCODER = ((r"^encoder\.", "model.encoder."),)
_PYTORCH = (*_PROJECTIONS, *_ENCODER_LAYER, *_DECODER_LAYER, *_HEADS, *_ENCODER)
_COMPUTED = (r"\.num_batches_tracked$", r"^decoder\.(anchors|valid_mask)$", r"\.num_points_scale$")

DETECTORS = {
    "dfine": Detector(
        title="D-FINE",
        model_type="d_fine",
        backbone_layout="dfine",
        signature="decoder.decoder.layers.0.gateway.gate.weight",
        rules=(*_DFINE_NECK, *_PYTORCH),
        computed=(*_COMPUTED, r"^decoder\.decoder\.(up|reg_scale)$"),
    ),
    "rtdetrv2": Detector(
        title="RT-DETRv2",
        model_type="rt_detr_v2",
        backbone_layout="rtdetrv2",
        signature="decoder.decoder.layers.0.cross_attn.value_proj.weight",
        rules=_PYTORCH,
        computed=_COMPUTED,
    ),
    "paddledetection": Detector(
        title="PaddleDetection RT-DETR",
        model_type="rt_detr",
        backbone_layout="paddledetection",
        signature="transformer.decoder.layers.0.cross_attn.value_proj.weight",
        rules=(
            (r"^neck\.", "encoder."),
            (r"^transformer\.decoder\.", "decoder.decoder."),
            (r"^transformer\.", "decoder."),
            (r"\._mean$", ".running_mean"),
            (r"\._variance$", ".running_var"),
            (r"\.bn\.", ".norm."),
            (r"^encoder\.input_proj\.", "model.encoder_input_proj."),
            *_PYTORCH,
        ),
        computed=(r"^transformer\.(anchors|valid_mask)$",),
        anchors="transformer.anchors",
        is_paddle=True,
    ),
}


def recognise_detector(names):
    """The key of the detector whose signature is among ``names``, or ``None``."""
    return next((key for key, detector in DETECTORS.items() if detector.signature in names), None)


def rename_detector(tensors, detector):
    """
    Args:
        tensors (`dict[str, torch.Tensor]`): the whole file, under its program's names.
        detector ([`Detector`]): its row.

    Returns:
        `tuple[dict, dict]`: the tensors under Transformers' names (in the order q, k, v where the file holds one
        matrix), and the backbone's among them under their names inside a backbone.
    """
    backbone, others = split_detector(tensors, LAYOUTS[detector.backbone_layout])
    backbone = rename(backbone, LAYOUTS[detector.backbone_layout])
    renamed = {f"model.backbone.model.{name}": tensor for name, tensor in backbone.items()}
    for name in others:
        if any(re.search(pattern, name) for pattern in detector.computed):
            continue
        tensor, new = tensors[name], name
        for pattern, replacement in detector.rules:
            new = re.sub(pattern, replacement, new)
        if detector.is_paddle and tensor.ndim == 2 and "denoising_class_embed" not in new:
            tensor = tensor.t()
        for part, value in _parts(new, tensor):
            if part in renamed:
                raise ConversionError(f"The file holds two tensors for {part}, one of them called {name}.")
            renamed[part] = value
    return renamed, backbone


def _parts(name, tensor):
    """Query, key and value lie in one matrix in the originals, and apart in Transformers."""
    match = re.search(r"\.in_proj_(weight|bias)$", name)
    if match is None:
        return [(name, tensor)]
    if tensor.shape[0] % 3:
        raise ConversionError(f"The tensor {name} does not hold query, key and value (shape {list(tensor.shape)}).")
    start = name[: match.start()]
    return [(f"{start}.{part}_proj.{match[1]}", value) for part, value in zip("qkv", tensor.chunk(3))]
