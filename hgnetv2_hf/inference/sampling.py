"""Deformable attention of D-FINE, RT-DETR and their families as one gather.

A query's points on all levels, and the four neighbours of each, are rows of one table, which ``embedding_bag`` weighs
and sums. It gives the values of a ``grid_sample`` per level, several times faster on CPUs, where that gathers every
channel by itself.
"""

import functools
import inspect
import sys
import types

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from .folding import is_tracing


_SAME = 1e-9
_FUNCTION = "multi_scale_deformable_attention_v2"  # under which RT-DETRv2's and D-FINE's modules hold theirs
_CHECK = "torch_compilable_check"


def sample_points(value, shapes, locations, weights, points):
    """
    Args:
        value (`torch.Tensor`): `(batch, sum of height * width, heads, channels)`, float32 or float64.
        shapes (`list[tuple[int, int]]`): height and width of each level, at least 2.
        locations (`torch.Tensor`): `(batch, queries, heads, points, 2)`, x and y as shares of the image; outside of
            it, zeros are sampled.
        weights (`torch.Tensor`): `(batch, queries, heads, points)`.
        points (`list[int]`): how many of the points lie on each level, in order.

    Returns:
        `torch.Tensor`: `(batch, queries, heads * channels)`.
    """
    batch, length, heads, channels = value.shape
    queries = locations.shape[1]
    levels = _levels.__wrapped__ if is_tracing() else _levels
    sizes, last, starts = levels(tuple(shapes), tuple(points), value.dtype, value.device)
    places = locations * sizes - 0.5
    # The left and upper neighbour, so that the right and lower one is inside too: one that lies further than 1 away
    # gets no share, and where both do, the point lies outside.
    nearest = torch.clamp(places.floor(), torch.zeros_like(last), last)
    distance = places - nearest
    (left, upper), (right, lower) = ((1 - away.abs()).clamp_min(0.0).unbind(-1) for away in (distance, distance - 1))
    x, y = nearest.unbind(-1)
    rows = (y * sizes[:, 0] + x + starts).nan_to_num(0.0).int() * heads
    rows = rows + torch.arange(heads, dtype=torch.int32, device=value.device)[:, None]
    if batch > 1:
        rows = (
            rows
            + (torch.arange(batch, dtype=torch.int32, device=value.device) * (length * heads))[:, None, None, None]
        )
    below = rows + (sizes[:, 0] * heads).int()
    upper, lower = upper * weights, lower * weights
    sampled = F.embedding_bag(
        torch.cat([rows, rows + heads, below, below + heads], -1).view(batch * queries * heads, -1),
        value.reshape(batch * length * heads, channels),
        mode="sum",
        per_sample_weights=torch.cat([upper * left, upper * right, lower * left, lower * right], -1).view(
            batch * queries * heads, -1
        ),
    )
    return sampled.view(batch, queries, heads * channels)


@functools.lru_cache(maxsize=32)
def _levels(shapes, points, dtype, device):
    """Width and height of each point's level, `(points, 2)`, their last but one place, and the position of the level's
    first row, `(points,)`."""
    starts = [0]
    for height, width in shapes:
        starts.append(starts[-1] + height * width)
    sizes = [(width, height) for (height, width), count in zip(shapes, points) for _ in range(count)]
    starts = [start for start, count in zip(starts, points) for _ in range(count)]
    with torch.inference_mode(False):
        sizes = torch.tensor(sizes, dtype=dtype, device=device)
        return sizes, sizes - 2, torch.tensor(starts, dtype=dtype, device=device)


def sample_on_cpu(model):
    """Lets the deformable attentions of a detector, in place, sample with [`sample_points`] on CPUs. One that computes
    something else than its structure promises stays as it is.

    Returns:
        `int`: how many do.
    """
    found = 0
    for module in list(model.modules()):
        function = vars(sys.modules[type(module).__module__]).get(_FUNCTION)
        attention = getattr(module, "attn", None)
        if type(attention).__name__ == "MultiScaleDeformableAttention" and _is_known_module(type(attention)):
            module.attn = _Sampling(module.attn)
        elif "forward" in vars(module):
            continue  # somebody else's, which would be lost
        elif hasattr(module, "sampling_offsets") and function is not None and _is_known(function):
            if hasattr(module, "ms_deformable_attn_core"):
                module.ms_deformable_attn_core = functools.partial(_sample, function)
            module.forward = _ForwardWith(module, function)
        else:
            continue
        found += 1
    return found


