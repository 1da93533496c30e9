"""Folders for other runtimes: the folded graph as ONNX, OpenVINO or ExecuTorch, and preprocessing and labels.

From the page down: load → trace → write → halve or quantise → compare → publish.
"""

import dataclasses
import importlib.util
import json
import math
import os
import tempfile
from pathlib import Path
from typing import Optional, Union

import torch
import transformers
from tqdm.auto import tqdm
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForObjectDetection
from transformers.image_utils import load_image

from ..backbone import load_backbone, load_image_processor
from ..errors import ExportError, raised_as
from ..files.atomic import atomic_folder, claim
from ..files.images import UNREADABLE, find_images
from ..structure import contains_hgnetv2, is_network
from ..wording import counted, sentence
from .comparison import TOLERANCE, detector_difference, end_to_end_difference, largest_difference, typical_difference
from .graphs import Graph, PostProcessing, samples_of, shapes_of, trace, trace_post_processing
from .runtime import DESCRIPTION, ELSEWHERE, FORMATS, load_exported
from .tracing import quiet
from .transformers_js import (
    BROWSER_TOLERANCE,
    BrowserPostProcessing,
    browser_difference,
    join,
    processing_of,
    write_configuration,
)
from .writers import HALVES, JOINS, WRITERS, files_of, quantize


_CALIBRATION_IMAGES = 300
_MODULES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("openvino",),
    "executorch": ("executorch",),
    "litert": ("litert_torch", "ai_edge_litert"),
    "ncnn": ("pnnx", "ncnn"),
    "coreml": ("coremltools",),
    "transformers-js": ("onnx", "onnxscript", "onnxruntime"),
    "int8": ("nncf",),
}
_EXTRAS = {"transformers-js": "onnx"}  # where the extra is not the format's own
_NO_DETECTORS = ("executorch", "litert", "ncnn", "coreml")
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
    precision: str  # "float32", "float16" or "int8"
    difference: Optional[float]  # relative to the original model's outputs; `None` where a detector's queries tie
    size: int  # bytes
    notes: list[str]

    def __str__(self):
        exact = "not comparable" if self.difference is None else f"{self.difference:.1e} relative"
        precision = "" if self.precision == "float32" else f" {self.precision}"
        lines = [
            f"{self.format}{precision}, {self.size / 1e6:.1f} MB -> {self.output_dir}",
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
    half: bool = False,
    end_to_end: bool = False,
    batch_size: Optional[int] = None,
    image_size: Optional[tuple[int, int]] = None,
) -> ModelExport:
    """
    Exports a classifier, a backbone or a detector, folded, and compares what the runtime computes with the model.

    A detector's queries come in the order of their scores, so they are compared as sets: paired one to one, closest
    first, logits and boxes each relative to their largest magnitude. All of them have to agree, on every image but
    those where the last query chosen and the first left out score the same within rounding, so that another query may
    be chosen. In float16 and int8 the median over the queries is given, and nothing refused but what is not finite.

    Args:
        folder (`str` or `os.PathLike`): a converted or fine-tuned folder, or a repository on the Hub.
        output_dir (`str` or `os.PathLike`): the folder to write; complete or absent.
        format (`"onnx"`, `"openvino"`, `"executorch"`, `"litert"`, `"ncnn"`, `"coreml"` or `"transformers-js"`): batch
            and image size stay open, a detector's sides in multiples of 32; ExecuTorch's up to 8 images of 512×512.
            LiteRT, ncnn and Core ML (which is not run here) take one image of the image processor's size, unless
            the options say others; these four take no detectors. Transformers.js's graph takes images of any size as
            they are, and holds the image processor.
        int8 (`bool`, defaults to `False`): post-training quantisation by NNCF (ONNX, OpenVINO); of a detector the
            convolutions.
        calibration (`str`, *optional*): a folder of images like those to come, for `int8`; the first 300 are used.
        overwrite (`bool`, defaults to `False`): replace an existing folder of this command.
        folded (`bool`, defaults to `True`): the benchmark passes `False`, to compare with the graph as it is.
        half (`bool`, defaults to `False`): float16 (ONNX, OpenVINO); of a detector in ONNX the convolutions.
        end_to_end (`bool`, defaults to `False`): a further file of a detector, with the post-processing inside:
            `pixel_values` and `sizes` (height and width of each image, int64) in; `labels`, `boxes` (left, top, right,
            bottom in pixels) and `scores` out, the surest first, as many as there are queries.
        batch_size (`int`, *optional*): fix it.
        image_size (`tuple[int, int]`, *optional*): fix height and width; a detector's anchors and image processor
            follow.

    Returns:
        [`ModelExport`].

    Raises:
        `ExportError`: something is missing or cannot be exported, or the difference exceeds 1e-4; nothing was written.

    Example:

        >>> from pathlib import Path
        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> exported = hgnetv2_hf.export_model("digits", "digits-openvino", format="openvino")
        >>> sorted(path.name for path in Path("digits-openvino").iterdir() if path.suffix != ".py")
        ['config.json', 'export.json', 'model.bin', 'model.xml', 'preprocessor_config.json']
    """
    _check(format, int8, calibration, half)
    with claim(output_dir, folder if os.path.isdir(folder) else None, overwrite, marker=DESCRIPTION):
        model, processor = _load(folder)
        try:
            graph = Graph(model, folded)
        except ValueError as error:
            raise ExportError(f"{folder} cannot be exported: {error}") from error
        if graph.is_detector and format in _NO_DETECTORS:
            raise ExportError(
                f"{format}'s converter does not take a detector's decoder; onnx, openvino and transformers-js do."
            )
        if end_to_end and not graph.is_detector:
            raise ExportError(f"--end-to-end is for detectors, and {folder} holds none.")
        if processor is None and (int8 or graph.names[0] == "logits"):
            raise ExportError(
                f"{folder} has no image processor, so no image can be prepared; save one beside the model."
            )
        precision = "int8" if int8 else "float16" if half else "float32"
        if format == "transformers-js":
            if batch_size or image_size or end_to_end:
                raise ExportError(
                    "For Transformers.js images keep their size, and boxes are chosen inside; leave "
                    "--batch-size, --image-size and --end-to-end out."
                )
            return _export_for_browser(graph, processor, output_dir, precision, calibration)
        shapes = shapes_of(graph, format, batch_size, image_size, processor)
        _fit(processor, graph, shapes)
        return _export(graph, processor, output_dir, format, precision, shapes, calibration, end_to_end)


