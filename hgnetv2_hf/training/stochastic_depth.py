"""Stochastic depth for training, set from outside: no configuration field, no random draw while it is off."""

from torch import nn

from ..structure import blocks


def set_drop_path_rate(model: nn.Module, drop_path_rate: float) -> int:
    """
    Sets stochastic depth in every HGNetV2 block of ``model`` that has a residual branch.

    Args:
        model (`nn.Module`): a model that contains the network (a classifier, a backbone, a detector, …).
        drop_path_rate (`float`): probability of dropping the last residual branch of a sample; it rises linearly with
            depth over all blocks, as timm does. 0 removes it.

    Returns:
        `int`: how many residual blocks were set.

    Raises:
        `ValueError`: the rate is not in [0, 1), or the model holds no HGNetV2 block.

    Example:

        >>> import hgnetv2_hf
        >>> model = hgnetv2_hf.HGNetV2Model(hgnetv2_hf.HGNetV2Config.from_variant("b4"))
        >>> hgnetv2_hf.set_drop_path_rate(model, 0.1)
        2
    """
    from ..model.modeling_hgnetv2 import HGNetV2DropPath

    if not 0 <= drop_path_rate < 1:
        raise ValueError(f"`drop_path_rate` must be at least 0 and below 1, got {drop_path_rate}.")
    found = blocks(model)
    if not found:
        raise ValueError(f"{type(model).__name__} contains no HGNetV2 block.")
    count = 0
    for depth, block in enumerate(found):
        if block.residual:
            rate = drop_path_rate * depth / max(len(found) - 1, 1)
            drop_path = HGNetV2DropPath(rate) if rate > 0 else nn.Identity()
            block.drop_path = drop_path.train(block.training)
            count += 1
    return count
