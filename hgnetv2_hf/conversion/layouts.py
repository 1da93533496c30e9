"""How other programs name the tensors of the network: one table of renaming rules per layout."""

import re
from typing import NamedTuple

from .errors import ConversionError


class Layout(NamedTuple):
    """Renaming rules, applied in order, from a program's names to those of Transformers."""

    title: str
    signature: str  # a tensor that is in every file of this layout, and in no other layout
    rules: tuple[tuple[str, str], ...]
    reverse_rules: tuple[tuple[str, str], ...]
    dropped_on_export: tuple[str, ...]  # tensors that the other program does not store
    transposed: tuple[str, ...] = ()  # (in, out) weights of linear layers, by their new names


_TRUNK = (
    (r"^stem\.", "embedder."),
    (r"^stages\.", "encoder.stages."),
    (r"\.conv\.weight$", ".convolution.weight"),
)
_REVERSE_TRUNK = (
    (r"^embedder\.", "stem."),
    (r"^encoder\.stages\.", "stages."),
    (r"\.convolution\.weight$", ".conv.weight"),
)

LAYOUTS = {
    "paddleclas": Layout(
        title="PaddleClas",
        signature="stem.stem1.bn._mean",
        rules=(
            *_TRUNK,
            (r"\.aggregation_squeeze_conv\.", ".aggregation.0."),
            (r"\.aggregation_excitation_conv\.", ".aggregation.1."),
            (r"\.bn\._mean$", ".normalization.running_mean"),
            (r"\.bn\._variance$", ".normalization.running_var"),
            (r"\.bn\.(weight|bias)$", r".normalization.\1"),
        ),
        reverse_rules=(
            *_REVERSE_TRUNK,
            (r"\.aggregation\.0\.", ".aggregation_squeeze_conv."),
            (r"\.aggregation\.1\.", ".aggregation_excitation_conv."),
            (r"\.normalization\.running_mean$", ".bn._mean"),
            (r"\.normalization\.running_var$", ".bn._variance"),
            (r"\.normalization\.(weight|bias)$", r".bn.\1"),
        ),
        dropped_on_export=("num_batches_tracked",),
        transposed=("fc.weight",),
    ),
}


def recognise_layout(names):
    """The layout whose signature is among ``names``, or ``None``."""
    return next((key for key, layout in LAYOUTS.items() if layout.signature in names), None)


def rename(tensors, layout):
    """``tensors`` of another program under the names, and in the orientation, of Transformers."""
    renamed = {}
    for name, tensor in tensors.items():
        new = _apply(layout.rules, name)
        if new in renamed:
            raise ConversionError(f"The file holds two tensors for {new}, one of them called {name}.")
        renamed[new] = _oriented(new, tensor, layout)
    return renamed


def rename_back(tensors, layout):
    """``tensors`` of Transformers under the names, and in the orientation, of another program."""
    return {
        _apply(layout.reverse_rules, name): _oriented(name, tensor, layout)
        for name, tensor in tensors.items()
        if not name.endswith(layout.dropped_on_export)
    }


def _apply(rules, name):
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _oriented(name, tensor, layout):
    return tensor.t() if name in layout.transposed and tensor.ndim == 2 else tensor
