"""Whole detectors: how D-FINE, DEIM, DEIMv2, RT-DETRv2 and PaddleDetection name their tensors.

The names on the right are those of the files that Transformers writes, which are the same in every version.
"""

import re
from typing import NamedTuple

import torch

from ..errors import ConversionError
from .layouts import LAYOUTS, rename, rename_back, split_detector


class Detector(NamedTuple):
    """Renaming rules, and what a file holds that its program computes itself.

    A rule is a pair of names, the program's and Transformers', that means both directions; `#` stands for a number.
    `parts` are replaced wherever they stand, and then the first of `places` that begins the name.
    """

    title: str
    model_type: str
    backbone_layout: str
    signature: str  # a tensor that every file of this program holds
    places: tuple[tuple[str, str], ...]
    parts: tuple[tuple[str, str], ...]
    computed: tuple[str, ...]  # patterns of tensors that may be dropped
    anchors: str = "decoder.anchors"  # shows the image size, where the file holds it
    is_paddle: bool = False  # linear weights are (in, out), and no class stands for "nothing" among the denoising ones


_PROJECTIONS = (
    ("encoder.input_proj.#.conv.", "model.encoder_input_proj.#.0."),
    ("encoder.input_proj.#.norm.", "model.encoder_input_proj.#.1."),
    ("decoder.input_proj.#.conv.", "model.decoder_input_proj.#.0."),
    ("decoder.input_proj.#.norm.", "model.decoder_input_proj.#.1."),
)
_PLACES = (
    *_PROJECTIONS,
    ("encoder.", "model.encoder."),
    ("decoder.dec_score_head.", "model.decoder.class_embed."),
    ("decoder.dec_bbox_head.", "model.decoder.bbox_embed."),
    *((f"decoder.{each}", f"model.decoder.{each}") for each in ("query_pos_head", "pre_bbox_head", "up", "reg_scale")),
    ("decoder.enc_output.proj.", "model.enc_output.0."),
    ("decoder.enc_output.norm.", "model.enc_output.1."),
    ("decoder.decoder.", "model.decoder."),
    ("decoder.", "model."),
)
_DECODER_PARTS = (
    (".cross_attn.", ".encoder_attn."),
    ("decoder.layers.#.norm1.", "decoder.layers.#.self_attn_layer_norm."),
    ("decoder.layers.#.norm2.", "decoder.layers.#.encoder_attn_layer_norm."),
    ("decoder.layers.#.norm3.", "decoder.layers.#.final_layer_norm."),
)
_ENCODER_PARTS = (
    ("encoder.#.layers.#.norm1.", "encoder.#.layers.#.self_attn_layer_norm."),
    ("encoder.#.layers.#.norm2.", "encoder.#.layers.#.final_layer_norm."),
)
_PARTS = ((".linear1.", ".fc1."), (".linear2.", ".fc2."), *_ENCODER_PARTS, *_DECODER_PARTS)
_DFINE_PARTS = (
    ("_blocks.#.cv1.", "_blocks.#.conv1."),
    ("_blocks.#.cv2.0.", "_blocks.#.csp_rep1."),
    ("_blocks.#.cv2.1.", "_blocks.#.conv2."),
    ("_blocks.#.cv3.0.", "_blocks.#.csp_rep2."),
    ("_blocks.#.cv3.1.", "_blocks.#.conv3."),
    ("_blocks.#.cv4.", "_blocks.#.conv4."),
    ("downsample_convs.#.0.cv1.", "downsample_convs.#.conv1."),
    ("downsample_convs.#.0.cv2.", "downsample_convs.#.conv2."),
    *_PARTS,
)
_DEIMV2_PARTS = (
    # Fusion blocks: a list of them in the hybrid encoder, two in the lite one.
    *(
        (f"{block}.{theirs}.", f"{block}.{ours}.")
        for block in ("_blocks.#", "_block")
        for theirs, ours in (("cv1", "conv1"), ("cv2", "branch1"), ("cv3", "branch2"), ("cv4", "conv2"))
    ),
    ("downsample_convs.#.0.cv1.", "downsample_convs.#.conv1."),
    ("downsample_convs.#.0.cv2.", "downsample_convs.#.conv2."),
    ("down_sample#.1.", "down_sample#.conv.conv."),
    ("down_sample#.2.", "down_sample#.conv.norm."),
    ("bi_fusion.cv.", "bi_fusion."),
    (".linear1.", ".mlp.layers.0."),
    (".linear2.", ".mlp.layers.1."),
    *_ENCODER_PARTS,
    ("gateway.norm.scale", "gateway.norm.weight"),
    ("decoder.layers.#.norm1.scale", "decoder.layers.#.self_attn_layer_norm.weight"),
    ("decoder.layers.#.norm2.scale", "decoder.layers.#.encoder_attn_layer_norm.weight"),
    ("decoder.layers.#.norm3.scale", "decoder.layers.#.final_layer_norm.weight"),
    (".cross_attn.", ".encoder_attn."),
    (".swish_ffn.w12.", ".mlp.gate_and_value."),
    (".swish_ffn.w3.", ".mlp.out."),
)
_COMPUTED = (r"\.num_batches_tracked$", r"^decoder\.(anchors|valid_mask)$", r"\.num_points_scale$")
TRAINING_ONLY = "encoder.feature_projector."  # of RT-DETRv4, and of no other
_REFINING_COMPUTED = (*_COMPUTED, r"^decoder\.decoder\.(up|reg_scale)$")
_DFINE_COMPUTED = (*_REFINING_COMPUTED, "^" + re.escape(TRAINING_ONLY))