def follows_detectors():
    """Whether `torch.compile` follows the forwards of this Transformers' detectors: their checks are functions."""
    return hasattr(transformers.utils, _CHECK)


def _takes(value, shapes):
    if torch.jit.is_tracing() or (is_tracing() and not torch.compiler.is_dynamo_compiling()):
        return False  # exported graphs keep their sizes open
    has_neighbours = all(min(height, width) > 1 for height, width in shapes)
    return has_neighbours and value.device.type == "cpu" and value.dtype in (torch.float32, torch.float64)


def _sample(original, value, shapes, locations, weights, points, method="default"):
    """[`sample_points`] as Transformers calls its function of RT-DETRv2 and D-FINE."""
    if method != "default" or not _takes(value, shapes):
        return original(value, shapes, locations, weights, points, method)
    return sample_points(value, shapes, locations, weights, points)


class _Sampling(nn.Module):
    """[`sample_points`] as Transformers calls its module of RT-DETR."""

    def __init__(self, original):
        super().__init__()
        self.original = original

    def forward(self, value, shapes, shapes_list, starts, locations, weights, step):
        if not _takes(value, shapes_list):
            return self.original(value, shapes, shapes_list, starts, locations, weights, step)
        points = [locations.shape[4]] * locations.shape[3]
        return sample_points(value, shapes_list, locations.flatten(3, 4), weights.flatten(3, 4), points)


class _ForwardWith:
    """The forward of RT-DETRv2's and D-FINE's module, which looks functions up by name, with ours under the name. It
    leaves out the check whether the levels' sizes fit the maps, whose answer in Python would cut a compiled graph."""

    def __init__(self, module, function):
        self.module, self.function = module, function
        forward = inspect.unwrap(type(module).forward)
        names = {**forward.__globals__, _FUNCTION: functools.partial(_sample, function), _CHECK: lambda *_: None}
        self._forward = types.FunctionType(
            forward.__code__, names, forward.__name__, forward.__defaults__, forward.__closure__
        )
        self._forward.__kwdefaults__ = forward.__kwdefaults__

    def __reduce__(self):
        return _ForwardWith, (self.module, self.function)

    def __call__(self, *args, **kwargs):
        return self._forward(self.module, *args, **kwargs)


@functools.lru_cache
def _is_known(function):
    """Whether a function of this name computes what ours does."""
    return _computes_the_same(lambda *inputs: function(*inputs, "default"))


@functools.lru_cache
def _is_known_module(kind):
    """Whether a module of RT-DETR's name computes what ours does."""

    def run(value, shapes, locations, weights, points):
        levels = (len(points), points[0])
        return kind()(
            value, torch.tensor(shapes), shapes, None, locations.unflatten(3, levels), weights.unflatten(3, levels), 64
        )

    return _computes_the_same(run)


def _computes_the_same(run):
    """In float64, on points inside and outside of the image."""
    generator = torch.Generator().manual_seed(0)
    shapes, points = [(3, 4), (2, 5)], [2, 2]
    value = torch.randn(2, 22, 2, 3, dtype=torch.float64, generator=generator)
    locations = torch.rand(2, 4, 2, 4, 2, dtype=torch.float64, generator=generator) * 1.6 - 0.3
    weights = torch.rand(2, 4, 2, 4, dtype=torch.float64, generator=generator)
    try:
        expected = run(value, shapes, locations, weights, points)
    except (TypeError, ValueError, RuntimeError, AttributeError):
        return False
    got = sample_points(value, shapes, locations, weights, points)
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=0, atol=_SAME)
