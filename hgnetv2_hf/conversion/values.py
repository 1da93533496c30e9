"""What a weight may hold: numbers that are finite in float32, and variances that have a root."""

import torch

from .errors import ConversionError


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
