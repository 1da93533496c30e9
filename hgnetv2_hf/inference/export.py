"""Folders for other runtimes: the folded graph as ONNX, OpenVINO or ExecuTorch, and preprocessing and labels.

The graph goes through the exporters of PyTorch, OpenVINO and ExecuTorch, and for a detector as ONNX through
Transformers' own (it knows operations of theirs that PyTorch's exporter does not). Nothing is serialised here.
"""

import contextlib
import copy
import dataclasses
import importlib.util
import io
import json
import logging
import math
import os
import tempfile
import warnings
from pathlib import Path
from typing import Optional, Union

import numpy as np
import torch
import transformers
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForObjectDetection
from transformers.image_utils import load_image

from ..backbone import load_backbone, load_image_processor
from ..errors import ExportError, raised_as
from ..files.atomic import atomic_folder, claim
from ..files.images import UNREADABLE, find_images
from ..structure import contains_hgnetv2, is_network
from ..wording import counted, sentence
from .folding import FoldedConvLayer, fold
from .runtime import DESCRIPTION, FORMATS, load_exported, openvino_core


TOLERANCE = 1e-4
_TIED = 1e-5  # of the largest score: rounding moves the encoder's scores by up to 1e-6
_DETECTOR_SAMPLES = 3
EXECUTORCH_MAXIMUM = {"batch": 8, "side": 512}  # its memory is planned for the largest input
_CALIBRATION_IMAGES = 300
_MODULES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "int8": ("nncf",),
}
_LOADERS = {
    "ForImageClassification": AutoModelForImageClassification.from_pretrained,
    "ForObjectDetection": AutoModelForObjectDetection.from_pretrained,
    "Backbone": load_backbone,
    "Model": AutoModel.from_pretrained,
}


@dataclasses.dataclass
class ModelExport:
    """What [`export_model`] wrote. ``str(report)`` is one line per fact."""

    output_dir: str
    format: str
    outputs: list[str]
    shapes: str  # which inputs it takes
    int8: bool
    difference: Optional[float]  # relative to the original model's outputs; `None` where a detector's queries tie
    size: int  # bytes
    notes: list[str]

    def __str__(self):
        exact = "not comparable" if self.difference is None else f"{self.difference:.1e} relative"
        lines = [
            f"{self.format}{' int8' if self.int8 else ''}, {self.size / 1e6:.1f} MB -> {self.output_dir}",
            f"  outputs:     {', '.join(self.outputs)}",
            f"  input:       {self.shapes}",
            f"  difference:  {exact}, against the model it was made from",
        ]
        return "\n".join(lines + [f"  note:        {note}" for note in self.notes])


@raised_as(ExportError)
def export_model(
    folder: Union[str, os.PathLike],
    output_dir: Union[str, os.PathLike],
    format: str,
    int8: bool = False,
    calibration: Optional[str] = None,
    overwrite: bool = False,
    folded: bool = True,
) -> ModelExport:
    """
    Exports a classifier, a backbone or a detector, folded, and compares what the runtime computes with the model.

    A detector's queries come in the order of their scores, so they are compared as sets: paired one to one, closest
    first, logits and boxes each relative to their largest magnitude. All of them have to agree, on every image but
    those where the last query chosen and the first left out score the same within rounding, so that another query may
    be chosen.

    Args:
        folder (`str` or `os.PathLike`): a converted or fine-tuned folder, or a repository on the Hub.
        output_dir (`str` or `os.PathLike`): the folder to write; complete or absent.
        format (`"onnx"`, `"openvino"` or `"executorch"`): batch and image size stay open; ExecuTorch's up to 8 images
            of 512×512; a detector takes one image of the size it was made for.
        int8 (`bool`, defaults to `False`): post-training quantisation by NNCF (ONNX, OpenVINO; not of detectors).
        calibration (`str`, *optional*): a folder of images like those to come, for `int8`; the first 300 are used.
        overwrite (`bool`, defaults to `False`): replace an existing folder of this command.
        folded (`bool`, defaults to `True`): the benchmark passes `False`, to compare with the graph as it is.

    Returns:
        [`ModelExport`].

    Raises:
        `ExportError`: something is missing or cannot be exported, or the difference exceeds 1e-4; nothing was written.

    Example:

        >>> from pathlib import Path
        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> exported = hgnetv2_hf.export_model("digits", "digits-onnx", format="onnx")
        >>> sorted(path.name for path in Path("digits-onnx").iterdir() if path.suffix != ".py")
        ['config.json', 'export.json', 'model.onnx', 'preprocessor_config.json']
    """
    _check(format, int8, calibration)
    with claim(output_dir, folder if os.path.isdir(folder) else None, overwrite, marker=DESCRIPTION):
        return _export(folder, output_dir, format, int8, calibration, folded)


