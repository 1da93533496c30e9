"""
Paddle's inference models: a program (`.json` or `.pdmodel`) and its parameters (`.pdiparams`), read without Paddle.

The file of parameters has no names: its tensors lie in the order of the names in the program, sorted as bytes. Nothing
in either file is executed.

Sources: Paddle's ``framework.proto`` (`.pdmodel`, and the description of a tensor) and ``paddle/fluid/pir/serialize``
(`.json`).
"""

import dataclasses
import json
import math
import os
import struct
from typing import Any, NamedTuple

import torch

from ..errors import ConversionError


LARGEST_PROGRAM = 64 * 2**20  # bytes; that of an RT-DETR has two million
MOST_PARAMETERS = 100_000
_START = b"\0" * 16
_TYPES = {
    0: torch.bool, 1: torch.int16, 2: torch.int32, 3: torch.int64, 4: torch.float16, 5: torch.float32,
    6: torch.float64, 20: torch.uint8, 21: torch.int8, 22: torch.bfloat16,
}  # fmt: skip
_LONGEST_DESCRIPTION = 1024  # bytes
_MOST_LEVELS = 16
_MOST_DIMENSIONS = 16


class Operation(NamedTuple):
    """One step of a program."""

    kind: str  # such as `conv2d`: without a dialect, in the words of Paddle 3
    inputs: list[Any]  # names of values, or lists of names
    outputs: list[str]
    attributes: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Program:
    """What a program's file says."""

    parameters: dict[str, list[int]]  # name to shape
    operations: list[Operation]


def is_parameters(start):
    """Whether a file that starts with these bytes is a `.pdiparams`."""
    return start[:16] == _START


def read_parameters(path):
    """
    Args:
        path (`str`): a `.pdiparams` file.

    Returns:
        `list[torch.Tensor]`: in the order of the file, sharing its memory.

    Raises:
        `ConversionError`: it is missing, truncated, or no such file.
    """
    try:
        size = os.path.getsize(path)
        storage = torch.UntypedStorage.from_file(path, shared=False, nbytes=size)
    except (OSError, RuntimeError) as error:
        raise ConversionError(f"Cannot read {path}: {getattr(error, 'strerror', None) or error}.") from error
    tensors, position = [], 0

    def take(count):
        nonlocal position
        if position + count > size:
            raise ConversionError(f"{path} is truncated: parameter {len(tensors) + 1} goes beyond its end.")
        position += count
        return position - count

    with open(path, "rb") as file:

        def read(form):
            file.seek(take(struct.calcsize(form)))
            return struct.unpack(form, file.read(struct.calcsize(form)))

        while position < size:
            version, levels = read("<IQ")
            if version != 0 or levels > _MOST_LEVELS or len(tensors) == MOST_PARAMETERS:
                raise ConversionError(f"{path} is damaged, or of another version of Paddle (at byte {position}).")
            for _ in range(levels):
                take(*read("<Q"))
            version, length = read("<Ii")
            if version != 0 or not 0 < length <= _LONGEST_DESCRIPTION:
                raise ConversionError(f"{path} is damaged, or of another version of Paddle (at byte {position}).")
            file.seek(take(length))
            dtype, shape = _description(path, file.read(length))
            count = math.prod(shape) * dtype.itemsize
            start = take(count)
            content = torch.empty(0, dtype=torch.uint8).set_(storage, start, (count,), (1,))
            if start % dtype.itemsize:
                content = content.clone()
            tensors.append(content.view(dtype).reshape(shape))
    return tensors


def _description(path, content):
    """Data type and shape of a `VarType.TensorDesc`."""
    try:
        fields = _message(content)
        (kind,), shape = fields[1], _integers(fields.get(2, []))
        if len(shape) > _MOST_DIMENSIONS or any(size < 0 for size in shape):
            raise ValueError(f"a shape {shape}")
        return _TYPES[kind], shape
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"{path} is damaged: a parameter has no type and shape that Paddle writes.") from error


def read_program(path):
    """
    Args:
        path (`str`): a `.json` or `.pdmodel` file, whichever its content is.

    Returns:
        [`Program`]

    Raises:
        `ConversionError`: it is missing, damaged, or no program.
    """
    try:
        if os.path.getsize(path) > LARGEST_PROGRAM:
            raise ConversionError(f"{path} is larger than any program ({LARGEST_PROGRAM // 2**20} MB).")
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise ConversionError(f"Cannot read {path}: {error.strerror or error}.") from error
    read = _read_json if content[:1] == b"{" else _read_protobuf
    try:
        program = read(content)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, struct.error, RecursionError) as error:
        raise ConversionError(f"{path} is no program that Paddle writes, or damaged ({error!r:.100}).") from error
    if not program.parameters or len(program.parameters) > MOST_PARAMETERS:
        raise ConversionError(f"{path} is a program without parameters, or damaged.")
    return program


