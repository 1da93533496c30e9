"""Any classifier or detector as one call from images to answers: folders and repositories of Transformers, exported
folders, models in memory."""

import copy
import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Optional

import numpy as np
import PIL.Image
import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForObjectDetection
from transformers.image_utils import load_image

from ..backbone import check_name, load_image_processor
from ..errors import InferenceError
from ..files.images import UNREADABLE, folder_stamp, printable_path
from ..files.sources import open_image, read_image
from ..files.storage import is_url
from ..model.heads import check_heads
from ..structure import contains_hgnetv2
from ..wording import printable, sentence
from .detections import detections_of
from .optimize import optimize_for_inference
from .precision import fastest_dtype, warn_if_emulated
from .runtime import DESCRIPTION, is_exported, load_exported, refuse_elsewhere


TASKS = {"ForImageClassification": "classifier", "ForObjectDetection": "detector"}
_PROBLEMS = ("single_label_classification", "multi_label_classification")
_EXPORTED = {("logits",): "classifier", ("logits", "pred_boxes"): "detector"}  # by the outputs
_LOADERS = {
    "classifier": AutoModelForImageClassification.from_pretrained,
    "detector": AutoModelForObjectDetection.from_pretrained,
}
UNLOADABLE = (OSError, ValueError, KeyError, ImportError, SafetensorError)
_FILLED_IN = (".num_batches_tracked", "n_points_scale", "num_points_scale")  # by the library, from the configuration


@dataclasses.dataclass(frozen=True)
class Recognised:
    """What a model is, before its weights are read."""

    model: Any  # a folder, a repository, or a model in memory
    name: str  # for people
    task: str  # "classifier" or "detector"
    labels: list[str]
    runtime: str  # "torch", "onnx", "openvino" or "executorch"
    largest_batch: Optional[int]  # of images per call
    config: Any  # of the model


def recognise(model):
    """
    Args:
        model (`str`, `os.PathLike` or `torch.nn.Module`): a classifier or a detector of Transformers, by folder,
            repository or as it is; or a folder of `hgnetv2-hf export`.

    Returns:
        [`Recognised`]

    Raises:
        `InferenceError`: there is no such model, or it is neither.
    """
    if isinstance(model, torch.nn.Module):
        return _recognised(model, type(model).__name__, model.config, [type(model).__name__])
    name = printable_path(model)
    if is_exported(model):
        return _recognise_exported(model, name)
    check_name(model)
    try:
        config = AutoConfig.from_pretrained(model)
    except UNLOADABLE as error:
        raise InferenceError(f"{name} is no model that can be loaded: {sentence(error)[:300]}") from error
    return _recognised(model, name, config, config.architectures or [])


def _recognised(model, name, config, architectures):
    found = [task for ending, task in TASKS.items() if any(ending in each for each in architectures)]
    if not found:
        raise InferenceError(f"{name} holds {', '.join(architectures) or 'no model'}: no classifier and no detector.")
    _refuse_other_problems(config, name, found[0])
    return Recognised(model, name, found[0], _labels(config), "torch", None, config)


def _recognise_exported(folder, name):
    try:
        description = json.loads((Path(folder) / DESCRIPTION).read_text(encoding="utf-8"))
        task, runtime = _EXPORTED.get(tuple(description["outputs"])), description["format"]
        refuse_elsewhere(name, description)
        shapes = description.get("shapes")
        if shapes is None:  # of an older version, whose detectors take one image
            largest = 1 if task == "detector" else (description.get("maximum") or {}).get("batch")
        else:
            largest = shapes["batch_size"] or shapes["largest_batch"]
        config = AutoConfig.from_pretrained(folder)
    except InferenceError:
        raise
    except (*UNLOADABLE, TypeError, AttributeError) as error:
        raise InferenceError(f"{name} is no exported folder that can be read: {sentence(error)[:300]}") from error
    if task is None:
        raise InferenceError(f"{name} holds an exported backbone: no classifier and no detector.")
    _refuse_other_problems(config, name, task)
    return Recognised(folder, name, task, _labels(config), runtime, largest, config)


