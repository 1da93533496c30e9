"""What a weight may hold: finite float32 numbers, variances that have a root, and memory of its own."""

import torch

from ..errors import ConversionError


def checked_weight(name, tensor):
    """
    Args:
        name (`str`): the tensor's name in Transformers, under which running variances are known.
        tensor (`torch.Tensor`): of any real type and shape.

    Returns:
        `torch.Tensor`: the same values in float32, contiguous.

    Raises:
        `ConversionError`: a value is NaN or infinite, or would become infinite in float32, or is a negative variance.
    """
    if tensor.is_complex():
        raise ConversionError(f"The tensor {name} holds {tensor.dtype} values; weights are real numbers.")
    converted = tensor.float()
    if not torch.isfinite(converted).all():
        if torch.isfinite(tensor).all():
            largest = float(tensor.abs().max())
            raise ConversionError(
                f"The tensor {name} holds {largest:.1e}, which is beyond float32; weights are saved in it."
            )
        raise ConversionError(f"The tensor {name} holds values that are not finite (NaN or infinity).")
    if name.endswith("running_var") and (converted < 0).any():
        raise ConversionError(
            f"The tensor {name} holds a negative variance ({float(converted.min()):.1e}), whose root is NaN."
        )
    return converted.contiguous()


def with_memory_of_their_own(tensors):
    """
    Copies tensors that lie in the memory of others, as tied weights do: safetensors writes no byte under two names.

    Args:
        tensors (`dict[str, torch.Tensor]`): contiguous.

    Returns:
        `dict[str, torch.Tensor]`: the same names, order and values; most of the tensors are the same objects.
    """
    copied, end = dict(tensors), 0
    for name in sorted(tensors, key=lambda name: tensors[name].data_ptr()):
        start = tensors[name].data_ptr()
        if start < end:
            copied[name] = tensors[name].clone()
        end = max(end, start + tensors[name].numel() * tensors[name].element_size())
    return copied