def named_parameters(program, tensors):
    """
    Args:
        program ([`Program`]): gives the names.
        tensors (`list[torch.Tensor]`): in the order of the file.

    Returns:
        `dict[str, torch.Tensor]`

    Raises:
        `ConversionError`: the two do not belong together.
    """
    names = sorted(program.parameters, key=lambda name: name.encode())
    if len(names) != len(tensors):
        raise ConversionError(
            f"The program has {len(names)} parameters and its file {len(tensors)}: they do not belong together."
        )
    for name, tensor in zip(names, tensors):
        if list(tensor.shape) != program.parameters[name]:
            raise ConversionError(
                f"The program's parameter {name:.80} has shape {program.parameters[name]}, and that of the file "
                f"{list(tensor.shape)}: they do not belong together."
            )
    return dict(zip(names, tensors))


# Paddle 3: JSON


def _read_json(content):
    """`p` operations are parameters; values are numbers under `%`; an attribute's value lies under `AT`."""
    program = json.loads(content)
    if program["base_code"]["magic"] != "pir":
        raise ValueError("no PIR")
    (region,) = program["program"]["regions"]
    (block,) = region["blocks"]
    parameters, operations, lists = {}, [], {}
    for each in block["ops"]:
        if each["#"] == "p":
            name = str(each["A"][3])
            _add(parameters, name, [int(size) for size in each["O"]["TT"]["D"][1]])
            operations.append(Operation("parameter", [name], [_value(each["O"])], {}))
            continue
        kind = each["#"].split(".", 1)[1]
        kind = _NEW_OPERATIONS.get(kind, kind)
        inputs, outputs = [_value(value) for value in each["I"]], [_value(value) for value in each["O"]]
        if kind == "combine":
            lists[outputs[0]] = inputs
            continue
        attributes = {attribute["N"]: _plain(attribute["AT"]) for attribute in each["A"]}
        operations.append(Operation(kind, [lists.get(name, name) for name in inputs], outputs, attributes))
    return Program(parameters, operations)


_NEW_OPERATIONS = {"shape64": "shape", "assign_value_": "assign_value"}


def _value(value):
    return f"%{int(value['%'])}"


def _plain(attribute):
    value = attribute.get("D")
    return [_plain(each) if isinstance(each, dict) else each for each in value] if isinstance(value, list) else value


def _add(parameters, name, shape):
    if name in parameters:
        raise ValueError(f"two parameters are called {name:.80}")
    parameters[name] = shape


# Paddle 2: protobuf

_LOD_TENSOR = 7
# Slots in the order in which Paddle 3 takes them, and Paddle 3's word; a slot with a star gives one list of values.
_OLD_OPERATIONS = {
    "batch_norm": ("batch_norm_", ("X", "Mean", "Variance", "Scale", "Bias"), ("Y",)),
    "layer_norm": ("layer_norm", ("X", "Scale", "Bias"), ("Y",)),
    "conv2d": ("conv2d", ("Input", "Filter"), ("Output",)),
    "depthwise_conv2d": ("depthwise_conv2d", ("Input", "Filter"), ("Output",)),
    "elementwise_add": ("add", ("X", "Y"), ("Out",)),
    "elementwise_sub": ("subtract", ("X", "Y"), ("Out",)),
    "elementwise_mul": ("multiply", ("X", "Y"), ("Out",)),
    "elementwise_div": ("divide", ("X", "Y"), ("Out",)),
    "matmul_v2": ("matmul", ("X", "Y"), ("Out",)),
    "flatten_contiguous_range": ("flatten", ("X",), ("Out",)),
    "reshape2": ("reshape", ("X", "ShapeTensor*"), ("Out",)),
    "transpose2": ("transpose", ("X",), ("Out",)),
    "unsqueeze2": ("unsqueeze", ("X",), ("Out",)),
    "tile": ("tile", ("X", "repeat_times_tensor*"), ("Out",)),
    "concat": ("concat", ("X*",), ("Out",)),
    "stack": ("stack", ("X*",), ("Y",)),
    "top_k_v2": ("topk", ("X",), ("Out", "Indices")),
    "gather_nd": ("gather_nd", ("X", "Index"), ("Out",)),
    "where": ("where", ("Condition", "X", "Y"), ("Out",)),
    "reduce_max": ("max", ("X",), ("Out",)),
    "reduce_sum": ("sum", ("X",), ("Out",)),
    "nearest_interp_v2": ("nearest_interp", ("X",), ("Out",)),
    "grid_sampler": ("grid_sample", ("X", "Grid"), ("Output",)),
    "fill_constant": ("full", (), ("Out",)),
    "fill_any_like": ("full_like", ("X",), ("Out",)),
    "range": ("arange", ("Start", "End", "Step"), ("Out",)),
    "feed": ("data", ("X",), ("Out",)),
}
_OLD_ATTRIBUTES = {"trans_x": "transpose_x", "trans_y": "transpose_y"}


