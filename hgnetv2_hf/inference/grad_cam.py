"""Where in an image a classifier sees a class: Grad-CAM (Selvaraju et al., 2017, https://arxiv.org/abs/1610.02391)."""

import threading

import numpy as np
import torch
from torch import nn

from ..structure import is_network


def grad_cam(model, pixel_values, target=None, layer="stage4"):
    """
    Heat maps of a classifier, whoever wrote its class: this package's, stock Transformers', remote code's.

    The maps of a layer are weighted with the mean gradient of the class's logit and summed; what speaks against the
    class is cut off. A map is as coarse as its layer: 7x7 for `"stage4"` at 224 pixels, interpolated to the image.

    Args:
        model (`torch.nn.Module`): a classifier that contains HGNetV2, in evaluation mode; left as it is, without
            gradients in its parameters.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): of the image processor.
        target (`int`, `str`, a list of them or `torch.Tensor` of shape `(batch,)`, *optional*): the class to look for,
            by index or label, one for all images or one each; by default each image's best.
        layer (`str`, defaults to `"stage4"`): `"stem"`, `"stage1"`, …

    Returns:
        `torch.Tensor` of shape `(batch, height, width)`: float32, from 0 to 1, where 1 is the strongest place of each
            image; all 0 where nothing speaks for the class.

    Raises:
        `ValueError`: the model is no classifier with HGNetV2, is in training mode or optimised, computes what is
            not finite, or there is no such class or layer.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> from transformers import AutoModelForImageClassification
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> model = AutoModelForImageClassification.from_pretrained("digits")
        >>> maps = hgnetv2_hf.grad_cam(model, torch.rand(2, 3, 32, 32), target="7")
        >>> maps.shape
        torch.Size([2, 32, 32])
    """
    return maps_and_logits(model, pixel_values, target, layer)[0]


def maps_and_logits(model, pixel_values, target=None, layer="stage4"):
    """What [`grad_cam`] returns, and the logits `(batch, classes)`."""
    place = find_layer(model, layer)
    if model.training:
        raise ValueError(
            "The model is in training mode, where an image's logits depend on the others; call model.eval()."
        )
    feature_maps, thread = [], threading.get_ident()

    def begin_here(module, inputs, output):
        """The gradient goes back to this layer and no further."""
        if threading.get_ident() != thread:
            return output  # somebody else's call of the same model
        feature_maps.append(output.detach().requires_grad_())
        return feature_maps[-1]

    hook = place.register_forward_hook(begin_here)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            logits = model(pixel_values=pixel_values.clone()).logits  # a tensor of inference mode has no gradient
            if not logits.requires_grad:
                raise ValueError(
                    "The model computes without gradients, as an optimised one does; pass the one it was made from."
                )
            if not logits.isfinite().all():
                raise ValueError("The model's logits are not finite: look for NaN in its weights and in the pixels.")
            chosen = logits.gather(1, _classes(target, logits, model.config)[:, None])
            (gradient,) = torch.autograd.grad(chosen.sum(), feature_maps)
    finally:
        hook.remove()
    feature_map, gradient = feature_maps[0].detach().float(), gradient.float()
    maps = (gradient.mean((2, 3), keepdim=True) * feature_map).sum(1, keepdim=True).relu()
    maps = nn.functional.interpolate(maps, pixel_values.shape[-2:], mode="bilinear", align_corners=False)[:, 0]
    strongest = maps.amax((1, 2), keepdim=True)
    return torch.where(strongest > 0, maps / strongest, maps), logits.detach()


def find_layer(model, layer):
    """The module that computes a layer's maps. Raises `ValueError` where there is none."""
    networks = [module for module in model.modules() if is_network(module)]
    if len(networks) != 1 or not hasattr(model, "config") or "ForImageClassification" not in type(model).__name__:
        raise ValueError(f"{type(model).__name__} is no classifier with HGNetV2.")
    stages = {f"stage{number}": stage for number, stage in enumerate(networks[0].encoder.stages, 1)}
    places = {"stem": networks[0].embedder, **stages}
    if layer not in places:
        raise ValueError(f"There is no layer {layer!r}: {', '.join(places)}.")
    return places[layer]


def _classes(target, logits, config):
    """An index per image."""
    if target is None:
        return logits.argmax(1)
    targets = target.tolist() if isinstance(target, torch.Tensor) else target
    targets = targets if isinstance(targets, (list, tuple)) else [targets] * len(logits)
    if len(targets) != len(logits):
        raise ValueError(f"There are {len(targets)} targets for {len(logits)} images.")
    return torch.tensor([class_index(each, config) for each in targets], device=logits.device)


def class_index(target, config):
    """The index of a class that is named by its label or its index. Raises `ValueError` where there is none, or where
    several have the label, as two of ImageNet's "crane" have."""
    if isinstance(target, str):
        found = [int(index) for index, label in config.id2label.items() if str(label) == target]
        if len(found) > 1:
            raise ValueError(f"The label {target!r} belongs to the classes {found}; pass an index.")
    else:
        is_index = isinstance(target, (int, np.integer)) and not isinstance(target, bool)
        found = [int(target)] if is_index and 0 <= target < config.num_labels else []
    if not found:
        raise ValueError(f"There is no class {target!r} among the model's {config.num_labels}.")
    return found[0]
