"""The published architectures of PP-HGNetV2, as data.

Sources: PaddleClas ``ppcls/arch/backbone/legendary_models/pp_hgnet_v2.py`` (b0 to b6) and DEIMv2
``engine/backbone/hgnetv2.py`` (pico, femto, atto: b0 cut to three stages). RT-DETR calls b4, b5 and b6 "L", "X" and
"H".
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

# Strides of every published variant: of stem1, stem2a, stem2b, stem3 and stem4, and of each stage that downsamples. No
# tensor shows them.
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


def canonical_name(name):
    """``"B4"`` or ``"l"`` -> ``"b4"``. Raises ``ValueError`` for a name that is not in the table."""
    key = ALIASES.get(str(name).lower(), str(name).lower())
    if key not in VARIANTS:
        raise ValueError(f"There is no PP-HGNetV2 variant {name!r}; choose one of {', '.join([*VARIANTS, *ALIASES])}.")
    return key


def architecture_fields(name):
    """The configuration fields of a variant: widths, depths, kernels and LAB, as plain lists."""
    variant = VARIANTS[canonical_name(name)]
    columns = zip(STAGE_FIELDS, zip(*variant.stages))
    return {
        "stem_channels": list(variant.stem_channels),
        "use_learnable_affine_block": variant.use_learnable_affine_block,
        **{field: list(column) for field, column in columns},
    }