def _read_protobuf(content):
    """`ProgramDesc`: blocks are its field 1; of a block, variables are field 3 and operations field 4."""
    (block,) = _message(content)[1]
    block = _message(block)
    parameters, others = {}, {}
    for variable in map(_message, block[3]):
        (name,), (kind,) = variable[1], variable[2]
        kind = _message(kind)
        if kind[1] == [_LOD_TENSOR]:
            shape = _integers(_message(_message(kind[3][0])[1][0]).get(2, []))
            _add(parameters if variable.get(3) == [1] else others, name.decode(), shape)
    operations = [Operation("parameter", [name], [name], {}) for name in parameters]
    for operation in (_old_operation(_message(each)) for each in block[4]):
        if operation.kind == "data":  # Paddle 3 has the shape here
            operation.attributes["shape"] = others.get(operation.outputs[0])
        operations.append(operation)
    return Program(parameters, operations)


def _old_operation(fields):
    """`OpDesc`: inputs are field 1, outputs field 2, the kind field 3, attributes field 4."""
    kind = fields[3][0].decode()
    inputs, outputs = _slots(fields.get(1, [])), _slots(fields.get(2, []))
    attributes = dict(_old_attribute(_message(each)) for each in fields.get(4, []))
    kind, slots, results = _OLD_OPERATIONS.get(kind, (kind, tuple(inputs), tuple(outputs)))
    names, known = [], {slot.rstrip("*") for slot in slots}
    for slot, given in inputs.items():
        if given and slot not in known:
            raise ValueError(f"{kind} takes {slot:.40}")
    for slot in slots:
        given = inputs.get(slot.rstrip("*"), [])
        names += [given] if slot.endswith("*") and given else given
    return Operation(kind, names, [name for slot in results for name in outputs.get(slot, [])], attributes)


def _slots(variables):
    slots = {}
    for variable in map(_message, variables):
        slots[variable[1][0].decode()] = [name.decode() for name in variable.get(2, [])]
    return slots


def _old_attribute(fields):
    """`OpDesc.Attr`: the name is field 1, the type field 2, and the value in a field of that type."""
    name = fields[1][0].decode()
    name = _OLD_ATTRIBUTES.get(name, name)
    place, plain = _ATTRIBUTE_TYPES.get(fields[2][0], (None, None))
    return name, plain(fields.get(place, [])) if place is not None else None


def _integers(values):
    """Numbers of an `int` field, each by itself or packed into bytes; negative ones are stored as 64 bits."""
    plain = []
    for value in values:
        plain += [value] if isinstance(value, int) else list(_varints(value))
    return [value - 2**64 if value >= 2**63 else value for value in plain]


def _floats(form):
    def plain(values):
        return [
            each for value in values for each in struct.unpack(f"<{len(value) // struct.calcsize(form)}{form}", value)
        ]

    return plain


def _one(plain):
    return lambda values: plain(values)[0]


def _texts(values):
    return [value.decode() for value in values]


def _booleans(values):
    return [bool(value) for value in _integers(values)]


def _scalars(values):
    """Of `Scalar`, whose value lies in a field of its type: truth 2, integer 3, float 4."""
    plain = []
    for fields in map(_message, values):
        numbers = [_booleans(fields.get(2, [])), _integers(fields.get(3, [])), _floats("d")(fields.get(4, []))]
        plain += [number for each in numbers for number in each]
    return plain


_ATTRIBUTE_TYPES = {  # type to field and what makes values of it
    0: (3, _one(_integers)),
    1: (4, _one(_floats("f"))),
    2: (5, _one(_texts)),
    3: (6, _integers),
    4: (7, _floats("f")),
    5: (8, _texts),
    6: (10, _one(_booleans)),
    7: (11, _booleans),
    9: (13, _one(_integers)),
    11: (15, _integers),
    12: (16, _floats("d")),
    15: (19, _one(_floats("d"))),
    17: (21, _scalars),
}


def _message(content):
    """Fields of a protobuf message: number to values, which are integers or bytes."""
    fields, position = {}, 0
    while position < len(content):
        key, position = _varint(content, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(content, position)
        else:
            if wire == 2:
                length, position = _varint(content, position)
            else:
                length = {1: 8, 5: 4}[wire]
            if position + length > len(content):
                raise ValueError("a field is cut off")
            value, position = content[position : position + length], position + length
        fields.setdefault(number, []).append(value)
    return fields


def _varints(content):
    position = 0
    while position < len(content):
        value, position = _varint(content, position)
        yield value


def _varint(content, position):
    value, shift = 0, 0
    while True:
        if position >= len(content) or shift > 63:
            raise ValueError("a number is cut off")
        byte = content[position]
        position, value, shift = position + 1, value | (byte & 127) << shift, shift + 7
        if byte < 128:
            return value & (2**64 - 1), position