def refuse_several_labels(recognised):
    """Raises `InferenceError` where an image may have several labels, or none: accuracy says nothing there."""
    if recognised.task == "classifier" and recognised.config.problem_type == "multi_label_classification":
        raise InferenceError(
            f"{recognised.name} is for {recognised.config.problem_type}; images of one class each are expected. "
            "`hgnetv2-hf classify` gives the scores of its labels."
        )


def _refuse_other_problems(config, name, task):
    if task == "classifier" and (config.problem_type or "single_label_classification") not in _PROBLEMS:
        raise InferenceError(f"{name} is for {config.problem_type}; labels with scores are expected.")
    if task == "classifier" and config.num_labels < 2:
        raise InferenceError(f"{name} has one output only; a classifier with at least two classes is expected.")


def _labels(config):
    return [str(config.id2label[index]) for index in range(config.num_labels)]


class Predictor:
    """
    A loaded model. `pixels` may be called in any thread.

    Attributes:
        dtype (`str`): what it computes in.
        device (`str`): where.
    """

    def __init__(self, outputs, processor, answers, dtype, device):
        self._outputs = outputs  # float32 array (batch, channels, height, width) -> named tensors in float32
        self._processor = processor
        self._answers = answers  # outputs and sizes -> an answer per image
        self.dtype = dtype
        self.device = device

    def pixels(self, image):
        """An RGB image to a float32 array (height, width, channels)."""
        return prepare(self._processor, image)

    def __call__(self, arrays, sizes):
        """
        Args:
            arrays (`list[np.ndarray]`): of `pixels`; those of different sizes are computed one by one.
            sizes (`list[tuple[int, int]]`): height and width of each image.

        Returns:
            `list`: per image the logits `(classes,)` of a classifier; or `scores` `(n,)`, best first, `labels` `(n,)`
                and `boxes` `(n, 4)`, left, top, right, bottom in pixels, of a detector. NumPy arrays.
        """
        if len({array.shape for array in arrays}) > 1:
            return [self([array], [size])[0] for array, size in zip(arrays, sizes)]
        outputs = self._outputs(np.moveaxis(np.stack(arrays), -1, 1))
        if not all(torch.as_tensor(each).isfinite().all() for each in outputs.values()):
            raise InferenceError("The model's outputs are not finite; try --dtype float32.")
        return self._answers(outputs, sizes)


def prepare(processor, image):
    """What an image processor makes of a file or an image: a float32 array (height, width, channels)."""
    if type(processor).__name__ == "HGNetV2ImageProcessor":  # the package's or remote code's
        return processor(image, return_tensors="np", data_format="channels_last")["pixel_values"][0]
    image = image if isinstance(image, PIL.Image.Image) else load_image(image)
    pixel_values = processor(images=image, return_tensors="pt")["pixel_values"][0]
    return np.moveaxis(np.asarray(pixel_values), 0, -1)


def decoded(processor, found):
    """What an image processor makes of an image that was found ([`Found`]), or the error as text."""
    try:
        return _prepared(processor, open_image(found))
    except UNREADABLE as error:
        return sentence(error)


def decoded_with_digest(processor, found):
    """As [`decoded`], with the SHA-256 of the encoded image."""
    try:
        image, content = read_image(found)
        return _prepared(processor, image), hashlib.sha256(content).hexdigest()
    except UNREADABLE as error:
        return sentence(error)


def _prepared(processor, image):
    ours = type(processor).__name__ == "HGNetV2ImageProcessor"
    return prepare(processor, image if ours else load_image(image))  # which turns it as its EXIF tag says


def refuse_inside_model(output, model):
    """Raises `InferenceError` where a folder would be written into the model's."""
    if os.path.isdir(model) and not is_url(output) and Path(output).resolve().is_relative_to(Path(model).resolve()):
        raise InferenceError(f"{output} lies in the model's folder; choose another place.")


def first_error(error):
    """An example, for a summary that counts images which could not be read."""
    return f" (the first: {printable(error)})" if error else ""


