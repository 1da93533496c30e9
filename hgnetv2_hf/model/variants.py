"""The published architectures of PP-HGNetV2 and PP-HGNet, as data.

Sources: PaddleClas ``ppcls/arch/backbone/legendary_models/pp_hgnet_v2.py`` (b0 to b6), ``pp_hgnet.py`` (tiny, small,
base) and DEIMv2 ``engine/backbone/hgnetv2.py`` (pico, femto, atto: b0 cut to three stages). RT-DETR calls b4, b5 and
b6 "L", "X" and "H".
"""

from typing import NamedTuple


class Stage(NamedTuple):
    """One row of the table: everything that builds a stage."""

    in_channels: int
    mid_channels: int
    out_channels: int
    num_blocks: int
    downsample: bool
    light_block: bool
    kernel_size: int
    num_layers: int


class Variant(NamedTuple):
    stem_channels: tuple[int, int, int]
    use_learnable_affine_block: bool
    stages: tuple[Stage, ...]


def _variant(stem_channels, lab, *rows):
    return Variant(stem_channels, lab, tuple(Stage(*row) for row in rows))


VARIANTS = {
    #        in   mid   out  blocks  downsample  light  kernel  layers
    "b0": _variant(
        (3, 16, 16),
        True,
        (16, 16, 64, 1, False, False, 3, 3),
        (64, 32, 256, 1, True, False, 3, 3),
        (256, 64, 512, 2, True, True, 5, 3),
        (512, 128, 1024, 1, True, True, 5, 3),
    ),
    "b1": _variant(
        (3, 24, 32),
        True,
        (32, 32, 64, 1, False, False, 3, 3),
        (64, 48, 256, 1, True, False, 3, 3),
        (256, 96, 512, 2, True, True, 5, 3),
        (512, 192, 1024, 1, True, True, 5, 3),
    ),
    "b2": _variant(
        (3, 24, 32),
        True,
        (32, 32, 96, 1, False, False, 3, 4),
        (96, 64, 384, 1, True, False, 3, 4),
        (384, 128, 768, 3, True, True, 5, 4),
        (768, 256, 1536, 1, True, True, 5, 4),
    ),
    "b3": _variant(
        (3, 24, 32),
        True,
        (32, 32, 128, 1, False, False, 3, 5),
        (128, 64, 512, 1, True, False, 3, 5),
        (512, 128, 1024, 3, True, True, 5, 5),
        (1024, 256, 2048, 1, True, True, 5, 5),
    ),
    "b4": _variant(
        (3, 32, 48),
        False,
        (48, 48, 128, 1, False, False, 3, 6),
        (128, 96, 512, 1, True, False, 3, 6),
        (512, 192, 1024, 3, True, True, 5, 6),
        (1024, 384, 2048, 1, True, True, 5, 6),
    ),
    "b5": _variant(
        (3, 32, 64),
        False,
        (64, 64, 128, 1, False, False, 3, 6),
        (128, 128, 512, 2, True, False, 3, 6),
        (512, 256, 1024, 5, True, True, 5, 6),
        (1024, 512, 2048, 2, True, True, 5, 6),
    ),
    "b6": _variant(
        (3, 48, 96),
        False,
        (96, 96, 192, 2, False, False, 3, 6),
        (192, 192, 512, 3, True, False, 3, 6),
        (512, 384, 1024, 6, True, True, 5, 6),
        (1024, 768, 2048, 3, True, True, 5, 6),
    ),
    "pico": _variant(
        (3, 16, 16),
        True,
        (16, 16, 64, 1, False, False, 3, 3),
        (64, 32, 256, 1, True, False, 3, 3),
        (256, 64, 512, 2, True, True, 5, 3),
    ),
    "femto": _variant(
        (3, 16, 16),
        True,
        (16, 16, 64, 1, False, False, 3, 3),
        (64, 32, 256, 1, True, False, 3, 3),
        (256, 64, 512, 1, True, True, 5, 3),
    ),
    "atto": _variant(
        (3, 16, 16),
        True,
        (16, 16, 64, 1, False, False, 3, 3),
        (64, 32, 256, 1, True, False, 3, 3),
        (256, 64, 256, 1, True, True, 3, 3),
    ),
}


