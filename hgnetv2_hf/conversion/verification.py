"""The proof: the original program and the converted folder compute the same from the same weights and input."""

import contextlib
import copy
import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple, Optional

import numpy as np
import torch

from ..errors import ConversionError
from ..model.configuration_hgnetv2 import PADDLE_EPSILON
from ..model.variants import PP_HGNET_STAGE_FIELDS, PP_HGNET_VARIANTS, STAGE_FIELDS
from ..wording import counted, sentence
from .architecture import missing_in_paddleclas
from .detectors import DETECTORS, rename_detector
from .keras_preset import has_keras_head, write_preset
from .layouts import is_counter, is_head, layouts_of, rename, rename_back
from .ml_decoder import paddleclas_ml_decoder
from .paddle_detector import PREFIX, exact_constant, inverse_sigmoid_of
from .paddle_file import write_paddle_file
from .paddle_graph import check_operations, run_program, steps_to, thinned
from .timm_folder import TimmModel


TOLERANCE = 1e-9  # relative to the largest magnitude, in float64
PADDLE_PYTHON = "HGNETV2_HF_PADDLE_PYTHON"  # names an interpreter that has PaddlePaddle and PaddleClas
KERAS_PYTHON = "HGNETV2_HF_KERAS_PYTHON"  # the same for KerasHub


@dataclasses.dataclass(frozen=True)
class Parity:
    """What was compared with which program, and the largest difference, relative to the largest magnitude."""

    program: str
    difference: float
    compared: str
    as_converted: float = 0.0  # the difference of the folder as it is, where the program pads or rounds in its own way
    own_way: str = ""

    def __str__(self):
        text = f"{self.program} computes the same: {self.difference:.1e} relative in float64 ({self.compared})"
        if self.as_converted <= TOLERANCE:
            return text
        return f"{text} with its own {self.own_way}; with this folder's, the difference is {self.as_converted:.1e}"


@dataclasses.dataclass(frozen=True)
class _Question:
    """What is asked of an original program."""

    model: torch.nn.Module  # ours
    variant: str
    layout: str
    tensors: dict  # of the source, under its own names
    pixel_values: torch.Tensor
    timm: Optional[TimmModel] = None  # what the source's own folder builds

    def tensors_for(self, layout):
        """The weights under the names of ``layout``: the source's own where it has that layout."""
        if self.layout in _SAME_NAMES[layout]:
            tensors = self.tensors
        else:
            layouts = layouts_of(self.model.config.model_type)
            tensors = rename_back(self.model.state_dict(), layouts[layout])
        return {name: tensor.float() for name, tensor in tensors.items() if not is_counter(name)}


_SAME_NAMES = {"paddleclas": ("paddleclas", "paddledetection"), "timm": ("timm", "dfine")}
_TIMM_STAGES = 4


class NotComparable(Exception):
    """The program is not installed here, or cannot express this network."""


def verify(model, variant, layout, tensors, timm=None):
    """
    Runs the original programs of ``layout`` that are installed here, on one random input of odd size, in float64.

    Args:
        model: the converted model, as loaded from its folder.
        variant (`str` or `None`): its name.
        layout (`str`): that of the source.
        tensors (`dict[str, torch.Tensor]`): its tensors under the source's names.
        timm ([`TimmModel`], *optional*): what a timm folder declares; timm is then run with exactly that.

    Returns:
        `tuple[list[Parity], list[str]]`: what was compared, and sentences on what could not be.

    Raises:
        `ConversionError`: a program computes something else.
    """
    pixel_values = torch.randn(2, model.config.num_channels, 96, 113, generator=torch.Generator().manual_seed(0))
    question = _Question(model, variant or "", layout, tensors, pixel_values, timm)
    parities, notes = [], []
    originals = _PP_HGNET_ORIGINALS if model.config.model_type == "pp_hgnet" else _ORIGINALS
    for run, arithmetic in originals[layout]:
        try:
            program, answer = run(question)
        except NotComparable as reason:
            notes.append(str(reason))
            continue
        parities.append(_compare(model, pixel_values, program, answer, arithmetic))
    return parities, notes


