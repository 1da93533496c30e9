"""Reads and writes ``.pdparams`` without Paddle, and without executing anything from the file.

A ``.pdparams`` is a pickle (protocols 2 to 5) of a dictionary of NumPy arrays. It is interpreted here by Python's own
pure-Python unpickler, cut down to the opcodes that build such dictionaries, with inert stand-ins in the place of every
name that the file may mention: no imported object is ever called, and no size that the file claims is ever allocated.
"""

import os
import pickle
import warnings
from collections import OrderedDict
from types import BuiltinFunctionType, FunctionType
from typing import Union

import numpy as np
import torch

from ..errors import ConversionError
from ..files.atomic import atomic_file
from ..wording import counted
from .nesting import choose_weights


_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE SHORT_BINUNICODE "
    "BINUNICODE8 BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE "
    "TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BINPUT LONG_BINPUT BINGET LONG_BINGET MEMOIZE GLOBAL "
    "STACK_GLOBAL REDUCE BUILD BYTEARRAY8"
).split()
_DTYPES = frozenset("b1 i1 u1 i2 u2 i4 u4 i8 u8 f2 f4 f8".split())
_MAX_NAME_LENGTH = 1024
_MAX_DIMENSIONS = 32
_MAX_OPCODES = 500_000  # a file with 1,000 tensors has 40,000; each may create an object
_STRUCTURE_NAMES = "StructuredToParameterName@@"
_SPLIT_ARRAYS = "UnpackBigParamInfor@@"  # spelled so by Paddle


def read_paddle_file(path: Union[str, os.PathLike]) -> dict[str, torch.Tensor]:
    """
    Reads the tensors of a ``.pdparams`` file.

    Args:
        path (`str` or `os.PathLike`): the file.

    Returns:
        `dict[str, torch.Tensor]`: name to tensor, sharing memory with what was read. Paddle's bfloat16 (kept as
        `uint16`) becomes `torch.bfloat16`.

    Raises:
        `ConversionError`: the file is missing, empty, truncated, not what Paddle writes, or names anything else.
    """
    return read_nested_paddle_file(path)[0]


def read_nested_paddle_file(path, weights=None):
    """As [`read_paddle_file`], of the set that `weights` names; returns what [`choose_weights`] does too."""
    path = os.fspath(path)
    try:
        with open(path, "rb") as file:
            _refuse_other_formats(path, file.read(8))
            content = _interpret(path, file)
    except OSError as error:
        raise ConversionError(f"Cannot read {path}: {error.strerror or error}.") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path} holds a {type(content).__name__} where Paddle writes a dictionary of arrays.")
    taken, place = choose_weights(path, content, (_Array, tuple), weights)
    return _tensors(path, taken.content), taken, place


def _refuse_other_formats(path, start):
    if not start:
        raise ConversionError(f"{path} is empty.")
    if start[:1] != b"\x80":
        raise ConversionError(
            f"{path} is no weight file: neither of Paddle (.pdparams), nor PyTorch, nor safetensors."
        )


def _interpret(path, file):
    try:
        return _Interpreter(_BoundedFile(file), os.fstat(file.fileno()).st_size).load()
    except ConversionError as error:
        raise ConversionError(f"{path} is not what Paddle writes: {error}") from None
    except KeyError as error:  # the unpickler looks its opcodes up in a dictionary
        raise ConversionError(f"{path} is not what Paddle writes: unexpected opcode or reference {error}.") from error
    except (EOFError, pickle.UnpicklingError) as error:
        raise ConversionError(f"{path} is truncated or damaged: {error or 'it ends too early'}.") from error
    except (TypeError, ValueError, AttributeError, IndexError, OverflowError, UnicodeError, RecursionError) as error:
        raise ConversionError(f"{path} is damaged: {error}.") from error


class _BoundedFile:
    """Never asks for more bytes than the file has left, whatever length the file claims."""

    def __init__(self, file):
        self._file = file
        self._left = os.fstat(file.fileno()).st_size
        file.seek(0)

    def read(self, size):
        if size > self._left:
            raise EOFError("it ends too early")
        self._left -= size
        return self._file.read(size)

    def readline(self):
        line = self._file.readline(_MAX_NAME_LENGTH)
        self._left -= len(line)
        return line


