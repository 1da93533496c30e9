"""
Runs a program of Paddle step by step in float64: what an exported network computes, without Paddle.

A table gives each operation that exports of these networks hold its arithmetic in PyTorch; every other one is refused.
A program is data from a file, so what it may cost is limited before each step.

Source: the operators' documentation (``paddle.nn.functional``) and ``paddle/phi/kernels``.
"""

import dataclasses
import math

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from ..errors import ConversionError


_MOST_OPERATIONS = 20_000
_MOST_NUMBERS = 2**26  # in one value: half a gigabyte
_MOST_AT_ONCE = 2**27  # in all values that are still needed
_MOST_WATCHED = 2**18  # of one value
_MOST_PRODUCTS = 2**39  # in all; B6 has 2^32 for an input of 96 × 96, RT-DETR H 2^38 for one of 640 × 640
_OF_OTHER_EXPORTS = ("fused", "fusion", "quantize", "dequantize", "fake_", "fc", "tensorrt", "onednn")


def steps_to(program, wanted):
    """The program without the operations that these values (a container of `str`) do not need."""
    needed, kept = set(wanted), []
    for operation in reversed(program.operations):
        if not needed.isdisjoint(operation.outputs):
            kept.append(operation)
            needed.update(_names_in(operation.inputs))
    return dataclasses.replace(program, operations=kept[::-1])


def _names_in(inputs):
    return [name for each in inputs for name in (each if isinstance(each, list) else [each])]


def check_operations(program):
    """Raises ``ConversionError`` where the program holds an operation that no such network needs."""
    if len(program.operations) > _MOST_OPERATIONS:
        raise ConversionError(f"The program has {len(program.operations)} operations, more than any such network.")
    for kind in {operation.kind for operation in program.operations} - set(_STEPS) - {"parameter", "data", "fetch"}:
        if any(word in kind for word in _OF_OTHER_EXPORTS):
            raise ConversionError(
                f"The program holds the operation {kind:.60}, so it is fused or quantised; export it again without."
            )
        raise ConversionError(f"The program holds the operation {kind:.60}, which no PP-HGNetV2 needs.")


def run_program(program, parameters, inputs, watched=()):
    """
    Args:
        program ([`Program`]): [`check_operations`] has seen it.
        parameters (`dict[str, torch.Tensor]`): by the program's names.
        inputs (`torch.Tensor` or `dict[str, torch.Tensor]`): float64; the images, of shape `(batch, channels, height,
            width)`, or what the program takes by its names.
        watched (container of `str`): values to return, too.

    Returns:
        `tuple[list[torch.Tensor], dict[str, torch.Tensor]]`: what the program returns, without a softmax or sigmoid at
        its end; and the watched values, [`thinned`].

    Raises:
        `ConversionError`: an operation fails or would cost too much.
    """
    values, before, fetched, seen = {}, before_the_end(program), [], {}
    last_use, cost, held = _last_uses(program, before), 0, {}
    for index, operation in enumerate(_shown(program.operations)):
        if operation.kind == "parameter":
            values[operation.outputs[0]] = parameters[operation.inputs[0]]
        elif operation.kind == "data":
            values[operation.outputs[0]] = _input(operation, inputs)
        elif operation.kind == "fetch":
            fetched.append(values[before.get(operation.inputs[0], operation.inputs[0])])
        else:
            arguments = _arguments(operation, values)
            products, numbers = _cost(operation, arguments)
            cost += products
            if numbers > _MOST_NUMBERS or numbers + sum(held.values()) > _MOST_AT_ONCE or cost > _MOST_PRODUCTS:
                raise ConversionError("The program computes more than any such network.")
            results = _named(operation, _tried(operation, arguments))
            values.update(results)
            held.update({name: _count(value) for name, value in results.items()})
            for name in results.keys() & set(watched):
                seen[name] = thinned(results[name])
                held[name, "seen"] = _count(seen[name])
        for name in {*operation.outputs, *_names_in(operation.inputs)}:
            if last_use.get(name, -1) <= index:
                values.pop(name, None)
                held.pop(name, None)
    return fetched, seen


def _shown(operations):
    """With progress, for the minute that a large detector takes."""
    return tqdm(operations, desc="exported program, run here", unit="operation", delay=2, leave=False)


