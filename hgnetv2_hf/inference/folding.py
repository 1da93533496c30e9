"""Folds batch norm and LAB of a network into its convolutions, from outside: the network's own file stays plain.

Works on any module tree that contains HGNetV2's layers, recognised by their structure (stock Transformers', this
package's, remote code's), and takes the convolutions of the detectors around it along.

With a = weight / sqrt(running_var + eps) and c = bias - running_mean * a, a layer computes ``s * relu(a * conv(x) + c)
+ b``, ``s`` and ``b`` being LAB's scale and bias. That is ``max(s * a * conv(x) + s * c + b, b)`` for ``s > 0``,
``min(…)`` for ``s < 0``: one convolution with bias, and one clamp.
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import nn

from ..structure import layer_parts
from .precision import onednn_computes


_FROZEN_BATCH_NORM_EPS = 1e-5  # the detectors' frozen batch norm keeps it inside its forward
_SAME = 1e-9


class FoldedConvLayer(nn.Module):
    """Convolution with bias, and a clamp to ``minimum`` … ``maximum`` or SiLU, in evaluation mode only.

    ``fused`` hands convolution and activation to oneDNN in one call, with weights reordered for the shape seen last,
    where PyTorch offers that (CPU; float32, and bfloat16 or float16 where the processor has them). It computes the
    same; what is traced does without.
    """

    def __init__(self, convolution, weight, bias, minimum=-math.inf, maximum=math.inf, silu=False):
        super().__init__()
        if not (weight.isfinite().all() and bias.isfinite().all()):
            raise ValueError(
                "A convolution or its batch norm holds NaN or infinite values, which a fused clamp would hide."
            )
        self.weight = nn.Parameter(weight.to(convolution.weight.dtype), requires_grad=False)
        self.bias = nn.Parameter(bias.to(convolution.weight.dtype), requires_grad=False)
        self.stride = convolution.stride
        self.padding = convolution.padding
        self.dilation = convolution.dilation
        self.groups = convolution.groups
        self.minimum = minimum
        self.maximum = maximum
        self.silu = silu
        self.fused = False
        self._packed = (None, None)  # for which shape, and the weight: one assignment, for the sake of threads

    def forward(self, hidden_state):
        if self.fused and _onednn_takes(hidden_state):
            return torch.ops.mkldnn._convolution_pointwise(
                hidden_state,
                self._packed_weight(hidden_state.shape),
                self.bias,
                self.padding,
                self.stride,
                self.dilation,
                self.groups,
                "swish" if self.silu else "none" if self.clamps_nothing else "hardtanh",
                [] if self.silu else [self.minimum, self.maximum],
                "",
            )
        hidden_state = F.conv2d(
            hidden_state, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )
        if self.silu:
            return F.silu(hidden_state)
        if self.clamps_nothing:
            return hidden_state
        if self.minimum == 0.0 and self.maximum == math.inf:
            return F.relu(hidden_state)
        return hidden_state.clamp(self.minimum, self.maximum)

    @property
    def clamps_nothing(self):
        return self.minimum == -math.inf and self.maximum == math.inf

    def _packed_weight(self, shape):
        """The weight in the order that oneDNN wants for this shape. The wrong one would be reordered at every call."""
        wanted_for = (shape, self.weight._version)
        packed_for, packed = self._packed
        if packed_for != wanted_for:
            packed = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight.detach(), self.padding, self.stride, self.dilation, self.groups, list(shape)
            )
            self._packed = (wanted_for, packed)
        return packed

    def _apply(self, *args, **kwargs):
        self._packed = (None, None)
        return super()._apply(*args, **kwargs)

    def __getstate__(self):  # packed weights can be neither copied nor pickled
        return {**self.__dict__, "_packed": (None, None)}

    def extra_repr(self):
        out_channels, in_channels = self.weight.shape[:2]
        return (
            f"{in_channels * self.groups}, {out_channels}, kernel_size={tuple(self.weight.shape[2:])}, "
            f"stride={self.stride}, " + ("silu" if self.silu else f"clamp=({self.minimum:.4g}, {self.maximum:.4g})")
        )


class ShiftedMaxPool(nn.Module):
    """A 2×2 max-pool with stride 1 as two maxima of shifted views: the same values, several times faster on CPUs."""

    def forward(self, hidden_state):
        rows = torch.maximum(hidden_state[:, :, :-1], hidden_state[:, :, 1:])
        return torch.maximum(rows[:, :, :, :-1], rows[:, :, :, 1:])


def is_folded(model):
    """Whether ``fold`` has been here."""
    return any(isinstance(module, FoldedConvLayer) for module in model.modules())


def fold(model, fused=False):
    """
    Folds every layer of HGNetV2, and every convolution with batch norm of the detector around it, in place.

    A layer that computes something else than its structure promises (hooks, a forward of its own) stays as it is: each
    is compared with its replacement in float64.

    Args:
        model (`nn.Module`): in evaluation mode.
        fused (`bool`, defaults to `False`): let oneDNN and other shortcuts compute, for running in PyTorch without a
            compiler; leave it off for what is traced, compiled or exported.

    Returns:
        `int`: how many convolutions were folded.

    Raises:
        `ValueError`: weights or statistics are not finite.
    """
    folded, replaced = 0, set()
    for parent in list(model.modules()):
        if parent in replaced:
            continue
        for name, child in list(parent.named_children()):
            replacement = _replacement(child)
            if replacement is not None:
                setattr(parent, name, replacement)
                replaced.update(child.modules())
                folded += 1
        folded += _fold_classifier_convolution(parent)
        if fused and _is_stem(parent):
            parent.pool = ShiftedMaxPool()
    for module in model.modules():
        if isinstance(module, FoldedConvLayer):
            module.fused = fused
    return folded


def _is_stem(module):
    pool = getattr(module, "pool", None)
    return (
        hasattr(module, "stem2a")
        and isinstance(pool, nn.MaxPool2d)
        and (pool.kernel_size, pool.stride, pool.padding, pool.dilation) == (2, 1, 0, 1)
    )


def _replacement(layer):
    """What computes the same as this layer with one operation less, or ``None`` where there is nothing of the kind."""
    for parts_of, fold_parts in _FOLDS:
        parts = parts_of(layer)
        if parts is None or _has_hooks(layer):
            continue
        folded = fold_parts(*parts)
        if folded is not None and _computes_the_same(layer, parts_of, fold_parts):
            return folded
    return None


def _fold_layer(convolution, normalization, activation, lab):
    folded = _convolution_with_norm(convolution, normalization)
    if folded is None:
        return None
    weight, bias = folded
    if isinstance(activation, nn.ReLU):
        return _with_relu_and_lab(convolution, weight, bias, lab)
    return _with_activation(convolution, weight, bias, activation, lab)


def _convolution_with_norm(convolution, normalization):
    """Weight and bias of both as one convolution, in float64."""
    scale_and_shift = _scale_and_shift(normalization)
    if scale_and_shift is None or convolution.padding_mode != "zeros" or isinstance(convolution.padding, str):
        return None
    scale, shift = scale_and_shift
    weight = convolution.weight.detach().double() * scale[:, None, None, None]
    bias = shift if convolution.bias is None else shift + convolution.bias.detach().double() * scale
    return weight, bias


def _with_activation(convolution, weight, bias, activation, lab=None):
    lab = nn.Identity() if lab is None else lab
    if isinstance(lab, nn.Identity) and isinstance(activation, nn.Identity):
        return FoldedConvLayer(convolution, weight, bias)
    if isinstance(lab, nn.Identity) and type(activation).__name__ in ("SiLU", "SiLUActivation"):
        return FoldedConvLayer(convolution, weight, bias, silu=True)
    if isinstance(lab, nn.Identity) and isinstance(activation, nn.ReLU):
        return FoldedConvLayer(convolution, weight, bias, minimum=0.0)
    return nn.Sequential(FoldedConvLayer(convolution, weight, bias), activation, lab)


def _projection_parts(layer):
    """A convolution and a batch norm in a row, as the detectors' projections are."""
    children = list(layer.children()) if type(layer) is nn.Sequential else []
    if len(children) != 2 or not isinstance(children[0], nn.Conv2d):
        return None
    return *children, nn.Identity(), nn.Identity()


