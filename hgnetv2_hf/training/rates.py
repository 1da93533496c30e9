"""Learning rates and weight decay per parameter, as PaddleClas sets them.

Source: PaddleClas ``ppcls/arch/backbone/legendary_models/pp_hgnet_v2.py``: ``lr_mult_list`` multiplies the rate of the
stem and of each stage, LAB learns at 0.01 of its layer's rate (``lab_lr``), and batch norm's weight and bias carry
``L2Decay(0.0)``. Everything else decays, LAB and the bias of ``fc`` included.
"""

from collections.abc import Sequence
from typing import Any, Optional

from torch import nn

from ..structure import is_network


LAB_RATE = 0.01


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    weight_decay: float = 2e-5,
    lr_mult_list: Optional[Sequence[float]] = None,
    lab_lr_mult: float = LAB_RATE,
    exempt_biases_and_lab: bool = False,
) -> list[dict[str, Any]]:
    """
    Parameter groups for any optimizer of PyTorch: `torch.optim.SGD(parameter_groups(model, 0.5), momentum=0.9)`.

    Args:
        model (`nn.Module`): a classifier, a backbone, a detector, of this package or of stock Transformers. Models
            without the network get the same rules for normalisation and biases.
        learning_rate (`float`): the rate of a parameter whose multiplier is 1.
        weight_decay (`float`, defaults to 2e-5): of all parameters but those of normalisation layers.
        lr_mult_list (`list[float]`, *optional*): multipliers for the stem and each stage, PaddleClas's and
            PaddleDetection's `lr_mult_list`; 1 for all by default. Heads, necks and decoders keep 1.
        lab_lr_mult (`float`, defaults to 0.01): LAB's rate relative to its layer's.
        exempt_biases_and_lab (`bool`, defaults to `False`): no decay for biases and LAB either.

    Returns:
        `list[dict]`: groups with `params`, `lr`, `weight_decay`, and `name` (`"stage3 LAB"`). Every parameter that
        requires a gradient is in exactly one.

    Raises:
        `ValueError`: a rate is negative, or `lr_mult_list` does not fit the network.
    """
    rates = {"learning_rate": learning_rate, "weight_decay": weight_decay, "lab_lr_mult": lab_lr_mult}
    for name, value in {**rates, **{"lr_mult_list": min(lr_mult_list or [0])}}.items():
        if value < 0:
            raise ValueError(f"`{name}` holds {value}; rates are not negative.")
    places = _places(model, lr_mult_list)
    groups = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        module = model.get_submodule(name.rpartition(".")[0])
        place, multiplier = places.get(parameter, ("rest", 1.0))
        kind, decays = _kind(module, name)
        if kind == "LAB":
            multiplier *= lab_lr_mult
        if exempt_biases_and_lab and kind in ("LAB", "biases"):
            decays = False
        group = groups.setdefault(
            f"{place} {kind}",
            {
                "params": [],
                "lr": learning_rate * multiplier,
                "weight_decay": weight_decay if decays else 0.0,
                "name": f"{place} {kind}",
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def _places(model, lr_mult_list):
    """Parameter -> ("stem" or "stage1" …, its multiplier)."""
    networks = [module for module in model.modules() if is_network(module)]
    if lr_mult_list is not None and not networks:
        raise ValueError(f"{type(model).__name__} contains no HGNetV2, and `lr_mult_list` is about its stages.")
    places = {}
    for network in networks:
        parts = {"stem": network.embedder}
        parts.update({f"stage{index}": stage for index, stage in enumerate(network.encoder.stages, 1)})
        multipliers = [1.0] * len(parts) if lr_mult_list is None else list(lr_mult_list)
        if len(multipliers) != len(parts):
            raise ValueError(
                f"`lr_mult_list` has {len(multipliers)} multipliers; this network needs {len(parts)}: "
                f"{', '.join(parts)}."
            )
        for (place, part), multiplier in zip(parts.items(), multipliers):
            places.update({parameter: (place, multiplier) for parameter in part.parameters()})
    return places


def _kind(module, name):
    """What a parameter is, and whether it decays in PaddleClas."""
    own = {key: parameter.numel() for key, parameter in module.named_parameters(recurse=False)}
    if own == {"scale": 1, "bias": 1}:
        return "LAB", True
    if "Norm" in type(module).__name__:
        return "normalisation", False
    return ("biases" if name.endswith("bias") else "weights"), True