def thinned(value):
    """The tensor, or of a large one every n-th number, so that all that is watched fits into memory."""
    if not isinstance(value, torch.Tensor):
        raise ConversionError("The program computes a single number where such a network has a layer.")
    step = -(-value.numel() // _MOST_WATCHED)
    return value if step <= 1 else value.flatten()[::step].clone()


def _named(operation, result):
    several = len(operation.outputs) > 1 and isinstance(result, (list, tuple))
    return dict(zip(operation.outputs, result if several else [result]))


def before_the_end(program):
    """What is returned through a softmax or sigmoid, and the value before that."""
    returned = {operation.inputs[0] for operation in program.operations if operation.kind == "fetch"}
    ends = (
        operation
        for operation in program.operations
        if operation.kind == "sigmoid" or (operation.kind == "softmax" and operation.attributes.get("axis") in (-1, 1))
    )
    return {end.outputs[0]: end.inputs[0] for end in ends if end.outputs[0] in returned}


def _last_uses(program, before):
    last = {}
    for index, operation in enumerate(program.operations):
        for name in _names_in(operation.inputs):
            last[name] = index
            if operation.kind == "fetch":
                last[before.get(name, name)] = index
    return last


def _input(operation, inputs):
    if isinstance(inputs, torch.Tensor):
        return inputs
    name = str(operation.attributes.get("name", operation.outputs[0]))
    if name not in inputs:
        raise ConversionError(f"The program takes an input {name:.60}, which no such network has.")
    return inputs[name]


def _count(value):
    if isinstance(value, (list, tuple)):
        return sum(map(_count, value))
    return value.numel() if isinstance(value, torch.Tensor) else 1


def _arguments(operation, values):
    try:
        return [_look_up(values, name) for name in operation.inputs]
    except KeyError as error:
        raise ConversionError(
            f"The program's operation {operation.kind} needs a value that is not there ({error!s:.60})."
        ) from error


def _cost(operation, arguments):
    """The products that an operation takes, and how many numbers it gives at most; nothing is computed."""
    if operation.kind in _SIZES:
        return (_tried(operation, arguments, _SIZES),) * 2
    with torch.device("meta"):
        result = _tried(operation, _on_meta(arguments))
    numbers = _count(result)
    if operation.kind in _CONVOLUTIONS:
        return numbers * math.prod(arguments[1].shape[1:]), numbers
    if operation.kind == "matmul":
        return numbers * arguments[0].shape[-1], numbers
    return max(numbers, _count(arguments)), numbers


def _tried(operation, arguments, steps=None):
    try:
        return (steps or _STEPS)[operation.kind](operation.attributes, *arguments)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise ConversionError(
            f"The program's operation {operation.kind} does not work: {str(error) or error!r:.150}."
        ) from error


def _look_up(values, name):
    if isinstance(name, list):
        return [_look_up(values, each) for each in name]
    value = None if name == _NOTHING else values[name]
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


_NOTHING = "%0"  # Paddle 3's name of an argument that is not given


def _on_meta(value):
    if isinstance(value, list):
        return [_on_meta(each) for each in value]
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _convolution(attributes, x, weight):
    _check_format(attributes)
    if any(value for name, value in attributes.items() if name.startswith("fuse_")):
        raise ValueError("it is fused with others")
    strides, dilations = attributes["strides"], attributes["dilations"]
    x, paddings = _padded(attributes, x, weight.shape[2:], strides, 0.0)
    return F.conv2d(x, weight, None, strides, paddings, dilations, attributes["groups"])


def _pool(attributes, x, size=None):
    _check_format(attributes)
    size = attributes.get("ksize", size)
    is_maximum = attributes["pooling_type"] == "max"
    if attributes["global_pooling"] or (attributes["adaptive"] and list(size) == [1, 1]):
        return x.amax((2, 3), keepdim=True) if is_maximum else x.mean((2, 3), keepdim=True)
    if not is_maximum or attributes["adaptive"]:
        raise ValueError("this kind of pooling is not read")
    x, paddings = _padded(attributes, x, size, attributes["strides"], float("-inf"))
    is_same = attributes["padding_algorithm"] == "SAME"
    return F.max_pool2d(x, size, attributes["strides"], paddings, ceil_mode=attributes["ceil_mode"] and not is_same)


def _padded(attributes, x, size, strides, value):
    """The image with what has to be padded unevenly, and the even padding that is left to the operation."""
    algorithm, paddings = attributes["padding_algorithm"], attributes["paddings"]
    if algorithm == "EXPLICIT" and len(paddings) == 2:
        return x, paddings
    if algorithm == "VALID":
        return x, [0, 0]
    if algorithm == "EXPLICIT":
        top, bottom, left, right = paddings
        return F.pad(x, (left, right, top, bottom), value=value), [0, 0]
    if algorithm != "SAME":
        raise ValueError(f"unknown padding {algorithm!r:.40}")
    sides = []
    for length, kernel, stride in zip(x.shape[2:], size, strides):
        missing = max((-(-length // stride) - 1) * stride + kernel - length, 0)
        sides = [missing // 2, missing - missing // 2, *sides]
    return F.pad(x, sides, value=value), [0, 0]


def _check_format(attributes):
    if attributes.get("data_format", attributes.get("data_layout", "NCHW")) not in ("NCHW", "AnyLayout"):
        raise ValueError("only channels-first data are read")


def _batch_norm(attributes, x, mean, variance, scale, bias):
    _check_format(attributes)
    if not (attributes["is_test"] or attributes.get("use_global_stats")):
        raise ValueError("it was exported for training")
    return F.batch_norm(x, mean, variance, scale, bias, eps=attributes["epsilon"])


def _binary(compute):
    def step(attributes, x, y):
        """Paddle 2 leaves out the second operand's trailing dimensions where an axis is given."""
        axis = attributes.get("axis", -1)
        if axis != -1 and y.ndim < x.ndim:
            y = y.reshape(*y.shape, *[1] * (x.ndim - axis - y.ndim))
        return compute(x, y)

    return step


def _argument(attributes, name, value):
    """What Paddle 3 passes as a value is an attribute in Paddle 2."""
    return attributes[name] if value is None else value


def _concat(attributes, parts, axis=None):
    return torch.cat(parts, int(_argument(attributes, "axis", axis)))


def _stack(attributes, parts):
    """A list where the parts are numbers, as those of a shape are."""
    return torch.stack(parts, attributes["axis"]) if isinstance(parts[0], torch.Tensor) else parts


def _reshape(attributes, x, shape=None):
    """A side of 0 is kept."""
    shape = _argument(attributes, "shape", shape)
    return x.reshape([x.shape[axis] if side == 0 else int(side) for axis, side in enumerate(shape)])


def _slice(attributes, x, starts=None, ends=None):
    axes, dropped = attributes["axes"], attributes["decrease_axis"]
    starts, ends = _argument(attributes, "starts", starts), _argument(attributes, "ends", ends)
    if isinstance(x, list):  # a shape
        return x[starts[0] : ends[0]][0] if dropped else x[starts[0] : ends[0]]
    index = [slice(None)] * x.ndim
    for axis, start, end in zip(axes, starts, ends):
        index[axis] = slice(start, end)
    x = x[tuple(index)]
    return x.squeeze(tuple(dropped)) if dropped else x


def _split(attributes, x, sections=None, axis=None):
    if isinstance(x, list):  # Paddle 3 takes a list apart by an operation of the same name
        return x
    return list(x.split(_argument(attributes, "sections", sections), int(_argument(attributes, "axis", axis))))


def _unsqueeze(attributes, x, axes=None):
    for axis in _argument(attributes, "axes", axes):
        x = x.unsqueeze(axis)
    return x


def _tile(attributes, x, times=None):
    return x.repeat([int(each) for each in _argument(attributes, "repeat_times", times)])


def _scale(attributes, x, factor=None):
    factor, bias = _argument(attributes, "scale", factor), attributes["bias"]
    factor = float(factor)
    result = x * factor + bias if attributes["bias_after_scale"] else (x + bias) * factor
    return int(result) if isinstance(x, int) else result


def _top(attributes, x, count=None):
    count = int(_argument(attributes, "k", count))
    return tuple(x.topk(count, attributes["axis"], attributes["largest"], attributes["sorted"]))


def _reduced(compute):
    def step(attributes, x, axes=None):
        axes = attributes["dim"] if axes is None else axes
        if not axes or attributes.get("reduce_all"):
            raise ValueError("only chosen axes are reduced")
        return compute(x, axes, attributes.get("keepdim", attributes.get("keep_dim")))

    return step


def _clip(attributes, x, lowest=None, highest=None):
    return x.clamp(_argument(attributes, "min", lowest), _argument(attributes, "max", highest))


def _nearest(attributes, x, *_):
    if attributes["align_corners"] or attributes["interp_method"] != "nearest" or not attributes["scale"]:
        raise ValueError("this kind of interpolation is not read")
    _check_format(attributes)
    return F.interpolate(x, scale_factor=attributes["scale"], mode="nearest")


def _grid_sample(attributes, x, grid):
    mode, padding_mode, align_corners = (attributes[name] for name in ("mode", "padding_mode", "align_corners"))
    return F.grid_sample(x, grid, mode, padding_mode, align_corners)


def _layer_norm(attributes, x, scale, bias):
    return F.layer_norm(x, x.shape[attributes["begin_norm_axis"] :], scale, bias, attributes["epsilon"])


def _gelu(attributes, x):
    return F.gelu(x, approximate="tanh" if attributes["approximate"] else "none")


def _cast(attributes, x):
    kind = _TYPES[attributes.get("dtype", attributes.get("out_dtype"))]
    return x.to(kind) if isinstance(x, torch.Tensor) else x


def _full_like(attributes, x, value=None, *_):
    return torch.full_like(x, _argument(attributes, "value", value))


def _assign_value(attributes, *_):
    kind = _TYPES[attributes["dtype"]]
    values = next(attributes[name] for name in _VALUES if attributes.get(name))
    return torch.tensor(values, dtype=kind).reshape(attributes["shape"])


_VALUES = ("values", "fp32_values", "int32_values", "int64_values", "bool_values")
# Types by Paddle 3's names and Paddle 2's numbers; numbers are float64 here.
_TYPES = {
    **dict.fromkeys(("bool", 0), torch.bool),
    **dict.fromkeys(("int32", "int64", 2, 3), torch.int64),
    **dict.fromkeys(("float32", "float64", 5, 6), torch.float64),
}


def _flatten(attributes, x):
    return x.flatten(attributes["start_axis"], attributes["stop_axis"])


def _matmul(attributes, x, y):
    x = x.transpose(-1, -2) if attributes["transpose_x"] else x
    return x @ (y.transpose(-1, -2) if attributes["transpose_y"] else y)


def _full(attributes):
    if attributes["shape"] not in ([1], []):
        raise ValueError("only single numbers are read")
    value = float(attributes.get("str_value") or attributes["value"])
    return int(value) if _TYPES.get(attributes.get("dtype")) == torch.int64 else value


def is_downscaling(attributes):
    """Whether a dropout multiplies by 1 - p in evaluation."""
    mode = attributes.get("mode", attributes.get("dropout_implementation"))
    if mode not in ("downgrade_in_infer", "upscale_in_train"):
        raise ConversionError(f"The program holds a dropout of the unknown kind {mode!r:.40}.")
    return mode == "downgrade_in_infer"


def _dropout(attributes, x, seed=None, probability=None):
    """Paddle takes the probability, and the factor, as float32 numbers."""
    if not attributes["is_test"]:
        raise ValueError("it was exported for training")
    if not is_downscaling(attributes):
        return x
    probability = attributes["dropout_prob"] if probability is None else probability
    return x * float(np.float32(1) - np.float32(probability))


_CONVOLUTIONS = ("conv2d", "depthwise_conv2d")
_STEPS = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    "pool2d": _pool,
    "batch_norm_": _batch_norm,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "relu": lambda attributes, x: x.relu(),
    "silu": lambda attributes, x: F.silu(x),
    "swish": lambda attributes, x: F.silu(x),
    "gelu": _gelu,
    "sigmoid": lambda attributes, x: x.sigmoid(),
    "softmax": lambda attributes, x: x.softmax(attributes["axis"]),
    "log": lambda attributes, x: x.log(),
    "clip": _clip,
    "scale": _scale,
    "add": _binary(lambda x, y: x + y),
    "subtract": _binary(lambda x, y: x - y),
    "multiply": _binary(lambda x, y: x * y),
    "divide": _binary(lambda x, y: x / y),
    "matmul": _matmul,
    "sum": _reduced(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "max": _reduced(lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    "topk": _top,
    "where": lambda attributes, condition, x, y: torch.where(condition, x, y),
    "gather_nd": lambda attributes, x, index: x[index.unbind(-1)],
    "grid_sample": _grid_sample,
    "nearest_interp": _nearest,
    "concat": _concat,
    "stack": _stack,
    "split": _split,
    "slice": _slice,
    "reshape": _reshape,
    "flatten": _flatten,
    "unsqueeze": _unsqueeze,
    "tile": _tile,
    "transpose": lambda attributes, x: x.permute(attributes.get("perm", attributes.get("axis"))),
    "shape": lambda attributes, x: list(x.shape),
    "dropout": _dropout,
    "cast": _cast,
    "full": _full,
    "full_like": _full_like,
    "full_int_array": lambda attributes: attributes["value"],
    "assign_value": _assign_value,
    "arange": lambda attributes, start, end, step: torch.arange(start, end, step),
}
# How many numbers an operation gives at most, where no trial with empty tensors is needed to know.
_UNARY = (
    "batch_norm_", "batch_norm", "layer_norm", "relu", "silu", "swish", "gelu", "sigmoid", "softmax", "log", "scale",
    "slice", "split", "reshape", "flatten", "unsqueeze", "transpose", "cast", "full_like",
)  # fmt: skip
_SIZES = {
    **dict.fromkeys(_UNARY, lambda attributes, x, *_: _count(x)),
    "grid_sample": lambda attributes, x, grid: math.prod((*x.shape[:2], *grid.shape[1:-1])),
}