def _branch_parts(block):
    """RepVGG's two branches and what follows their sum, else ``None``."""
    children = dict(block.named_children())
    if set(children) != {"conv1", "conv2", "activation"}:
        return None
    branches = [layer_parts(children[name]) for name in ("conv1", "conv2")]
    if any(parts is None or not all(isinstance(each, nn.Identity) for each in parts[2:]) for parts in branches):
        return None
    return *branches, children["activation"]


def _fold_branches(large, small, activation):
    """A convolution and one of 1×1 beside it are one: the small kernel is added in the middle of the large one."""
    (convolution, _, _, _), (other, _, _, _) = large, small
    (height, width), alike = convolution.kernel_size, ("stride", "groups", "dilation")
    if (
        any(getattr(convolution, name) != getattr(other, name) for name in alike)
        or (other.kernel_size, other.padding) != ((1, 1), (0, 0))
        or convolution.padding != (height // 2, width // 2)
    ):
        return None
    folded = [_convolution_with_norm(*parts[:2]) for parts in (large, small)]
    if None in folded:
        return None
    (weight, bias), (small_weight, small_bias) = folded
    weight[:, :, height // 2, width // 2] += small_weight[:, :, 0, 0]
    return _with_activation(convolution, weight, bias + small_bias, activation)


_FOLDS = (
    (layer_parts, _fold_layer),
    (_projection_parts, _fold_layer),
    (_branch_parts, _fold_branches),
)


def _with_relu_and_lab(convolution, weight, bias, lab):
    if isinstance(lab, nn.Identity):
        return FoldedConvLayer(convolution, weight, bias, minimum=0.0)
    s, b = lab.scale.detach().double(), lab.bias.detach().double()
    bound = {"minimum": b.item()} if s.item() >= 0 else {"maximum": b.item()}
    return FoldedConvLayer(convolution, weight * s, bias * s + b, **bound)


def _scale_and_shift(normalization):
    """What batch norm, frozen or not, does to a channel in evaluation mode: ``scale * x + shift``, in float64."""
    parts = [getattr(normalization, name, None) for name in ("weight", "bias", "running_mean", "running_var")]
    if any(not isinstance(part, torch.Tensor) or part.ndim != 1 for part in parts):
        return None
    weight, bias, mean, variance = (part.detach().double() for part in parts)
    scale = weight / torch.sqrt(variance + getattr(normalization, "eps", _FROZEN_BATCH_NORM_EPS))
    return scale, bias - mean * scale


def _fold_classifier_convolution(module):
    """PaddleClas's head: `last_conv` without bias, `act`, `lab`. Returns how many convolutions were folded: 1 or 0."""
    convolution, activation, lab = (getattr(module, name, None) for name in ("last_conv", "act", "lab"))
    if not isinstance(convolution, nn.Conv2d) or not isinstance(activation, nn.ReLU) or not isinstance(lab, nn.Module):
        return 0
    if any(_has_hooks(part) for part in (convolution, activation, lab)):
        return 0
    weight = convolution.weight.detach().double()
    bias = weight.new_zeros(len(weight)) if convolution.bias is None else convolution.bias.detach().double()
    module.last_conv = _with_relu_and_lab(convolution, weight, bias, lab)
    module.act, module.lab = nn.Identity(), nn.Identity()
    return 1


def _has_hooks(module):
    return any(
        part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__ for part in module.modules()
    )


def _computes_the_same(layer, parts_of, fold_parts):
    """Whether the layer's own forward does what its parts promise: in float64, on a small random map."""
    original = copy.deepcopy(layer).double()
    folded = fold_parts(*parts_of(original))
    convolution = next(module for module in original.modules() if isinstance(module, nn.Conv2d))
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(1, convolution.in_channels, 4, 4, dtype=torch.float64, generator=generator)
    sample = sample.to(convolution.weight.device)
    with torch.no_grad():
        expected, got = original(sample), folded(sample)
    tolerance = _SAME * expected.abs().max().item()
    return expected.shape == got.shape and torch.allclose(got, expected, rtol=0, atol=tolerance)


def is_tracing():
    """Whether PyTorch is turning Python into a graph: `torch.export`, `torch.compile`, `torch.jit.trace`."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def _onednn_takes(hidden_state):
    return (
        hidden_state.device.type == "cpu"
        and not torch.is_grad_enabled()
        and not is_tracing()
        and onednn_computes(hidden_state.dtype)
    )
