"""
RT-DETR as PaddleDetection exports it for inference: what its layers are called, and what such an export lacks.

An export is pruned to what evaluation uses, and each block of two convolutions in the neck (RepVGG) is one convolution
with a bias, built after everything else. Layers of encoder and decoder are clones of one that was built before.

Sources: PaddleDetection ``ppdet/engine/trainer.py`` (``export``), ``ppdet/modeling/backbones/cspresnet.py``
(``RepVggBlock.convert_to_deploy``), ``transformers/hybrid_encoder.py`` and ``transformers/rtdetr_transformer.py``.
"""

import re

import torch

from ..errors import ConversionError
from .anchors import anchors_of, image_size_of


PREFIX = "backbone."
ANCHORS, VALID, POSITIONS = "transformer.anchors", "transformer.valid_mask", "neck.pos_embed2"
MOST_CLONES = 24  # of a layer; published decoders have six
STRIDES = [8, 16, 32]  # of the feature maps, in every published one
_BOTTLENECKS = 3
_FUSED = re.compile(r"(neck\.\w+_blocks\.\d\.bottlenecks\.\d)\.conv\.(weight|bias)")
_CONSTANT = re.compile(r"(eager_tmp|generated_tensor)_\d{1,9}")
# Float32 numbers with weight / sqrt(variance + epsilon) = 1 to 7e-14, for Paddle's epsilon as for 1e-5 itself.
IDENTITY_WEIGHT, IDENTITY_VARIANCE = 1.0067294836044312, 1.0134942531585693
_POSITION_TOLERANCE = 1e-5  # Paddle computes them in float32

# Layers in the order of construction, each with its kind.
_ENCODER_LAYER = (
    ("self_attn", "multi_head_attention"),
    ("self_attn.out_proj", "linear"),
    ("linear1", "linear"),
    ("linear2", "linear"),
    ("norm1", "layer_norm"),
    ("norm2", "layer_norm"),
)
_DECODER_LAYER = (
    ("self_attn", "multi_head_attention"),
    ("self_attn.out_proj", "linear"),
    ("norm1", "layer_norm"),
    ("cross_attn.sampling_offsets", "linear"),
    ("cross_attn.attention_weights", "linear"),
    ("cross_attn.value_proj", "linear"),
    ("cross_attn.output_proj", "linear"),
    ("norm2", "layer_norm"),
    ("linear1", "linear"),
    ("linear2", "linear"),
    ("norm3", "layer_norm"),
)
_HEADS = (
    *((f"query_pos_head.layers.{i}", "linear") for i in range(2)),
    ("enc_output.0", "linear"),
    ("enc_output.1", "layer_norm"),
    ("enc_score_head", "linear"),
    *((f"enc_bbox_head.layers.{i}", "linear") for i in range(3)),
)


def detector_layers(backbone, encoder_layers, decoder_layers):
    """
    Args:
        backbone (`tuple[tuple[str, str]]`): its layers and their kinds.
        encoder_layers, decoder_layers (`int`): how often the one that was built is cloned.

    Returns:
        `tuple[tuple[str, str]]`: the layers of an exported detector by PaddleDetection's names, and their kinds, those
        of one kind in the order of construction.
    """
    last = decoder_layers - 1
    return (
        *((PREFIX + layer, kind) for layer, kind in backbone),
        *_normed(*((f"neck.input_proj.{i}.0", f"neck.input_proj.{i}.1") for i in range(len(STRIDES)))),
        *_cloned("neck.encoder.0.layers", _ENCODER_LAYER, encoder_layers),
        *_merging("lateral_convs", "fpn_blocks"),
        *_merging("downsample_convs", "pan_blocks"),
        *_normed(
            *((f"transformer.input_proj.{i}.conv", f"transformer.input_proj.{i}.norm") for i in range(len(STRIDES)))
        ),
        *_cloned("transformer.decoder.layers", _DECODER_LAYER, decoder_layers),
        *((f"transformer.{layer}", kind) for layer, kind in _HEADS),
        (f"transformer.dec_score_head.{last}", "linear"),
        *((f"transformer.dec_bbox_head.{i}.layers.{j}", "linear") for i in range(decoder_layers) for j in range(3)),
        *(
            (f"neck.{blocks}.{i}.bottlenecks.{j}.conv", "conv2d with bias")
            for blocks in ("fpn_blocks", "pan_blocks")
            for i in range(len(STRIDES) - 1)
            for j in range(_BOTTLENECKS)
        ),
    )


def _normed(*pairs):
    return [each for conv, norm in pairs for each in ((conv, "conv2d"), (norm, "batch_norm2d"))]


def _cloned(place, rows, count):
    return [(f"{place}.{clone}.{layer}", kind) for layer, kind in rows for clone in range(count)]


def _merging(convs, blocks):
    layers = []
    for i in range(len(STRIDES) - 1):
        places = f"neck.{convs}.{i}", f"neck.{blocks}.{i}.conv1", f"neck.{blocks}.{i}.conv2"
        layers += _normed(*((f"{place}.conv", f"{place}.bn") for place in places))
    return layers