def compare_with_program(model, inference_model, image_size=None):
    """
    Runs the program of an inference model step by step, in float64, on one random input, and compares what it returns
    and every batch norm on the way; of a detector also what the encoder says of each place, and the queries' logits
    and boxes.

    Args:
        model: the converted model: a network, or a detector.
        inference_model ([`InferenceModel`]): what it was converted from, with its program.
        image_size (`list[int]`, *optional*): height and width in pixels, of a detector's program.

    Returns:
        [`Parity`]

    Raises:
        `ConversionError`: the program computes something else, or what no such network computes.
    """
    if not hasattr(model, "embedder"):
        return _compare_detector(model, inference_model, image_size)
    program, layers = inference_model.program, inference_model.layers
    is_inside = any(layer.startswith(PREFIX) for layer in layers.values())
    if is_inside:  # a detector
        layers = {value: layer.removeprefix(PREFIX) for value, layer in layers.items() if layer.startswith(PREFIX)}
        program = steps_to(program, layers)
        check_operations(program)
    pixel_values = torch.randn(1, model.config.num_channels, 96, 113, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs, seen = run_program(program, inference_model.parameters, pixel_values.double(), layers)
        _, maps = model.encoder(model.embedder(pixel_values), output_hidden_states=True)
    answer, layout = {}, layouts_of(model.config.model_type)["paddleclas"]
    for value, output in seen.items():
        (name,) = rename({f"{layers[value]}.weight": output}, layout)
        answer[name.removesuffix(".weight")] = output.numpy()
    for output in outputs:
        places = [f"feature_{i}" for i, each in enumerate(maps) if each.shape == output.shape]
        if hasattr(model, "fc") and output.shape == (1, model.config.num_labels):
            places = ["logits"]
        if not places and not hasattr(model, "fc") and output.ndim == 2:
            continue  # a classifier's scores, of which the backbone alone was asked for
        if places and places[0] in answer:
            raise ConversionError(f"The program returns {places[0]} twice.")
        if not places:
            raise ConversionError(f"The program returns values of shape {list(output.shape)}; this network does not.")
        answer[places[0]] = output.numpy()
    if not outputs and not is_inside:
        raise ConversionError("The program returns nothing.")
    return _compare(model, pixel_values, _PROGRAM, answer, _EXPORTED)


_PROGRAM = "the exported program, run here,"
_QUERIES = ("logits", "pred_boxes")


def _compare_detector(model, inference_model, image_size):
    height, width = image_size
    pixel_values = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    program = steps_to(inference_model.program, inference_model.layers)
    check_operations(program)
    constants = {
        name: exact_constant(ours, inference_model.parameters[name])
        for name, ours in inference_model.constants.items()
    }
    with torch.inference_mode():
        _, seen = run_program(
            program, {**inference_model.parameters, **constants}, {"image": pixel_values}, inference_model.layers
        )
    named = {inference_model.layers[value]: output for value, output in seen.items()}
    if "" in named or not named.keys() >= set(_QUERIES):
        raise ConversionError("The program has a layer without weights of its own, which no RT-DETR has.")
    answer = {name: named.pop(name) for name in _QUERIES}
    renamed, _ = rename_detector({f"{layer}.weight": output for layer, output in named.items()}, DETECTORS[_RTDETR])
    answer.update({name.removesuffix(".weight"): output for name, output in renamed.items()})
    ours = copy.deepcopy(model).double().eval()
    queries = counted(model.config.num_queries, "query", "queries")
    compared = f"{counted(len(renamed), 'layer')}, logits and boxes of {queries}"
    as_converted = _detector_difference(ours, pixel_values, answer)
    if as_converted <= TOLERANCE:
        return Parity(_PROGRAM, as_converted, compared)
    with _arithmetic_of_paddle(ours, inverse_sigmoid_of(program)):
        difference = _detector_difference(ours, pixel_values, answer)
    _check_difference(_PROGRAM, difference)
    return Parity(_PROGRAM, difference, compared, as_converted, "rounding of constants and guard of logits")


_RTDETR = "paddledetection"


def _detector_difference(ours, pixel_values, answer):
    """As ``_difference``, of a detector; queries are compared as a set, since their order says nothing."""
    with torch.inference_mode(), _watched(ours, answer) as computed:
        output = ours(pixel_values)
    differences = [_distance_of_sets([output[name] for name in _QUERIES], [answer[name] for name in _QUERIES])]
    for name in answer.keys() - set(_QUERIES):
        if name not in computed:
            raise ConversionError(f"The program has a layer {name}, which this detector does not.")
        differences.append(_relative_difference(computed[name].numpy(), answer[name].numpy()))
    return float(np.max(differences))  # NaN where one of them is


def _distance_of_sets(ours, theirs):
    """From each query of one to the closest of the other; each has several parts, of shape `(1, queries, numbers)`."""
    if [part.shape for part in ours] != [part.shape for part in theirs]:
        return float("inf")
    scales = [part.abs().max() for part in theirs]
    ours, theirs = (torch.cat([part / scale for part, scale in zip(parts, scales)], -1)[0] for parts in (ours, theirs))
    distances = torch.cdist(ours, theirs, p=float("inf"))
    return float(torch.maximum(distances.amin(0).max(), distances.amin(1).max()))


@contextlib.contextmanager
def _arithmetic_of_paddle(detector, inverse_sigmoid):
    """In here the detector (in float64) computes with constants that were rounded to float32, and Paddle's logits."""
    for module in detector.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = PADDLE_EPSILON
        elif hasattr(module, "running_var"):  # Transformers' frozen norms have no epsilon of their own
            module.running_var += PADDLE_EPSILON - 1e-5
        if hasattr(module, "scaling"):
            module.scaling = float(np.float32(module.scaling))
    library = sys.modules[type(detector).__module__]
    kept = library.inverse_sigmoid
    library.inverse_sigmoid = inverse_sigmoid or kept  # a function of the module there, which takes no argument for it
    try:
        yield
    finally:
        library.inverse_sigmoid = kept


def _compare(model, pixel_values, program, answer, arithmetic):
    ours = copy.deepcopy(model).double().eval()
    as_converted, compared = _difference(ours, pixel_values, answer)
    if as_converted <= TOLERANCE:
        return Parity(program, as_converted, compared)
    ours.embedder.pool_padding = arithmetic.pool_padding
    for module in ours.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = arithmetic.epsilon
        if arithmetic.rounds_scaling and hasattr(module, "scaling"):
            module.scaling = float(np.float32(module.scaling))
    difference, compared = _difference(ours, pixel_values, answer)
    _check_difference(program, difference)
    return Parity(program, difference, compared, as_converted, arithmetic.own_way)


def _check_difference(program, difference):
    if not difference <= TOLERANCE:
        advice = "; leave out the options that change what is computed" if program == _PROGRAM else ""
        raise ConversionError(
            f"{program} computes something else from the same weights: {difference:.1e} relative, {TOLERANCE:.0e} "
            f"allowed{advice}."
        )


def _difference(ours, pixel_values, answer):
    """The largest difference of everything that the program answered, and a text that says what that was."""
    with torch.inference_mode(), _watched(ours, answer) as computed:
        last, maps = ours.encoder(ours.embedder(pixel_values.double()), output_hidden_states=True)
        computed.update({f"feature_{i}": feature for i, feature in enumerate(maps)})
        if "logits" in answer and hasattr(ours, "fc"):
            computed["logits"] = ours._head(last)
    names = [name for name in computed if name in answer]
    difference = float(np.max([_relative_difference(computed[name].numpy(), answer[name]) for name in names]))
    count = sum(name.startswith("feature_") for name in names)
    layers = len(names) - count - ("logits" in names)
    compared = [counted(number, what) for number, what in ((layers, "layer"), (count, "feature map")) if number]
    return difference, ", ".join(compared) + (" and the logits" if "logits" in names else "")


@contextlib.contextmanager
def _watched(ours, names):
    """What the modules of these names give in here, [`thinned`]."""
    computed = {}
    hooks = [
        module.register_forward_hook(
            lambda module, inputs, output, name=name: computed.update({name: thinned(output)})
        )
        for name, module in ours.named_modules()
        if name in names
    ]
    try:
        yield computed
    finally:
        for hook in hooks:
            hook.remove()


def _relative_difference(ours, original):
    if ours.shape != original.shape:
        return float("inf")
    return float(np.abs(ours - original).max() / max(np.abs(original).max(), np.finfo("float64").tiny))


def _ask_paddleclas(question):
    config = question.model.config
    python = os.environ.get(PADDLE_PYTHON) or sys.executable
    if python == sys.executable and not all(map(importlib.util.find_spec, ("paddle", "paddleclas"))):
        raise NotComparable(f"PaddleClas was not run: not installed here, and {PADDLE_PYTHON} names no other Python")
    if missing := missing_in_paddleclas(config):
        raise NotComparable(f"PaddleClas was not run: it cannot express {missing}")
    with tempfile.TemporaryDirectory() as folder:
        request, answer = os.path.join(folder, "request.npz"), os.path.join(folder, "answer.npz")
        # Paddle unpickles what it opens, so it gets the tensors in a file written here, never the source itself.
        checkpoint = os.path.join(folder, "checkpoint.pdparams")
        tensors = _paddleclas_tensors(question)
        write_paddle_file(tensors, checkpoint)
        np.savez(request, checkpoint=checkpoint, **_paddleclas_request(question, tensors))
        script = Path(__file__).with_name("run_paddleclas.py")
        arrays = _run([python, str(script), request, answer], "PaddleClas")
    return f"PaddleClas {arrays.pop('version')}", arrays


def _ask_keras(question):
    python = os.environ.get(KERAS_PYTHON)
    if not python:
        raise NotComparable(f"KerasHub was not run: {KERAS_PYTHON} names no Python that has it")
    with tempfile.TemporaryDirectory() as folder:
        preset, request, answer = Path(folder) / "preset", Path(folder) / "request.npz", Path(folder) / "answer.npz"
        preset.mkdir()
        write_preset(question.model, preset)  # KerasHub gets what was written here, never the source itself
        np.savez(request, pixel_values=question.pixel_values.numpy(), dtype="float64")
        script = Path(__file__).with_name("run_kerashub.py")
        arrays = _run([python, str(script), str(preset), str(request), str(answer)], "KerasHub")
    return f"KerasHub {arrays.pop('version')}", arrays


def _run(command, title):
    """The arrays that a program writes to its last argument."""
    try:
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ConversionError(f"Cannot run {command[0]} for {title}: {error.strerror or error}.") from error
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConversionError(f"{title} failed in {command[0]}: {reason}.")
    with np.load(command[-1]) as arrays:
        return dict(arrays)


def _paddleclas_tensors(question):
    """The source's, without a head that the converted model does not have."""
    tensors = question.tensors_for("paddleclas")
    has_head = hasattr(question.model, "fc")
    return {name: tensor for name, tensor in tensors.items() if has_head or not is_head(name)}


def _paddleclas_request(question, tensors):
    config = question.model.config
    has_head, has_last_conv = hasattr(question.model, "fc"), "last_conv.weight" in tensors
    class_expand = tensors["last_conv.weight"].shape[0] if has_last_conv else 2048
    is_as_published = not has_head or (has_last_conv and class_expand == 2048)
    dropout = getattr(config, "dropout_prob", 0.0)
    fields, variants = STAGE_FIELDS, _PADDLECLAS_VARIANTS
    if config.model_type == "pp_hgnet":
        variants = [name for name, each in PP_HGNET_VARIANTS.items() if each.dropout_prob == dropout]
        fields = PP_HGNET_STAGE_FIELDS
    return {
        "version": 1 if config.model_type == "pp_hgnet" else 2,
        "pixel_values": question.pixel_values.numpy(),
        "variant": question.variant if question.variant in variants and is_as_published else "",
        "stages": np.array([[int(value) for value in row] for row in _rows(config, fields)]),
        "stem_channels": np.array(config.stem_channels),
        "use_lab": config.use_learnable_affine_block,
        "use_last_conv": has_last_conv or not has_head,
        "class_expand": class_expand,
        "class_num": config.num_labels if has_head else 1000,
        "ml_decoder": json.dumps(paddleclas_ml_decoder(config)) if hasattr(config, "decoder_queries") else "",
        "dropout_prob": dropout,
    }


_PADDLECLAS_VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5", "b6")


def _rows(config, fields=STAGE_FIELDS):
    return list(zip(*(getattr(config, field) for field in fields)))


def _ask_timm(question):
    config = question.model.config
    if importlib.util.find_spec("timm") is None:
        raise NotComparable("timm was not run: it is not installed here")
    if not config.has_default_strides() or config.hidden_act != "relu" or getattr(config, "dropout_prob", 0.0):
        raise NotComparable("timm was not run: it cannot express these strides, this activation or this dropout")
    if has_keras_head(question.model):
        raise NotComparable("timm was not run: its head is applied behind the pooling")
    if len(config.stage_in_channels) > _TIMM_STAGES or hasattr(config, "decoder_queries"):
        raise NotComparable("timm was not run: it has four stages, and no ML-Decoder")
    import timm

    tensors = question.tensors_for("timm")
    has_fc = "head.fc.weight" in tensors
    network = _timm_network(question, tensors)
    network.double().eval()
    answer = {}
    with torch.inference_mode():
        feature = network.stem(question.pixel_values.double())
        for i, stage in enumerate([torch.nn.Identity(), *network.stages[: len(config.stage_in_channels)]]):
            feature = stage(feature)
            answer[f"feature_{i}"] = feature.numpy()
        if has_fc:
            answer["logits"] = network.forward_head(feature).numpy()
    return f"timm {timm.__version__}", answer


def _timm_network(question, tensors):
    """timm's network with these weights: as the folder declares it, or else of the same widths and timm's defaults."""
    import timm
    from timm.models.hgnet import HighPerfGpuNet

    config = question.model.config
    arguments = {
        "in_chans": config.num_channels,
        "num_classes": len(tensors.get("head.fc.weight", ())),
        "head_hidden_size": len(tensors["head.last_conv.0.weight"]) if "head.last_conv.0.weight" in tensors else None,
    }
    if question.timm is not None and question.timm.architecture is not None:
        arguments.update(question.timm.arguments)
        try:
            network = timm.create_model(question.timm.architecture, **{**arguments, "pretrained": False})
            network.load_state_dict(tensors, strict=True)
        except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = sentence(error)[:120]
            raise NotComparable(
                f"timm was not run: its {question.timm.architecture}, built as config.json says, does not take these "
                f"tensors ({reason})"
            ) from error
        return network
    rows = _rows(config)
    missing = _TIMM_STAGES - len(rows)  # timm builds four, come what may
    spare = [(rows[-1][2], 1, 2, 1, False, False, 1, 1)] * missing
    stages = {f"stage{i + 1}": list(row) for i, row in enumerate([*rows, *spare])}
    network = HighPerfGpuNet(
        {
            "stem_type": "v1" if config.model_type == "pp_hgnet" else "v2",
            "stem_chs": config.stem_channels[1:],
            **stages,
        },
        use_lab=config.use_learnable_affine_block,
        **arguments,
    )
    network.stages = network.stages[: len(rows)]
    network.load_state_dict(tensors, strict=True)
    return network


def _ask_stock_transformers(question):
    import transformers
    from transformers.models.hgnet_v2 import configuration_hgnet_v2, modeling_hgnet_v2

    from ..model.compat import knows_strides

    config = question.model.config
    stock_config = configuration_hgnet_v2.HGNetV2Config.from_dict({**config.to_dict(), "model_type": "hgnet_v2"})
    if config.hidden_act != "relu" or not (config.has_default_strides() or knows_strides(stock_config)):
        raise NotComparable("stock Transformers was not run: it cannot express this activation or these strides")
    if getattr(config, "use_last_conv", False) and hasattr(question.model, "fc"):
        raise NotComparable("stock Transformers was not run: it has no PaddleClas head")
    has_head = hasattr(question.model, "fc")
    stock_class = modeling_hgnet_v2.HGNetV2ForImageClassification if has_head else modeling_hgnet_v2.HGNetV2Backbone
    network = stock_class(stock_config)
    kept = {name: tensor for name, tensor in question.tensors.items() if name in network.state_dict()}
    network.load_state_dict(kept, strict=False)
    network.double().eval()
    with torch.inference_mode():
        output = network(question.pixel_values.double(), output_hidden_states=True)
    answer = {f"feature_{i}": feature.numpy() for i, feature in enumerate(output.hidden_states)}
    if has_head:
        answer["logits"] = output.logits.numpy()
    return f"stock Transformers {transformers.__version__}", answer


class _Arithmetic(NamedTuple):
    """What two programs that hold the same network do in their own ways."""

    pool_padding: float
    epsilon: float
    rounds_scaling: bool = False  # that of an attention's scores, to float32
    own_way: str = "pool padding and batch-norm epsilon"


_PADDLECLAS = (_ask_paddleclas, _Arithmetic(float("-inf"), PADDLE_EPSILON))
_EXPORTED = _Arithmetic(float("-inf"), PADDLE_EPSILON, True, "padding and rounding of constants")
_TIMM = (_ask_timm, _Arithmetic(0.0, 1e-5))
_KERAS = (_ask_keras, _Arithmetic(0.0, 1e-5))
# Per layout: the programs to ask. timm holds the network of D-FINE and RT-DETRv2 too.
_ORIGINALS = {
    "paddleclas": (_PADDLECLAS, _TIMM),
    "paddledetection": (_PADDLECLAS, _TIMM),
    "timm": (_TIMM, _PADDLECLAS),
    "timm_features": (_TIMM,),
    "dfine": (_TIMM,),
    "rtdetrv2": (_TIMM,),
    "keras": (_KERAS, _TIMM),
    "transformers": ((_ask_stock_transformers, _Arithmetic(0.0, 1e-5)),),
}
_PP_HGNET_ORIGINALS = {
    "paddleclas": (_PADDLECLAS, _TIMM),
    "timm": (_TIMM, _PADDLECLAS),
    "transformers": (_PADDLECLAS, _TIMM),
}
