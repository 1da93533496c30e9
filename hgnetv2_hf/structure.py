"""Recognises HGNetV2 inside any model by its structure: this package's classes, stock Transformers', remote code's."""

from torch import nn


def contains_hgnetv2(model):
    """Whether a layer of HGNetV2 is in the module tree, whoever wrote its class."""
    return any(hasattr(module, "lab") and layer_parts(module) is not None for module in model.modules())


def is_network(module):
    """Whether a module is HGNetV2 or PP-HGNet itself, with or without a head: a stem and stages."""
    stem = getattr(module, "embedder", None)
    return (hasattr(stem, "stem2a") or hasattr(stem, "stem")) and hasattr(getattr(module, "encoder", None), "stages")


def layer_parts(layer):
    """Convolution, batch norm, activation, LAB of a layer of HGNetV2 or of a detector's neck, else ``None``."""
    children = dict(layer.named_children())
    if set(children) == {"convolution", "normalization", "activation", "lab"}:
        parts = [children[name] for name in ("convolution", "normalization", "activation", "lab")]
    elif set(children) == {"conv", "norm", "activation"}:
        parts = [children["conv"], children["norm"], children["activation"], nn.Identity()]
    else:
        return None
    return parts if isinstance(parts[0], nn.Conv2d) else None


def blocks(model):
    """All HGNetV2 blocks in the order of the forward pass; `block.residual` says which have a residual branch."""
    return [
        module
        for module in model.modules()
        if hasattr(module, "aggregation") and isinstance(getattr(module, "residual", None), bool)
    ]
