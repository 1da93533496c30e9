"""
Runs a program of Paddle step by step in float64: what an exported network computes, without Paddle.

A table gives each operation that exports of these networks hold its arithmetic in PyTorch; every other one is refused.
A program is data from a file, so what it may cost is limited before each step.

Source: the operators' documentation (``paddle.nn.functional``) and ``paddle/phi/kernels``.
"""

import math

import torch
from torch.nn import functional as F

from ..errors import ConversionError


_MOST_OPERATIONS = 20_000
_MOST_NUMBERS = 2**26  # in one value: half a gigabyte
_MOST_PRODUCTS = 2**37  # in all; B6 has 2^32 for an input of 96 × 96
_OF_OTHER_EXPORTS = ("fused", "fusion", "quantize", "dequantize", "fake_", "fc", "tensorrt", "onednn")


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


def run_program(program, parameters, pixel_values, watched=()):
    """
    Args:
        program ([`Program`]): takes one image; [`check_operations`] has seen it.
        parameters (`dict[str, torch.Tensor]`): by the program's names.
        pixel_values (`torch.Tensor` of shape `(batch, channels, height, width)`): float64.
        watched (container of `str`): values to return, too.

    Returns:
        `tuple[list[torch.Tensor], dict[str, torch.Tensor]]`: what the program returns, without a softmax or sigmoid at
        its end; and the watched values.

    Raises:
        `ConversionError`: an operation fails or would cost too much.
    """
    values = {name: tensor.double() for name, tensor in parameters.items()}
    before, fetched, seen, cost = {}, [], {}, 0
    for operation in program.operations:
        if operation.kind == "parameter":
            values[operation.outputs[0]] = values[operation.inputs[0]]
        elif operation.kind == "data":
            values[operation.outputs[0]] = pixel_values
        elif operation.kind == "fetch":
            fetched.append(before.get(operation.inputs[0], operation.inputs[0]))
        else:
            result, products = _step(operation, values)
            cost += products
            if cost > _MOST_PRODUCTS:
                raise ConversionError("The program computes more than any such network.")
            values[operation.outputs[0]] = result
            if operation.outputs[0] in watched:
                seen[operation.outputs[0]] = result
            if operation.kind in ("softmax", "sigmoid"):
                before[operation.outputs[0]] = operation.inputs[0]
    return [values[name] for name in fetched], seen


def _step(operation, values):
    """One value, and the products that it took."""
    kind = operation.kind
    try:
        arguments = [_look_up(values, name) for name in operation.inputs]
        shape = _STEPS[kind](operation.attributes, *_on_meta(arguments))  # nothing is computed there
        products = _products(kind, shape, arguments)
        if isinstance(shape, torch.Tensor) and shape.numel() > _MOST_NUMBERS:
            raise ConversionError("The program computes more than any such network.")
        return _STEPS[kind](operation.attributes, *arguments), products
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        raise ConversionError(
            f"The program's operation {kind} does not work: {str(error) or error!r:.150}."
        ) from error


def _look_up(values, name):
    return [values[each] for each in name] if isinstance(name, list) else values[name]


def _on_meta(value):
    if isinstance(value, list):
        return [_on_meta(each) for each in value]
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _products(kind, result, arguments):
    if not isinstance(result, torch.Tensor):
        return 0
    if kind in _CONVOLUTIONS:
        return result.numel() * math.prod(arguments[1].shape[1:])
    return result.numel() * (arguments[0].shape[-1] if kind == "matmul" else 1)


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


def _aligned(attributes, x, y):
    """The second operand with the trailing dimensions that Paddle 2 leaves out where an axis is given."""
    axis = attributes.get("axis", -1)
    if axis != -1 and y.ndim < x.ndim:
        y = y.reshape(*y.shape, *[1] * (x.ndim - axis - y.ndim))
    return x, y


def _concat(attributes, parts, axis=None):
    return torch.cat(parts, attributes["axis"] if axis is None else int(axis))


def _flatten(attributes, x):
    return x.flatten(attributes["start_axis"], attributes["stop_axis"])


def _matmul(attributes, x, y):
    x = x.transpose(-1, -2) if attributes["transpose_x"] else x
    return x @ (y.transpose(-1, -2) if attributes["transpose_y"] else y)


def _full(attributes):
    if attributes["shape"] != [1]:
        raise ValueError("only single numbers are read")
    return attributes["value"]


def _dropout(attributes, x, *_):
    is_downscaled = attributes.get("mode", attributes.get("dropout_implementation")) == "downscale_in_infer"
    return x * (1 - attributes.get("p", attributes.get("dropout_prob"))) if is_downscaled else x


_CONVOLUTIONS = ("conv2d", "depthwise_conv2d")
_STEPS = {
    **dict.fromkeys(_CONVOLUTIONS, _convolution),
    "pool2d": _pool,
    "batch_norm_": _batch_norm,
    "batch_norm": _batch_norm,
    "relu": lambda attributes, x: x.relu(),
    "sigmoid": lambda attributes, x: x.sigmoid(),
    "softmax": lambda attributes, x: x.softmax(attributes["axis"]),
    "add": lambda attributes, x, y: torch.add(*_aligned(attributes, x, y)),
    "multiply": lambda attributes, x, y: torch.mul(*_aligned(attributes, x, y)),
    "concat": _concat,
    "flatten": _flatten,
    "matmul": _matmul,
    "dropout": _dropout,
    "full": _full,
    "full_int_array": lambda attributes: attributes["value"],
}