def name_constants(parameters):
    """
    Args:
        parameters (`dict[str, torch.Tensor]`): by the program's names.

    Returns:
        `dict[str, str]`: what the network computes before it is exported, by the program's names, and its own names.

    Raises:
        `ConversionError`: there is another constant.
    """
    names = {}
    for name in filter(_CONSTANT.fullmatch, parameters):
        shape = list(parameters[name].shape)
        last = shape[-1] if len(shape) == 3 and shape[0] == 1 else None
        ours = {4: ANCHORS, 1: VALID, None: None}.get(last, POSITIONS)
        if ours is None or ours in names.values():
            raise ConversionError(f"The program holds a constant {name} of shape {shape}, which no RT-DETR has.")
        names[name] = ours
    return names


def exact_constant(name, tensor):
    """
    Args:
        name (`str`): as [`name_constants`] gives it.
        tensor (`torch.Tensor`): the constant, as Paddle computed it in float32.

    Returns:
        `torch.Tensor`: the same in float64.

    Raises:
        `ConversionError`: it is none of a network for square images.
    """
    if name == ANCHORS:
        return anchors_of(image_size_of(tensor, STRIDES), STRIDES, torch.float64)[0]
    if name == POSITIONS:
        exact = _positions(round(tensor.shape[1] ** 0.5), tensor.shape[2])
        if (
            exact.shape != tensor.shape
            or not exact.numel()
            or not (exact - tensor.double()).abs().max() <= _POSITION_TOLERANCE
        ):
            raise ConversionError("The positions in the program are not those of the places of a square image.")
        return exact
    return tensor


def _positions(side, width):
    """Sine and cosine of column and row, `(1, side², width)`; columns vary slowest."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(side, dtype=torch.float64)[:, None] * frequencies
    slow, fast = angles.repeat_interleave(side, 0), angles.repeat(side, 1)
    return torch.cat([slow.sin(), slow.cos(), fast.sin(), fast.cos()], 1)[None]


def inverse_sigmoid_of(program):
    """
    PaddleDetection's logit of a number in 0…1: ``log(x / (1 - x + epsilon) + epsilon)``, where Transformers clamps.

    Args:
        program ([`Program`]): shows the epsilon.

    Returns:
        callable: of one tensor; `None` where the program computes no such thing.
    """
    before = {}
    for operation in program.operations:
        last = before.get(operation.inputs[0]) if operation.kind == "log" else None
        if last is not None and last.kind == "scale":
            epsilon = last.attributes["bias"]
            return lambda x: (x.clamp(0, 1) / (1 - x.clamp(0, 1) + epsilon) + epsilon).log()
        before.update(dict.fromkeys(operation.outputs, operation))
    return None


def complete(tensors):
    """
    A whole detector from what its export holds.

    Args:
        tensors (`dict[str, torch.Tensor]`): by PaddleDetection's names, as [`detector_layers`] gives them.

    Returns:
        `dict[str, torch.Tensor]`: the same network as before the export, as far as evaluation goes: a fused
        convolution is the larger of the block's two branches, its norm the identity but for the bias, and the smaller
        branch gives 0; earlier layers have the last one's score head, and the denoising embedding is 0.
    """
    whole = {}
    for name, tensor in tensors.items():
        match = _FUSED.fullmatch(name)
        if match is None:
            whole[name] = tensor.clone()  # Transformers 4 takes what lies in one file's memory for tied, and drops it
        elif match[2] == "weight":
            bias = tensors[f"{match[1]}.conv.bias"]
            if tensor.ndim != 4 or bias.ndim != 1:
                raise ConversionError(
                    f"The tensor {name} has shape {list(tensor.shape)}; a kernel has four dimensions."
                )
            out, into = tensor.shape[:2]
            whole.update(_branch(f"{match[1]}.conv1", tensor.clone(), bias.clone()))
            whole.update(_branch(f"{match[1]}.conv2", torch.zeros(out, into, 1, 1), torch.zeros(out)))
    heads = sorted(name for name in whole if name.startswith("transformer.dec_score_head."))
    last = int(heads[0].split(".")[2])
    for name in heads:
        for layer in range(last):
            whole[name.replace(f"dec_score_head.{last}.", f"dec_score_head.{layer}.")] = whole[name].clone()
    whole["transformer.denoising_class_embed.weight"] = torch.zeros_like(
        whole[f"transformer.dec_score_head.{last}.weight"].t()
    )
    return whole


def _branch(place, weight, bias):
    ones = torch.ones(len(bias))
    return {
        f"{place}.conv.weight": weight,
        f"{place}.bn.weight": ones * IDENTITY_WEIGHT,
        f"{place}.bn.bias": bias,
        f"{place}.bn._mean": torch.zeros(len(bias)),
        f"{place}.bn._variance": ones * IDENTITY_VARIANCE,
    }


COMPLETED = (
    "for inference only: the export lacks the denoising embedding (zeros here) and the score heads of earlier layers "
    "(the last one's here), and of each block in its neck one fused convolution is left (one branch here, the other "
    "gives 0); train from the .pdparams instead"
)