class _Array:
    """Stand-in for ``numpy.ndarray`` while the file is read."""

    value = None

    def set_state(self, state):
        _, shape, dtype, is_fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(data, bytes) or not isinstance(shape, tuple):
            raise ConversionError("an array is not stored as bytes with a shape and a numeric type.")
        if len(shape) > _MAX_DIMENSIONS or any(type(size) is not int or size < 0 for size in shape):
            raise ConversionError("an array has an impossible shape.")
        expected = np.dtype(dtype.name).itemsize
        for size in shape:
            expected *= size
        if expected != len(data):
            raise ConversionError(f"an array of shape {shape} has {counted(len(data), 'byte')} instead of {expected}.")
        self.value = np.frombuffer(data, dtype=dtype.name).reshape(shape, order="F" if is_fortran else "C")


class _DType:
    """Stand-in for ``numpy.dtype``: one of a dozen numeric types, little-endian."""

    def __init__(self, name, *flags):
        name = name.decode("ascii") if isinstance(name, bytes) else name
        if not isinstance(name, str) or name.lstrip("<|=") not in _DTYPES:
            raise ConversionError("an array has a type that is not a plain number.")
        self.name = "<" + name.lstrip("<|=")

    def set_state(self, state):
        if state[1] not in ("<", "|", "=", b"<", b"|", b"="):
            raise ConversionError("an array is not stored in little-endian order.")


class _NDArrayName:
    """Stand-in for the name ``numpy.ndarray``, which only ever stands as an argument."""


def _new_array(*_):
    return _Array()


def _from_buffer(data, dtype, shape, order, axis_order=None):
    """How NumPy writes an array with protocol 5; ``axis_order`` since NumPy 2.3, if it is C-ordered but for that."""
    if order not in ("C", "F", "K") or (order == "K") != (axis_order is not None):
        raise ConversionError("an array is stored in an unknown order.")
    array = _Array()
    array.set_state((None, shape, dtype, order == "F", data))
    if order == "K":
        if not isinstance(axis_order, tuple) or not all(type(axis) is int for axis in axis_order):
            raise ConversionError("an array is stored in an unknown order.")
        array.value = array.value.transpose(axis_order)
    return array


def _encode(text, encoding):
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise ConversionError("bytes are encoded in an unknown way.")
    return text.encode("latin1")


def _new_tuple(items=()):
    if not isinstance(items, tuple):
        raise ConversionError("a tuple is made of something else.")
    return items


def _no_bytes():
    return b""  # protocol 2 writes empty bytes as a call


def _new_ordered_dict():
    return OrderedDict()


# What a Paddle file may mention, and what stands in for it.
_NAMES = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _new_array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _NDArrayName,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    ("builtins", "tuple"): _new_tuple,
    ("__builtin__", "bytes"): _no_bytes,
    ("__builtin__", "tuple"): _new_tuple,
    ("collections", "OrderedDict"): _new_ordered_dict,
}


class _CountedOpcodes(dict):
    """The table of opcodes, which gives out a limited number of them."""

    left = _MAX_OPCODES

    def __getitem__(self, code):
        self.left -= 1
        if self.left < 0:
            raise ConversionError(f"it has more than {_MAX_OPCODES} opcodes.")
        return super().__getitem__(code)


