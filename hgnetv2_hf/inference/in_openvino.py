"""A model of Transformers whose forward runs in OpenVINO, without a folder: what `optimize_for_inference` returns with
`runtime="openvino"`."""

import collections
import copy
import functools
import importlib.util

import torch
from torch import nn

from .comparison import TOLERANCE, detector_difference, largest_difference
from .graphs import Graph, shapes_of, small_samples, trace
from .runtime import openvino_dtype, start_openvino
from .tracing import quiet


def run_in_openvino(model, mixin, dtype):
    """
    Args:
        model (`nn.Module`): checked by `optimize_for_inference`; it is left as it is.
        mixin (`type`): what refuses to be saved and trained.
        dtype (`"float32"`, `"bfloat16"` or `"auto"`)

    Raises:
        `ValueError`: OpenVINO is not installed, computes something else, or cannot take the model.
    """
    if importlib.util.find_spec("openvino") is None:
        raise ValueError('runtime="openvino" needs OpenVINO: pip install "hgnetv2-hf[openvino]".')
    import openvino

    graph = Graph(copy.deepcopy(model).float())
    samples = small_samples(graph)
    with quiet():
        converted = openvino.convert_model(trace(graph, samples[0], shapes_of(graph, "openvino", None, None)))
    run = start_openvino(converted, openvino_dtype("float32"), None, graph.names)
    difference = _difference(graph, lambda pixels: dict(zip(graph.names, run(pixels))), samples)
    if difference is not None and not difference <= TOLERANCE:
        raise ValueError(f"What OpenVINO computes differs from the model by {difference:.1e} relative.")
    computed = openvino_dtype(dtype)
    if computed != "float32":
        run = start_openvino(converted, computed, None, graph.names)
    with torch.no_grad():
        output_class = type(graph.original(samples[0][:1], return_dict=True))
    return _shell(model, mixin, run, graph.names, output_class)


def _difference(graph, run, samples):
    if graph.is_detector:
        return detector_difference(graph.original, run, samples)
    return largest_difference(lambda pixels: graph.outputs(graph.original, pixels), run, samples)


def _shell(model, mixin, run, names, output_class):
    """An object of the model's class, configuration and all, without its weights."""
    shell = copy.copy(model)
    for name, value in list(vars(shell).items()):
        if name in ("_modules", "_parameters", "_buffers"):
            vars(shell)[name] = {}
        elif isinstance(value, collections.OrderedDict):  # hooks
            vars(shell)[name] = value.copy()
    shell.placeholder = nn.Parameter(torch.zeros(1), requires_grad=False)  # says device and precision of the inputs
    shell.__class__ = _openvino_class(type(model), mixin)
    shell._run_openvino, shell._names, shell._output_class = run, names, output_class
    return shell


class RunsInOpenVINO:
    """What `run_in_openvino` mixes in."""

    def forward(self, pixel_values, pixel_mask=None, return_dict=None, **options):
        asked = [name for name, value in options.items() if value is not None and value is not False]
        if pixel_mask is not None and not bool(pixel_mask.all()):
            asked.append("pixel_mask")
        if asked:
            raise ValueError(
                f"In OpenVINO this model takes pixel_values and gives {', '.join(self._names)}; {', '.join(asked)} is "
                'for runtime="torch".'
            )
        pixels = pixel_values.detach().float().cpu()
        if not pixels.sum(dtype=torch.float64).isfinite():
            raise ValueError("`pixel_values` holds NaN or infinite values.")
        outputs = [torch.from_numpy(array.copy()) for array in self._run_openvino(pixels.contiguous().numpy())]
        if return_dict is False:
            return tuple(outputs)
        if hasattr(self._output_class, "feature_maps"):
            return self._output_class(feature_maps=tuple(outputs))
        return self._output_class(**dict(zip(self._names, outputs)))

    def __reduce_ex__(self, protocol):
        raise TypeError(
            'A model with runtime="openvino" can be neither copied nor pickled; make it again where it is needed, or '
            "use a folder of `hgnetv2-hf export`."
        )


@functools.cache
def _openvino_class(original, mixin):
    namespace = {"__module__": original.__module__, "_original": original}
    return type(original.__name__, (RunsInOpenVINO, mixin, original), namespace)