class PPHGNetStage(NamedTuple):
    """One row of PP-HGNet's table. Its blocks are dense 3×3 convolutions."""

    in_channels: int
    mid_channels: int
    out_channels: int
    num_blocks: int
    downsample: bool
    num_layers: int


class PPHGNetVariant(NamedTuple):
    stem_channels: tuple[int, ...]
    dropout_prob: float  # PaddleClas's class has it, not a tensor
    stages: tuple[PPHGNetStage, ...]


def _pp_hgnet(stem_channels, dropout_prob, *rows):
    return PPHGNetVariant(stem_channels, dropout_prob, tuple(PPHGNetStage(*row) for row in rows))


PP_HGNET_VARIANTS = {
    #        in   mid   out  blocks  downsample  layers
    "tiny": _pp_hgnet(
        (3, 48, 48, 96),
        0.0,
        (96, 96, 224, 1, False, 5),
        (224, 128, 448, 1, True, 5),
        (448, 160, 512, 2, True, 5),
        (512, 192, 768, 1, True, 5),
    ),
    "small": _pp_hgnet(
        (3, 64, 64, 128),
        0.0,
        (128, 128, 256, 1, False, 6),
        (256, 160, 512, 1, True, 6),
        (512, 192, 768, 2, True, 6),
        (768, 224, 1024, 1, True, 6),
    ),
    "base": _pp_hgnet(
        (3, 96, 96, 160),
        0.2,
        (160, 192, 320, 1, False, 7),
        (320, 224, 640, 2, True, 7),
        (640, 256, 960, 3, True, 7),
        (960, 288, 1280, 2, True, 7),
    ),
}

ALL_VARIANTS = {**VARIANTS, **PP_HGNET_VARIANTS}

# Strides of every published variant: of PP-HGNetV2's stem1, stem2a, stem2b, stem3 and stem4, and of each stage that
# downsamples. No tensor shows them.
STEM_STRIDES = (2, 1, 1, 2, 1)
DOWNSAMPLE_STRIDE = 2

ALIASES = {"l": "b4", "x": "b5", "h": "b6"}

# Configuration fields that hold one column of the table, in the table's order.
STAGE_FIELDS = (
    "stage_in_channels",
    "stage_mid_channels",
    "stage_out_channels",
    "stage_num_blocks",
    "stage_downsample",
    "stage_light_block",
    "stage_kernel_size",
    "stage_numb_of_layers",
)


# The same of PP-HGNet.
PP_HGNET_STAGE_FIELDS = (
    "stage_in_channels",
    "stage_mid_channels",
    "stage_out_channels",
    "stage_num_blocks",
    "stage_downsample",
    "stage_numb_of_layers",
)


def canonical_name(name, variants=VARIANTS):
    """``"B4"`` or ``"l"`` -> ``"b4"``. Raises ``ValueError`` for a name that is not in the table."""
    key = ALIASES.get(str(name).lower(), str(name).lower())
    if key not in variants:
        network = "PP-HGNetV2" if variants is VARIANTS else "PP-HGNet"
        names = [*variants, *(alias for alias, meant in ALIASES.items() if meant in variants)]
        raise ValueError(f"There is no {network} variant {name!r}; choose one of {', '.join(names)}.")
    return key


def full_name(name):
    """``"b4"`` -> ``"PP-HGNetV2-B4"``, ``"tiny"`` -> ``"PP-HGNet-Tiny"``."""
    return f"PP-HGNetV2-{name.upper()}" if name in VARIANTS else f"PP-HGNet-{name.capitalize()}"


def architecture_fields(name):
    """The configuration fields of a variant that its tensors show: widths, depths, kernels and LAB, as plain lists."""
    name = canonical_name(name, ALL_VARIANTS)
    variant, names = ALL_VARIANTS[name], STAGE_FIELDS if name in VARIANTS else PP_HGNET_STAGE_FIELDS
    fields = {"stem_channels": list(variant.stem_channels)}
    if name in VARIANTS:
        fields["use_learnable_affine_block"] = variant.use_learnable_affine_block
    return {**fields, **{field: list(column) for field, column in zip(names, zip(*variant.stages))}}
