"""One call from a trained model to its fastest exact form in PyTorch: folded, channels-last, cast, compiled."""

import contextlib
import copy
import functools
import threading
from typing import TypeVar, Union

import torch
from torch import nn

from ..structure import contains_hgnetv2, is_network
from .folding import fold, is_folded, is_tracing
from .late_boxes import box_chosen_places, without_late_boxes
from .precision import fastest_dtype, warn_if_emulated
from .sampling import follows_detectors, sample_on_cpu


Model = TypeVar("Model", bound=nn.Module)

_COMPILED_SHAPES = 64  # beyond these, PyTorch runs the folded model without compiling it


def optimize_for_inference(
    model: Model, dtype: Union[torch.dtype, str, None] = None, compile: bool = False, runtime: str = "torch"
) -> Model:
    """
    A copy of a model for inference only: batch norm and LAB folded into the convolutions, channels-last memory,
    optionally in another precision and compiled with frozen weights. In float32 its outputs are within 1e-5 relative
    of the model's.

    Args:
        model (`nn.Module`): a classifier, a backbone or anything that contains HGNetV2 (D-FINE, RT-DETR, …) in
            evaluation mode, of stock Transformers, this package or remote code. It is left as it is.
        dtype (`torch.dtype` or `str`, *optional*): the precision to run in, e.g. `torch.bfloat16`; inputs are cast.
            By default the model's. `"auto"` is bfloat16 where the model's device computes it natively, else float32.
            Folding is done in float64 whatever this says.
        compile (`bool`, defaults to `False`): through `torch.compile` with frozen weights, at the first call with each
            shape of input (tens of seconds, a detector minutes; needs a C++ compiler on CPUs). Worth it where shapes
            stay the same. D-FINE, RT-DETR and their families are one graph with Transformers 5; of other models
            around HGNetV2, and with Transformers 4, the backbone is compiled.
        runtime (`"torch"` or `"openvino"`, defaults to `"torch"`): `"openvino"` (the extra of this name) converts the
            model in memory, compares it with the original (1e-4), and computes on the CPU, in float32, or in bfloat16
            where OpenVINO computes it natively. What is returned takes `pixel_values` of any size, gives `logits`,
            `pred_boxes` or `feature_maps` and nothing else, and cannot be copied or pickled.

    Returns:
        A new object of a class derived from the model's, which computes without gradients, works in `pipeline`, and
        raises `RuntimeError` from `save_pretrained`, `push_to_hub` and `train()`: folded weights would load elsewhere
        without an error and compute something else. It can be pickled, copied, sent to other processes (compiled again
        there) and traced by `torch.export` and `torch.compile`. On CPUs without `compile`, weights are held twice: as
        they are, and in oneDNN's order. Inputs with NaN or infinite values raise `ValueError` on CPUs, but not in a
        graph traced from it. Finite values that overflow in the model's own convolutions (pixels of 3e38, say) may
        give finite outputs here, because batch norm's scale is in the weights already.

    Raises:
        `TypeError`: not a module.
        `ValueError`: the model is in training mode, quantised, offloaded, compiled or optimised already, or has no
            HGNetV2 in it; its weights are not finite; `dtype` is not a floating-point type; or the runtime is not
            there, or computes something else.

    Warns:
        `PrecisionWarning`: the device emulates this precision, which takes several times as long as float32.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> model = hgnetv2_hf.HGNetV2Model(hgnetv2_hf.HGNetV2Config.from_variant("b0")).eval()
        >>> optimized = hgnetv2_hf.optimize_for_inference(model)
        >>> pixel_values = torch.randn(1, 3, 64, 64)
        >>> expected, got = (each(pixel_values).pooler_output for each in (model, optimized))
        >>> bool((got - expected).abs().max() <= 1e-5 * expected.abs().max())
        True
    """
    dtype = getattr(torch, dtype, dtype) if isinstance(dtype, str) else dtype
    _check(model, dtype)
    if runtime != "torch":
        return _in_other_runtime(model, dtype, compile, runtime)
    parameter = _first_parameter(model)
    dtype = fastest_dtype(parameter.device) if dtype == "auto" else dtype
    warn_if_emulated(dtype or parameter.dtype, parameter.device)
    with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode could not be moved afterwards
        optimized = copy.deepcopy(model)
        fold(optimized, fused=not compile)
        attentions = sample_on_cpu(optimized)
        box_chosen_places(optimized)
        optimized = optimized.eval().to(dtype=dtype, memory_format=torch.channels_last).requires_grad_(False)
    optimized.__class__ = _optimized_class(type(optimized))
    optimized._forward = optimized._original_forward
    if compile:
        _compile(optimized, whole=bool(attentions) and follows_detectors())
    return optimized


def _in_other_runtime(model, dtype, compile, runtime):
    from .in_openvino import run_in_openvino

    if runtime != "openvino":
        raise ValueError(f"There is no runtime {runtime!r}: torch, openvino.")
    if compile:
        raise ValueError("OpenVINO compiles by itself; leave `compile` out.")
    precisions = {None: "float32", "auto": "auto", torch.float32: "float32", torch.bfloat16: "bfloat16"}
    if dtype not in precisions:
        raise ValueError(f"OpenVINO computes in float32 and bfloat16, not in {dtype}.")
    if dtype == torch.bfloat16:
        warn_if_emulated(dtype, "cpu")
    return run_in_openvino(model, OptimizedForInference, precisions[dtype])


def _compile(optimized, whole):
    """Compiles the whole model, or the networks in it where Python's part of the rest would cut the graph."""
    networks = [module for module in optimized.modules() if is_network(module)]
    if whole or optimized in networks:
        optimized._forward = CompiledPerShape(optimized._forward)
        return
    for network in networks:
        network.forward = CompiledPerShape(network.forward)