def run_key(model, *options):
    """Changes with the model's files and what else the rows of a run depend on."""
    run = [os.path.abspath(model), folder_stamp(model), *options]
    return hashlib.sha256(json.dumps(run).encode()).hexdigest()[:12]


def load_predictor(recognised, dtype="float32", device=None, image_processor=None):
    """
    Args:
        recognised ([`Recognised`])
        dtype (`str`): `"float32"`, `"bfloat16"`, `"float16"` or `"auto"`.
        device (`str`, *optional*): by default the first GPU, if there is one; exported folders run on the CPU.
        image_processor (*optional*): of a model in memory; by default that of the folder it came from.

    Returns:
        [`Predictor`]

    Raises:
        `InferenceError`: the model, its image processor or the runtime cannot be loaded, or not in this precision.
    """
    if recognised.runtime != "torch":
        return _load_exported(recognised, dtype, device)
    try:
        device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        model, source = _model(recognised)
        processor = image_processor if image_processor is not None else load_image_processor(source)
        model = _fastest(model.to(device), dtype)
    except (*UNLOADABLE, RuntimeError, AssertionError) as error:  # the last two: no such device
        raise InferenceError(f"{recognised.name} cannot be loaded: {sentence(error)[:300]}") from error
    names = ("logits",) if recognised.task == "classifier" else ("logits", "pred_boxes")

    def outputs(pixel_values):
        with torch.inference_mode():
            output = model(torch.from_numpy(pixel_values).to(model.device, model.dtype))
        return {name: output[name].float().cpu() for name in names}

    return Predictor(outputs, processor, _answers(recognised, processor), str(model.dtype)[6:], str(device))


def _model(recognised):
    """The model in evaluation mode and float32, and where its image processor lies."""
    if isinstance(recognised.model, torch.nn.Module):
        return copy.deepcopy(recognised.model).eval().float(), recognised.model.name_or_path
    return load_whole(recognised.model, recognised.task, dtype=torch.float32).eval(), recognised.model


def load_whole(model, task, **options):
    """
    A model of Transformers with all its weights: what its files lack, the library would fill in at random.

    Args:
        model (`str` or `os.PathLike`): a folder or a repository.
        task (`"classifier"` or `"detector"`)
        options: of `from_pretrained`.

    Raises:
        `ValueError`: its files lack weights, or this version of Transformers reads them wrongly.
    """
    loaded, found = _LOADERS[task](model, output_loading_info=True, **options)
    lacking = sorted(name for name in found["missing_keys"] if not name.endswith(_FILLED_IN))
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ValueError(f"its files lack {', '.join(lacking[:3])}{more}, which its configuration asks for")
    if task == "detector":
        check_heads(loaded)
    return loaded


def _fastest(model, dtype):
    dtype = fastest_dtype(model.device) if dtype == "auto" else getattr(torch, dtype)
    if contains_hgnetv2(model):
        return optimize_for_inference(model, dtype=dtype)
    warn_if_emulated(dtype, model.device)
    return model.to(dtype)


def _load_exported(recognised, dtype, device):
    if device not in (None, "cpu"):
        raise InferenceError(f"{recognised.name} is an exported folder, which runs on the CPU; leave --device out.")
    exported = load_exported(recognised.model, dtype, threads=torch.get_num_threads())
    try:
        processor = load_image_processor(recognised.model)
    except UNLOADABLE as error:
        raise InferenceError(f"{recognised.name} has no image processor: {sentence(error)[:300]}") from error

    def outputs(pixel_values):
        return {name: torch.from_numpy(np.array(value)) for name, value in exported.run(pixel_values).items()}

    return Predictor(outputs, processor, _answers(recognised, processor), exported.dtype, "cpu")


def _answers(recognised, processor):
    if recognised.task == "detector":
        return detections_of(processor)
    return lambda outputs, sizes: list(outputs["logits"].numpy())


def threads():
    """How many threads the network has on a CPU."""
    return torch.get_num_threads() or os.cpu_count() or 1