def _in_paddle(places):
    """PaddleDetection calls encoder and decoder neck and transformer, and counts the parts of a projection."""
    return (
        ("neck.input_proj.", "model.encoder_input_proj."),
        *(
            (re.sub(r"^encoder\.", "neck.", re.sub(r"^decoder\.", "transformer.", theirs)), ours)
            for theirs, ours in places
        ),
    )


DETECTORS = {  # recognised in this order: DEIMv2's files hold D-FINE's signature, too
    "deimv2": Detector(
        title="DEIMv2",
        model_type="deim_v2",
        backbone_layout="dfine",
        signature="decoder.decoder.layers.0.swish_ffn.w12.weight",
        places=_PLACES,
        parts=_DEIMV2_PARTS,
        computed=_REFINING_COMPUTED,
    ),
    "dfine": Detector(
        title="D-FINE",
        model_type="d_fine",
        backbone_layout="dfine",
        signature="decoder.decoder.layers.0.gateway.gate.weight",
        places=_PLACES,
        parts=_DFINE_PARTS,
        computed=_DFINE_COMPUTED,
    ),
    "rtdetrv2": Detector(
        title="RT-DETRv2",
        model_type="rt_detr_v2",
        backbone_layout="rtdetrv2",
        signature="decoder.decoder.layers.0.cross_attn.value_proj.weight",
        places=_PLACES,
        parts=_PARTS,
        computed=_COMPUTED,
    ),
    "paddledetection": Detector(
        title="PaddleDetection RT-DETR",
        model_type="rt_detr",
        backbone_layout="paddledetection",
        signature="transformer.decoder.layers.0.cross_attn.value_proj.weight",
        places=_in_paddle(_PLACES),
        parts=((".bn.", ".norm."), ("._mean", ".running_mean"), ("._variance", ".running_var"), *_PARTS),
        computed=(r"^transformer\.(anchors|valid_mask)$", r"^neck\.pos_embed\d$"),
        anchors="transformer.anchors",
        is_paddle=True,
    ),
}
# DEIM's and RT-DETRv4's tensors are D-FINE's; see `families.py`.
DETECTORS["deim"] = DETECTORS["dfine"]._replace(title="DEIM", model_type="deim")
DETECTORS["rtdetrv4"] = DETECTORS["deim"]._replace(title="RT-DETRv4")


def recognise_detector(names):
    """The key of the detector whose signature is among ``names``, or ``None``; D-FINE's may be of its families."""
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
        tensor, new = tensors[name], _renamed(name, detector)
        if detector.is_paddle and tensor.ndim == 2 and "denoising_class_embed" not in new:
            tensor = tensor.t()
        for part, value in _parts(new, tensor):
            if part in renamed:
                raise ConversionError(f"The file holds two tensors for {part}, one of them called {name}.")
            renamed[part] = value
    return renamed, backbone


def rename_detector_back(tensors, detector):
    """
    Args:
        tensors (`dict[str, torch.Tensor]`): a whole detector under the names in a file of Transformers.
        detector ([`Detector`]): the row of a program in PyTorch.

    Returns:
        `dict[str, torch.Tensor]`: the same under the program's names, without what it computes itself.
    """
    prefix, layout = "model.backbone.model.", LAYOUTS[detector.backbone_layout]
    backbone = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    renamed = {layout.prefix + name: tensor for name, tensor in rename_back(backbone, layout).items()}
    joined = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            continue
        match = re.search(r"\.([qkv])_proj\.(weight|bias)$", name)
        if match is None:
            renamed[_renamed(name, detector, back=True)] = tensor
        else:
            name = f"{name[: match.start()]}.in_proj_{match[2]}"
            joined.setdefault(name, {})[match[1]] = tensor
    for name, parts in joined.items():
        renamed[_renamed(name, detector, back=True)] = torch.cat([parts[part] for part in "qkv"])
    return {
        name: tensor
        for name, tensor in renamed.items()
        if not any(re.search(pattern, name) for pattern in detector.computed)
    }


def _renamed(name, detector, back=False):
    """A tensor's name in Transformers, or ``back``: in the program."""
    if not back:
        name = _replaced(detector.parts, name)
        return _placed(detector.places, name)
    name = _placed([rule[::-1] for rule in detector.places], name)
    return _replaced([rule[::-1] for rule in detector.parts], name)


def _replaced(rules, name):
    for before, after in rules:
        name = re.sub(_pattern(before), _replacement(after), name)
    return name


def _placed(rules, name):
    for before, after in rules:
        placed, found = re.subn("^" + _pattern(before), _replacement(after), name)
        if found:
            return placed
    return name


def _pattern(rule):
    return re.escape(rule).replace(r"\#", r"(\d+)")


def _replacement(rule):
    """The rule with what its numbers matched, in their order."""
    parts = rule.split("#")
    return "".join(part + (rf"\g<{index}>" if index < len(parts) else "") for index, part in enumerate(parts, 1))


def _parts(name, tensor):
    """Query, key and value lie in one matrix in the originals, and apart in Transformers."""
    match = re.search(r"\.in_proj_(weight|bias)$", name)
    if match is None:
        return [(name, tensor)]
    if tensor.shape[0] % 3:
        raise ConversionError(f"The tensor {name} does not hold query, key and value (shape {list(tensor.shape)}).")
    start = name[: match.start()]
    return [(f"{start}.{part}_proj.{match[1]}", value) for part, value in zip("qkv", tensor.chunk(3))]