def _export(graph, processor, output_dir, format, precision, shapes, calibration, end_to_end):
    samples = samples_of(graph, shapes, processor)
    images = _calibration_images(calibration, processor) if precision == "int8" else None
    with atomic_folder(output_dir) as staging:
        path = staging / FORMATS[format, precision]
        path.parent.mkdir(exist_ok=True)
        further = path.with_stem(f"{path.stem}_end_to_end") if end_to_end else None
        with tqdm(total=3, desc=f"export {format}", leave=False) as progress:
            _write(graph, samples[0], path, format, precision, shapes, images, progress)
            if end_to_end:
                _add_post_processing(graph, samples[0], path, further, format, shapes)
            graph.original.config.save_pretrained(staging)
            if processor is not None:
                processor.save_pretrained(staging)
            description = _describe(graph, format, precision, shapes, path, further, staging)
            (staging / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
            difference = None
            if format not in ELSEWHERE:
                difference = _compare(graph, load_exported(staging), precision, samples if images is None else images)
            if end_to_end:
                _compare_end_to_end(staging, samples)
            progress.update()
        written = [*files_of(path), *(files_of(further) if further else [])]
        size = sum(file.stat().st_size for file in written)
    notes = [f"{precision}: measure its accuracy on images of your own"] if precision != "float32" else []
    if format in ELSEWHERE:
        notes.append(f"not compared: it runs in {ELSEWHERE[format]} only")
    elif difference is None:
        notes.append("not compared: on every image tried, queries score the same at the edge of the selection")
    elif precision != "float32" and graph.is_detector:
        notes.append("the difference is the median over the queries; a lower precision may choose a few others")
    if further:
        notes.append(f"{further.relative_to(staging)} holds the post-processing too: labels, boxes, scores")
    return ModelExport(str(output_dir), format, graph.names, str(shapes), precision, difference, size, notes)


def _export_for_browser(graph, processor, output_dir, precision, calibration):
    """The ONNX file, compared as such, with the image processor before it and the choice of boxes behind it."""
    if graph.names[0] != "logits":
        raise ExportError("Transformers.js runs classifiers and detectors; export a backbone as onnx.")
    config = graph.original.config
    if not graph.is_detector and (config.problem_type == "multi_label_classification" or config.num_labels == 1):
        raise ExportError(
            "Transformers.js takes a softmax over a classifier's labels, and this one's scores are sigmoids; onnx has "
            "the logits."
        )
    options = processing_of(processor, getattr(config, "num_channels", 3))
    with tempfile.TemporaryDirectory() as scratch, atomic_folder(output_dir) as staging:
        size = options["size"] or {}
        # With open sides PyTorch writes a detector's positions in double, which browsers do not compute.
        sides = (size["height"], size["width"]) if graph.is_detector and "height" in size else None
        shapes = shapes_of(graph, "onnx", None, sides)
        network = _export(graph, processor, Path(scratch) / "network", "onnx", precision, shapes, calibration, False)
        after = None
        if graph.is_detector:
            after = Path(scratch) / "after.onnx"
            with quiet():
                sample = samples_of(graph, shapes, processor)[0]
                WRITERS["onnx"](
                    BrowserPostProcessing, trace_post_processing(graph, sample, shapes, BrowserPostProcessing), after
                )
        path = staging / FORMATS["onnx", precision]
        path.parent.mkdir()
        join(Path(network.output_dir) / FORMATS["onnx", precision], options, after, path)
        write_configuration(config, graph.is_detector, precision, staging)
        description = _describe(graph, "transformers-js", precision, shapes, path, None, staging)
        (staging / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        difference = browser_difference(path, graph, processor)
        if precision == "float32" and not difference <= BROWSER_TOLERANCE:
            raise ExportError(
                f"Scores from an image's own pixels differ from the pipeline's by {difference:.1e}, more than "
                f"{BROWSER_TOLERANCE:.0e}; nothing was written."
            )
        size = path.stat().st_size
    notes = [*network.notes, f"from an image's own pixels to scores: {difference:.1e} from Python's pipeline"]
    takes = "images of any size, from 0 to 255; they are scaled inside"
    return ModelExport(
        str(output_dir), "transformers-js", graph.names, takes, precision, network.difference, size, notes
    )


def _write(graph, sample, path, format, precision, shapes, images, progress):
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        program = trace(graph, sample, shapes)
        progress.update()
        float32 = path if precision == "float32" else Path(scratch) / path.name
        WRITERS[format](graph, program, float32)
        if precision == "float16":
            HALVES[format](float32, path, graph.is_detector)
        if precision == "int8":
            quantize(format, float32, path, images, graph.is_detector)
        progress.update()


def _add_post_processing(graph, sample, path, further, format, shapes):
    with quiet(), tempfile.TemporaryDirectory() as scratch:
        second = Path(scratch) / path.name
        WRITERS[format](PostProcessing, trace_post_processing(graph, sample, shapes), second)
        JOINS[format](path, second, further)


def _describe(graph, format, precision, shapes, path, further, folder):
    return {
        "format": format,
        "file": path.relative_to(folder).as_posix(),
        "end_to_end": further and further.relative_to(folder).as_posix(),
        "outputs": graph.names,
        "precision": precision,
        "shapes": dataclasses.asdict(shapes),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }


def _compare(graph, exported, precision, samples):
    """The difference; raises where it is too large."""
    if not graph.is_detector:
        difference = largest_difference(lambda pixels: graph.outputs(graph.original, pixels), exported.run, samples)
    elif precision == "float32":
        difference = detector_difference(graph.original, exported.run, samples)
    else:
        difference = typical_difference(graph.original, exported.run, samples)
    if difference is None:
        return None
    if precision != "float32":
        if not math.isfinite(difference):
            raise ExportError(
                f"In {precision} some outputs of {exported.format} are not finite; nothing was written. Leave "
                f"--{'int8' if precision == 'int8' else 'half'} out."
            )
    elif not difference <= TOLERANCE:
        raise ExportError(
            f"What {exported.format} computes differs from the model by {difference:.1e} relative, more than "
            f"{TOLERANCE:.0e}; nothing was written. Another format or version of the runtime may be exact."
        )
    return difference


def _compare_end_to_end(folder, samples):
    difference = end_to_end_difference(load_exported(folder), load_exported(folder, end_to_end=True), samples)
    if not difference <= TOLERANCE:
        raise ExportError(
            f"The boxes of the graph with post-processing differ from those without by {difference:.1e} relative; "
            "nothing was written."
        )


def _fit(processor, graph, shapes):
    """The image processor for a fixed image size."""
    if shapes.image_size is None or processor is None:
        return
    height, width = shapes.image_size
    if graph.is_detector:
        processor.size = {"height": height, "width": width}
        return
    crop = getattr(processor, "crop_size", None) or {}
    if (crop.get("height"), crop.get("width")) != (height, width):
        raise ExportError(
            f"The image processor crops to {crop.get('height')}×{crop.get('width')}, and the graph would take "
            f"{height}×{width} only; save an image processor for this size first."
        )


def _check(format, int8, calibration, half):
    formats = sorted(_MODULES.keys() - {"int8"})
    if format not in formats:
        raise ExportError(f"There is no format {format!r}: {', '.join(formats)}.")
    if format in _NO_DETECTORS and (int8 or half):
        raise ExportError(f"{'int8' if int8 else 'float16'} is made for onnx, openvino and transformers-js.")
    if int8 and half:
        raise ExportError("--int8 and --half exclude each other; choose one.")
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
        extras = ",".join([*(["int8"] if int8 else []), _EXTRAS.get(format, format)])
        raise ExportError(
            f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed: "
            f'pip install "hgnetv2-hf[{extras}]".'
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
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ExportError(f"{folder} is no model that can be loaded: {sentence(error)[:300]}") from error
    if not contains_hgnetv2(model) or (architecture.endswith("Model") and not is_network(model)):
        raise ExportError(f"{folder} holds a {architecture}, which is not HGNetV2 nor a detector with it.")
    try:
        return model, load_image_processor(folder)
    except (OSError, ValueError):
        return model, None


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