class OptimizedForInference:
    """What `optimize_for_inference` mixes into a copy of a model."""

    def forward(self, *args, **kwargs):
        if not args and "pixel_values" in kwargs:
            args = (kwargs.pop("pixel_values"),)  # one way to call, so that one compilation serves both
        if args:
            args = (self._as_computed(args[0]), *args[1:])
        with torch.no_grad():
            return without_late_boxes(self._forward(*args, **kwargs))

    def _original_forward(self, *args, **kwargs):
        return self._original.forward(self, *args, **kwargs)

    def _as_computed(self, pixel_values):
        if not isinstance(pixel_values, torch.Tensor) or pixel_values.ndim != 4:
            return pixel_values  # the model's own message
        is_checked = pixel_values.device.type == "cpu" and not is_tracing()  # a graph has no place for a Python answer
        if is_checked and not pixel_values.sum(dtype=torch.float64).isfinite():
            raise ValueError("`pixel_values` holds NaN or infinite values, which a fused clamp would hide.")
        return pixel_values.to(_first_parameter(self).dtype).contiguous(memory_format=torch.channels_last)

    def train(self, mode=True):
        if mode:
            self._refuse("trained")
        return super().train(False)

    def save_pretrained(self, *args, **kwargs):
        self._refuse("saved")

    def push_to_hub(self, *args, **kwargs):
        self._refuse("pushed to the Hub")

    def __reduce_ex__(self, protocol):
        _, _, *state = super().__reduce_ex__(protocol)
        return (_blank, (self._original,), *state)

    def _refuse(self, what):
        raise RuntimeError(
            f"A model optimised for inference cannot be {what}: its batch norm and LAB are folded into the "
            "convolutions, and another program would load these weights without an error and compute something else. "
            "Use the model that `optimize_for_inference` was given."
        )


@functools.cache
def _optimized_class(original):
    namespace = {"__module__": original.__module__, "_original": original}
    return type(original.__name__, (OptimizedForInference, original), namespace)


def _blank(original):
    """What pickle and copy fill: the class itself cannot be found by its name."""
    optimized = _optimized_class(original)
    return optimized.__new__(optimized)


class CompiledPerShape:
    """``torch.compile`` with frozen weights, once per shape: weights are packed for one, and slow for another."""

    def __init__(self, forward):
        options = {"cpp_wrapper": True} if _torch_version() >= (2, 9) else {}
        self._forward = forward
        self._compiled = torch.compile(forward, dynamic=False, options=options)
        self._seen = set()
        self._compiling = threading.Lock()

    def __reduce__(self):
        return CompiledPerShape, (self._forward,)

    def __call__(self, *args, **kwargs):
        if is_tracing():
            return self._forward(*args, **kwargs)
        call = self._signature(args, kwargs)
        if call in self._seen:
            return self._compiled(*args, **kwargs)
        with self._compiling, _frozen_weights():  # one thread at a time: what it sets is the process's
            output = self._compiled(*args, **kwargs)
            self._seen.add(call)
        return output

    @staticmethod
    def _signature(args, kwargs):
        """Everything that makes PyTorch compile again."""
        values = [(None, value) for value in args] + sorted(kwargs.items())
        return (
            *(
                (name, value.shape, value.dtype, value.device)
                if isinstance(value, torch.Tensor)
                else (name, repr(value))
                for name, value in values
            ),
            torch.is_inference_mode_enabled(),
            torch.is_autocast_enabled(),
            torch.get_num_threads(),
        )


@contextlib.contextmanager
def _frozen_weights():
    """``freezing`` is read while PyTorch traces, so an option of ``torch.compile`` would come too late."""
    import torch._dynamo.config as dynamo
    import torch._inductor.config as inductor

    limit = "recompile_limit" if hasattr(dynamo, "recompile_limit") else "cache_size_limit"
    with inductor.patch(freezing=True), dynamo.patch({limit: _COMPILED_SHAPES}):
        yield


def _torch_version():
    return tuple(int(part) for part in torch.__version__.split(".")[:2])


def _first_parameter(model):
    return next(parameter for parameter in model.parameters() if parameter.is_floating_point())


def _check(model, dtype):
    if not isinstance(model, nn.Module):
        raise TypeError(f"optimize_for_inference takes a model, not {type(model).__name__}.")
    if dtype not in (None, "auto") and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise ValueError(
            f'dtype={dtype!r} is neither a floating-point type nor "auto"; int8 is `hgnetv2-hf export --int8`.'
        )
    if isinstance(model, OptimizedForInference) or is_folded(model):
        raise ValueError("This model is optimised for inference already; optimise the one it was made from.")
    if hasattr(model, "_orig_mod"):
        raise ValueError("This model is compiled; pass the model itself, and `compile=True`.")
    if any(module.training for module in model.modules()):
        raise ValueError(
            "This model is in training mode, where batch norm depends on the batch; call `model.eval()` first."
        )
    if getattr(model, "hf_quantizer", None) is not None or not all(
        parameter.is_floating_point() for parameter in model.parameters()
    ):
        raise ValueError("This model is quantised; batch norm can only be folded into floating-point weights.")
    if any(parameter.is_meta for parameter in model.parameters()) or any(
        hasattr(module, "_hf_hook") for module in model.modules()
    ):
        raise ValueError("This model is offloaded or spread over devices; load it without `device_map`.")
    if not contains_hgnetv2(model):
        raise ValueError(f"There is no HGNetV2 in this {type(model).__name__}.")