def _export(folder, output_dir, format, int8, calibration, folded):
    model, processor = _load(folder)
    if int8 and processor is None:
        raise ExportError(f"{folder} has no image processor, so the calibration images cannot be prepared.")
    try:
        graph = _Graph(model, folded)
    except ValueError as error:
        raise ExportError(f"{folder} cannot be exported: {error}") from error
    if graph.is_detector and (format == "executorch" or int8):
        raise ExportError("Detectors are exported as onnx and openvino, and not as int8.")
    samples = _samples(graph, processor)
    traced = samples[0]
    with atomic_folder(output_dir) as staging:
        path = staging / FORMATS[format]
        if int8:
            samples = _calibration_images(calibration, processor)
        with _quiet(), tempfile.TemporaryDirectory() as scratch:
            written = Path(scratch) / path.name if int8 else path
            _WRITERS[format](graph, traced, written)
            if int8:
                _quantize(format, written, path, samples)
        model.config.save_pretrained(staging)
        if processor is not None:
            processor.save_pretrained(staging)
        shapes = _shapes(graph, format, traced)
        description = {
            "format": format,
            "outputs": graph.names,
            "int8": int8,
            "maximum": EXECUTORCH_MAXIMUM if format == "executorch" else None,
            "image_size": list(traced.shape[2:]) if graph.is_detector else None,
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        (staging / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        runtime = load_exported(staging)
        if graph.is_detector:
            difference = detector_difference(graph.original, runtime.run, samples)
        else:
            difference = _difference(graph, runtime.run, samples)
        if difference is not None and not int8 and not difference <= TOLERANCE:
            raise ExportError(
                f"What {format} computes differs from the model by {difference:.1e} relative, more than "
                f"{TOLERANCE:.0e}; nothing was written. Another format or version of the runtime may be exact."
            )
        size = sum(file.stat().st_size for file in staging.glob(f"{path.stem}.*"))
    notes = ["quantised: measure its accuracy on images of your own"] if int8 else []
    if difference is None:
        notes.append("not compared: on every image tried, queries score the same at the edge of the selection")
    return ModelExport(str(output_dir), format, graph.names, shapes, int8, difference, size, notes)


def _check(format, int8, calibration):
    if format not in FORMATS:
        raise ExportError(f"There is no format {format!r}: {', '.join(FORMATS)}.")
    if int8 and format == "executorch":
        raise ExportError("int8 is made for onnx and openvino.")
    if int8 != (calibration is not None):
        raise ExportError(
            "--int8 and --calibration FOLDER belong together: quantisation needs images to measure ranges on."
        )
    missing = [
        name
        for name in (*_MODULES[format], *(_MODULES["int8"] if int8 else ()))
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise ExportError(
            f'{", ".join(missing)} is not installed: pip install "hgnetv2-hf[{"int8," if int8 else ""}{format}]".'
        )
    if not hasattr(torch.export, "Dim") or not hasattr(torch.export.Dim, "DYNAMIC"):
        raise ExportError(f"Exporting needs PyTorch 2.6 or newer; {torch.__version__} is installed.")


def _load(folder):
    """The model in evaluation mode and float32, and its image processor or ``None``."""
    try:
        config = AutoConfig.from_pretrained(folder)
        architecture = (config.architectures or ["?"])[0]
        loader = next((each for ending, each in _LOADERS.items() if architecture.endswith(ending)), None)
        if loader is None:
            raise ExportError(f"{folder} holds a {architecture}, which is no classifier, backbone or detector.")
        model = loader(folder, dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError) as error:
        raise ExportError(f"{folder} is no model that can be loaded: {sentence(error)[:300]}") from error
    if not contains_hgnetv2(model) or (architecture.endswith("Model") and not is_network(model)):
        raise ExportError(f"{folder} holds a {architecture}, which is not HGNetV2 nor a detector with it.")
    try:
        return model, load_image_processor(folder)
    except (OSError, ValueError):
        return model, None


class _Graph(nn.Module):
    """A model from pixels to a flat tuple of named tensors, the original and its folded form."""

    def __init__(self, model, folded):
        super().__init__()
        self.original = model
        self.model = copy.deepcopy(model)
        if folded:
            fold(self.model)
        self.is_detector = "ForObjectDetection" in type(model).__name__
        if self.is_detector:
            self.names = ["logits", "pred_boxes"]
        elif hasattr(model, "out_features"):
            self.names = list(model.out_features)
        else:
            self.names = ["logits"] if hasattr(model, "fc") else ["last_hidden_state", "pooler_output"]
        largest = torch.finfo(torch.float32).max
        for layer in self.modules():
            if isinstance(layer, FoldedConvLayer) and layer.minimum != 0.0 and not layer.clamps_nothing:
                # OpenVINO joins a clamp to the convolution if it has both bounds.
                layer.minimum, layer.maximum = max(layer.minimum, -largest), min(layer.maximum, largest)

    def forward(self, pixel_values):
        return self.outputs(self.model, pixel_values)

    def outputs(self, model, pixel_values):
        output = model(pixel_values, return_dict=True)
        if hasattr(output, "feature_maps"):
            return tuple(output.feature_maps)
        return tuple(output[name] for name in self.names)


def _samples(graph, processor):
    """Inputs to compare with, the first one to trace with: several sizes, unless the model takes one only."""
    generator = torch.Generator().manual_seed(0)
    if graph.is_detector:
        size = getattr(processor, "size", None) or {}
        if "height" not in size or "width" not in size:
            raise ExportError("The detector's folder has no image processor with a height and a width to export for.")
        shape = (1, 3, size["height"], size["width"])
        return [torch.randn(shape, generator=generator) for _ in range(_DETECTOR_SAMPLES)]
    sides = [(2, 224, 256), (3, 192, 160)]
    crop = getattr(processor, "crop_size", None)
    if crop is not None:
        sides.append((1, crop["height"], crop["width"]))
    channels = graph.original.config.num_channels
    return [torch.randn(batch, channels, height, width, generator=generator) for batch, height, width in sides]


def _shapes(graph, format, sample):
    if graph.is_detector:
        return f"1 image of {sample.shape[2]}×{sample.shape[3]}"
    if format == "executorch":
        batch, side = EXECUTORCH_MAXIMUM["batch"], EXECUTORCH_MAXIMUM["side"]
        return f"1 to {batch} images of up to {side}×{side}"
    return "any number of images, any size"


def _program(graph, sample, **limits):
    """The folded graph as PyTorch's exporter sees it, with open batch and size where it can be."""
    shapes = None
    if not graph.is_detector:
        hint = torch.export.Dim.AUTO if limits else lambda **_: torch.export.Dim.DYNAMIC
        side = {"min": 32, "max": limits.get("side")}
        shapes = {"pixel_values": {0: hint(min=1, max=limits.get("batch")), 2: hint(**side), 3: hint(**side)}}
    try:
        with torch.no_grad():
            return torch.export.export(graph, (sample,), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise ExportError(f"PyTorch cannot trace this model: {sentence(error)[:300]}") from error


def _write_onnx(graph, sample, path):
    if graph.is_detector:
        return _write_onnx_detector(graph, sample, path)
    program = torch.onnx.export(
        _program(graph, sample),
        (sample,),
        dynamo=True,
        input_names=["pixel_values"],
        output_names=graph.names,
        verbose=False,
    )
    program.save(str(path), external_data=False)


def _write_onnx_detector(graph, sample, path):
    try:
        from transformers.exporters.configs import OnnxConfig
        from transformers.exporters.exporter_onnx import OnnxExporter
    except ImportError as error:
        raise ExportError(
            f"Detectors become ONNX through Transformers' own exporter, which {transformers.__version__} lacks; "
            "use --format openvino, or a newer Transformers."
        ) from error
    exporter = OnnxExporter()
    with contextlib.redirect_stdout(io.StringIO()):
        exported = exporter.export(graph.model, {"pixel_values": sample}, OnnxConfig(dynamic=False))
    exporter.save_program(exported.program, path)


def _write_openvino(graph, sample, path):
    import openvino

    model = openvino.convert_model(_program(graph, sample))
    for output, name in zip(model.outputs, graph.names):
        output.get_tensor().set_names({name})
    openvino.save_model(model, path, compress_to_fp16=False)


def _write_executorch(graph, sample, path):
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = to_edge_transform_and_lower(
        _program(graph, sample, **EXECUTORCH_MAXIMUM), partitioner=[XnnpackPartitioner()]
    ).to_executorch()
    with open(path, "wb") as file:
        program.write_to_file(file)


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "executorch": _write_executorch}


def _calibration_images(folder, processor):
    """Tensors `(1, channels, height, width)`."""
    prepared, unreadable = [], 0
    images = [path for path, _ in zip(find_images([folder]), range(_CALIBRATION_IMAGES))]
    for path in tqdm(images, desc="calibration images", unit="image", leave=False):
        try:
            prepared.append(processor(load_image(path), return_tensors="pt")["pixel_values"])
        except UNREADABLE:
            unreadable += 1
    if not prepared:
        raise ExportError(f"No image in {folder} can be read; {counted(unreadable, 'file')} tried.")
    return prepared


def _quantize(format, source, path, images):
    import nncf

    arrays = [image.numpy() for image in images]
    # Where a processor lacks VNNI, sums of 8-bit products saturate; NNCF's fix keeps all weights to 7 bits.
    fix = nncf.AdvancedQuantizationParameters(overflow_fix=nncf.OverflowFix.ENABLE)
    options = {"subset_size": len(arrays), "advanced_parameters": fix}
    if format == "openvino":
        import openvino

        model = openvino_core().read_model(source)
        openvino.save_model(nncf.quantize(model, nncf.Dataset(arrays), **options), path, compress_to_fp16=False)
        return
    import onnx

    dataset = nncf.Dataset([{"pixel_values": array} for array in arrays])
    onnx.save(nncf.quantize(onnx.load(source), dataset, **options), path)


def _difference(graph, run, samples):
    """The largest relative difference of any output on any sample, run by the format's own runtime."""
    differences = []
    for sample in samples:
        with torch.no_grad():
            expected = graph.outputs(graph.original, sample)
        for ours, theirs in zip(run(sample.numpy()).values(), expected):
            differences.append(float(np.abs(ours - theirs.numpy()).max()) / _magnitude(theirs.numpy()))
    return _largest(differences)


def detector_difference(model, run, samples):
    """
    The largest relative difference of any query, `None` where they tie on every sample and differ: [`export_model`].

    Args:
        model (`nn.Module`): a detector of Transformers.
        run (callable): array of pixels to a dictionary with `logits` and `pred_boxes`.
        samples (`list[torch.Tensor]`): `(1, channels, height, width)` each.
    """
    differences = []
    for sample in samples:
        with torch.no_grad():
            output = model(sample, return_dict=True)
        exported = run(sample.numpy())
        distances = [_distances(exported[name][0], output[name][0].numpy()) for name in ("logits", "pred_boxes")]
        difference = _largest(_pair_closest(np.maximum(*distances)))
        if not (difference > TOLERANCE and _queries_tie(output)):
            differences.append(difference)
    return _largest(differences) if differences else None


def _distances(ours, theirs):
    """Between each of our queries (rows) and each of theirs (columns)."""
    return np.abs(ours[:, None] - theirs[None]).max(-1) / _magnitude(theirs)


def _pair_closest(distances):
    """One to one, the closest pair first: the distance of each pair."""
    distances, paired = distances.copy(), []
    for _ in range(len(distances)):
        row, column = np.unravel_index(np.argmin(distances), distances.shape)
        paired.append(float(distances[row, column]))
        distances[row, :] = distances[:, column] = np.inf
    return paired


def _queries_tie(output):
    """Whether the last query chosen and the first left out have the same score within rounding."""
    scores = getattr(output, "enc_outputs_class", None)
    if scores is None:
        return False
    scores = scores[0].max(-1).values.sort(descending=True).values
    chosen = output.logits.shape[1]
    return len(scores) > chosen and bool(scores[chosen - 1] - scores[chosen] <= _TIED * scores.abs().max())


def _magnitude(array):
    return max(float(np.abs(array).max()), float(np.finfo(np.float32).tiny))


def _largest(differences):
    return max(differences, key=lambda value: math.inf if math.isnan(value) else value)


@contextlib.contextmanager
def _quiet():
    """Exporters talk to their own developers."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)