class _Interpreter(pickle._Unpickler):
    # The pure-Python unpickler: its table of opcodes can be cut, and its memo is a dictionary.
    dispatch = {getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in _OPCODES}

    def __init__(self, file, size):
        super().__init__(file, encoding="latin1")
        self.dispatch = _CountedOpcodes(self.dispatch)
        self._encodable = size  # what may be encoded in all: one text could be encoded again and again

    def find_class(self, module, name):
        if (module, name) not in _NAMES:
            asked = f"{module}.{name}"[:80]
            raise ConversionError(f"it asks for {asked}, which no weight file needs. Nothing was executed.")
        return _NAMES[module, name]

    def load_reduce(self):
        arguments = self.stack.pop()
        function = self.stack[-1]
        if not any(function is known for known in _NAMES.values()) or function is _NDArrayName:
            raise ConversionError("it calls something that is not a function.")
        if not isinstance(arguments, tuple):
            raise ConversionError("it calls a function without arguments.")
        if function is _encode:
            self._encodable -= len(arguments[0])
            if self._encodable < 0:
                raise ConversionError("it encodes more bytes than it holds.")
        self.stack[-1] = function(*arguments)

    def load_build(self):
        state = self.stack.pop()
        target = self.stack[-1]
        if not isinstance(target, (_Array, _DType)) or not isinstance(state, tuple):
            raise ConversionError("it sets the state of something that is not an array.")
        target.set_state(state)

    def load_bytearray8(self):
        # pickle's own allocates what the file claims before it reads
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def load_setitem(self):
        value = self.stack.pop()
        key = self.stack.pop()
        self._set_items(self.stack[-1], [key, value])

    def load_setitems(self):
        items = self.pop_mark()
        self._set_items(self.stack[-1], items)

    def _set_items(self, target, items):
        # Text keys only: hashing a deeply nested tuple would exhaust the interpreter's stack.
        if not isinstance(target, dict) or len(items) % 2 or not all(isinstance(key, str) for key in items[::2]):
            raise ConversionError("a dictionary has keys that are not names.")
        target.update(zip(items[::2], items[1::2]))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8
    dispatch[pickle.REDUCE[0]] = load_reduce
    dispatch[pickle.BUILD[0]] = load_build
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems


def _tensors(path, content):
    arrays = {}
    for name, value in content.items():
        if name in (_STRUCTURE_NAMES, _SPLIT_ARRAYS):
            continue
        if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], _Array):
            value = value[1]  # (parameter name, array)
        if not isinstance(value, _Array) or value.value is None:
            raise ConversionError(f"{path} holds {name[:80]!r}, which is not an array.")
        arrays[name] = value.value
    split = content.get(_SPLIT_ARRAYS, {})
    if not isinstance(split, dict):
        raise ConversionError(f"{path} does not say how its split arrays fit together.")
    for name, parts in split.items():
        arrays[name] = _join(path, name, parts, arrays)
    if not arrays:
        raise ConversionError(f"{path} holds no tensors.")
    return {name: _as_tensor(array) for name, array in arrays.items()}


def _join(path, name, parts, arrays):
    """Old protocols split arrays of more than 1 GiB."""
    try:
        if not all(type(key) is str for key in parts["slices"]):
            raise TypeError("a part has no name")
        pieces = [arrays.pop(key).ravel() for key in parts["slices"]]
        return np.concatenate(pieces).reshape(tuple(parts["OriginShape"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"{path} holds {name[:80]!r} in parts that do not fit together: {error}.") from error


def _as_tensor(array):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # read-only memory; nobody writes to it
        if array.dtype == np.dtype("<u2"):
            return torch.from_numpy(array.view("<i2")).view(torch.bfloat16)
        return torch.from_numpy(np.ascontiguousarray(array) if array.ndim else array)


def write_paddle_file(tensors: dict[str, torch.Tensor], path: Union[str, os.PathLike]) -> None:
    """
    Writes what ``paddle.save(layer.state_dict(), path)`` writes.

    Args:
        tensors (`dict[str, torch.Tensor]`): floating-point tensors under PaddleClas's names.
        path (`str` or `os.PathLike`): the file; complete or absent when this returns or raises.

    Raises:
        `OSError`: the file cannot be written.
    """
    content = {name: tensor.detach().cpu().contiguous().numpy() for name, tensor in tensors.items()}
    content[_STRUCTURE_NAMES] = {name: f"parameter_{i}" for i, name in enumerate(tensors)}
    with atomic_file(path) as partial, open(partial, "wb") as file:
        _Writer(file, protocol=4).dump(content)


class _Writer(pickle._Pickler):
    """Names NumPy's reconstruction function as NumPy 1 does, because Paddle pins NumPy 1 and cannot find NumPy 2's."""

    def save_global(self, obj, name=None):
        if getattr(obj, "__name__", "") == "_reconstruct":
            self.write(pickle.GLOBAL + b"numpy.core.multiarray\n_reconstruct\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)

    dispatch = {**pickle._Pickler.dispatch, FunctionType: save_global, BuiltinFunctionType: save_global}
