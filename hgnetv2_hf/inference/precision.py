"""Which precisions a device computes natively. Others are emulated: the same numbers, several times slower."""

import functools
import warnings

import torch


_ONEDNN_ASKS = {torch.bfloat16: "_is_mkldnn_bf16_supported", torch.float16: "_is_mkldnn_fp16_supported"}
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "avx_ne_convert"}
_OPENVINO_NAMES = {torch.float32: "FP32", torch.bfloat16: "BF16", torch.float16: "FP16"}


class PrecisionWarning(UserWarning):
    """A precision was asked for that the device does not compute natively."""


def is_native(dtype: torch.dtype, device: "torch.device | str" = "cpu") -> bool:
    """Whether a device has instructions for products in this precision, as PyTorch uses it."""
    kind = torch.device(device).type
    if dtype not in _ONEDNN_ASKS:
        return True
    if kind == "cuda":
        ampere = (8, 0)
        return dtype == torch.float16 or bool(torch.version.hip) or torch.cuda.get_device_capability(device) >= ampere
    return kind != "cpu" or _cpu_is_native(dtype)


def is_native_in_openvino(dtype: torch.dtype, core) -> bool:
    """The same on the CPU device of an `openvino.Core`. Its list knows the processor, but not `ONEDNN_MAX_CPU_ISA`."""
    return _OPENVINO_NAMES[dtype] in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES") and is_native(dtype)


def fastest_dtype(device: "torch.device | str" = "cpu") -> torch.dtype:
    """`torch.bfloat16` where CPU or CUDA computes it natively, else `torch.float32`."""
    known = torch.device(device).type in ("cpu", "cuda")
    return torch.bfloat16 if known and is_native(torch.bfloat16, device) else torch.float32


def warn_if_emulated(dtype: torch.dtype, device: "torch.device | str", stacklevel: int = 2) -> None:
    """Warns with [`PrecisionWarning`] where a model in this precision would be slower than in float32."""
    if not is_native(dtype, device):
        warnings.warn(
            f"This {'processor' if torch.device(device).type == 'cpu' else 'GPU'} does not compute {str(dtype)[6:]} "
            "natively, and "
            'emulating it takes several times as long as float32; choose float32, or "auto" for the fastest native '
            "precision.",
            PrecisionWarning,
            stacklevel + 1,
        )


@functools.cache
def onednn_computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN's convolutions take this precision on this processor, natively or converted inside."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_convolution_weight"):
        return False
    if dtype == torch.float32:
        return True
    asks = _ONEDNN_ASKS.get(dtype)
    return asks is not None and hasattr(torch.ops.mkldnn, asks) and getattr(torch.ops.mkldnn, asks)()


def cpu_flags() -> set[str]:
    """The instruction sets of an x86 processor as Linux names them; empty elsewhere."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((set(line.partition(":")[2].split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return set()


@functools.cache
def _cpu_is_native(dtype):
    # oneDNN takes bfloat16 wherever there is AVX-512, and converts it there if nothing newer is.
    converts = dtype == torch.bfloat16 and bool(flags := cpu_flags()) and not flags & _BFLOAT16_FLAGS
    return onednn_computes(dtype) and not converts
