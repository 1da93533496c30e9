"""Runs the folders that `hgnetv2-hf export` writes, through ONNX Runtime, OpenVINO, ExecuTorch, LiteRT or ncnn."""

import functools
import json
import os
import threading
import warnings
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
import transformers
from transformers.image_utils import load_image

from ..backbone import load_image_processor
from ..errors import InferenceError, raised_as
from ..wording import sentence
from .detections import END_TO_END, as_objects, detections_of
from .precision import PrecisionWarning, is_native_in_openvino


# The file of each format and precision; ONNX lies and is called as Transformers.js looks for it.
FORMATS = {
    ("onnx", "float32"): "onnx/model.onnx",
    ("onnx", "float16"): "onnx/model_fp16.onnx",
    ("onnx", "int8"): "onnx/model_quantized.onnx",
    ("openvino", "float32"): "model.xml",
    ("openvino", "float16"): "model.xml",
    ("openvino", "int8"): "model.xml",
    ("executorch", "float32"): "model.pte",
    ("litert", "float32"): "model.tflite",
    ("ncnn", "float32"): "model.ncnn.param",
    ("coreml", "float32"): "model.mlpackage",
}
ELSEWHERE = {"transformers-js": "Transformers.js", "coreml": "Core ML on Apple's systems"}  # not run in Python here
DESCRIPTION = "export.json"
_OLDER = {
    "onnx": "model.onnx",
    "openvino": "model.xml",
    "executorch": "model.pte",
}  # without "file" in the description


def is_exported(folder: Union[str, os.PathLike]) -> bool:
    """Whether `hgnetv2-hf export` wrote this folder."""
    return (Path(folder) / DESCRIPTION).is_file()


def refuse_elsewhere(folder, description):
    """Raises `InferenceError` where the folder's graph does not run in Python."""
    if place := ELSEWHERE.get(description["format"]):
        raise InferenceError(f"{folder} is for {place}; export the model as onnx to run it in Python.")


@raised_as(InferenceError)
def load_exported(
    folder: Union[str, os.PathLike], dtype: str = "float32", threads: Optional[int] = None, end_to_end: bool = False
) -> Union["ExportedModel", "ExportedImageClassifier", "ExportedObjectDetector"]:
    """
    Loads what `hgnetv2-hf export` wrote.

    Args:
        folder (`str` or `os.PathLike`): the folder.
        dtype (`"float32"`, `"bfloat16"` or `"auto"`, defaults to `"float32"`): what OpenVINO computes in; the others
            have one. `"auto"` is bfloat16 where OpenVINO computes it natively on this processor, else float32.
        threads (`int`, *optional*): CPU threads; by default the runtime's choice.
        end_to_end (`bool`, defaults to `False`): a detector's graph with the post-processing inside.

    Returns:
        `ExportedImageClassifier` for a classifier, `ExportedObjectDetector` for a detector, else `ExportedModel`;
            `.dtype` says what is computed. It may be called by several threads; all but ONNX Runtime compute one call
            after the other.

    Raises:
        `InferenceError`: no such folder, a damaged file, or the runtime is not installed.

    Warns:
        `PrecisionWarning`: bfloat16 was asked for and is not native here; float32 is computed.

    Example:

        >>> from pathlib import Path
        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> exported = hgnetv2_hf.export_model("digits", "digits-onnx", format="onnx")
        >>> classifier = hgnetv2_hf.load_exported("digits-onnx")
        >>> image = Path(hgnetv2_hf.__file__).parent / "assets" / "digits" / "digit_7.png"
        >>> classifier(image, top_k=1)[0]["label"], classifier.dtype
        ('7', 'float32')
    """
    try:
        description = json.loads((Path(folder) / DESCRIPTION).read_text(encoding="utf-8"))
        refuse_elsewhere(folder, description)
        start = _RUNTIMES[description["format"]]
        names = list(END_TO_END) if end_to_end else description["outputs"]
        is_openvino = description["format"] == "openvino"
        file = (
            description.get("end_to_end") if end_to_end else description.get("file", _OLDER.get(description["format"]))
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InferenceError(f"{folder} holds no model that `hgnetv2-hf export` wrote ({DESCRIPTION}).") from error
    if file is None:
        raise InferenceError(f"{folder} has no graph with the post-processing inside; export it with --end-to-end.")
    path = Path(folder) / file
    if dtype not in ("float32", "bfloat16", "auto") or (dtype == "bfloat16" and not is_openvino):
        raise InferenceError(
            f"A folder for {description['format']} does not run in {dtype}: float32 always works, bfloat16 in "
            "openvino."
        )
    try:
        computed = openvino_dtype(dtype) if is_openvino else "float32"
        run = start(path, computed, threads, names, _largest_batch(description))
    except ImportError as error:
        raise InferenceError(
            f'{error.name} is not installed: pip install "hgnetv2-hf[{description["format"]}]".'
        ) from error
    except Exception as error:  # each runtime has errors of its own for a damaged file
        raise InferenceError(f"{path} cannot be loaded: {sentence(error)[:300]}") from error
    if dtype not in ("auto", computed):
        warnings.warn(
            f"OpenVINO does not compute {dtype} natively on this processor; {folder} runs in {computed}.",
            PrecisionWarning,
            stacklevel=3,  # `raised_as` is a frame too
        )
    if fixed := (description.get("shapes") or {}).get("batch_size"):
        run = _in_batches_of(fixed, run)
    return _CLASSES.get(tuple(names), ExportedModel)(folder, names, run, computed, description)


def _largest_batch(description):
    older = description.get("maximum") or {}
    return (description.get("shapes") or {}).get("largest_batch") or older.get("batch")


def _in_batches_of(count, run):
    """Any number of images for a graph that takes so many: the last ones are repeated, and cut off."""

    def run_all(*inputs):
        total = len(inputs[0])
        parts = []
        for start in range(0, total, count):
            part = [array[start : start + count] for array in inputs]
            part = [np.concatenate([array, np.repeat(array[-1:], count - len(array), 0)]) for array in part]
            parts.append(run(*part))
        return [np.concatenate(outputs)[:total] for outputs in zip(*parts)]

    return run_all


class ExportedModel:
    """A model in another runtime: `(batch, channels, height, width)` float32 in, named arrays out."""

    def __init__(self, folder, names, run, dtype, description):
        self.folder = os.fspath(folder)
        self.format = description["format"]
        self.names = names
        self.dtype = dtype
        self._run = run
        self._shapes = description.get("shapes") or {}

    def run(
        self, pixel_values: Union[np.ndarray, torch.Tensor], sizes: Union[np.ndarray, torch.Tensor, None] = None
    ) -> dict[str, np.ndarray]:
        """
        Args:
            pixel_values (`np.ndarray` or `torch.Tensor`): normalised images, `(batch, channels, height, width)`.
            sizes (`np.ndarray` or `torch.Tensor`, *optional*): height and width of each image before preprocessing,
                `(batch, 2)`; of a detector with `end_to_end` only.

        Returns:
            `dict[str, np.ndarray]`: `logits`; or a map per stage of a backbone; or `logits` and `pred_boxes`; or
                `labels`, `boxes` and `scores`.

        Raises:
            `ValueError`: NaN or infinite values, which some runtimes turn into ordinary numbers; or a size that the
                graph does not take.
        """
        pixel_values = np.ascontiguousarray(pixel_values, dtype=np.float32)
        self._check(pixel_values)
        if (sizes is not None) != (self.names == list(END_TO_END)):
            raise ValueError(
                "`sizes` (height, width) is for a graph with `end_to_end=True`, which needs it, and for no other."
            )
        inputs = [pixel_values] if sizes is None else [pixel_values, np.ascontiguousarray(sizes, dtype=np.int64)]
        return dict(zip(self.names, self._run(*inputs)))

    def _check(self, pixel_values):
        if not np.isfinite(pixel_values.sum(dtype=np.float64)):
            raise ValueError("`pixel_values` holds NaN or infinite values.")
        if pixel_values.ndim != 4:
            raise ValueError(f"Expected (batch, channels, height, width), got shape {pixel_values.shape}.")
        size, fixed = list(pixel_values.shape[2:]), self._shapes.get("image_size")
        multiple = self._shapes.get("multiple") or 1
        if fixed is not None and size != list(fixed):
            raise ValueError(f"{self.folder} takes images of {fixed[0]}×{fixed[1]} only, not {size[0]}×{size[1]}.")
        if any(side % multiple for side in size):
            raise ValueError(
                f"Images of {size[0]}×{size[1]} do not fit {self.folder}: height and width are multiples of "
                f"{multiple}."
            )

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.run(*args, **options)


class ExportedImageClassifier(ExportedModel):
    """Called like `pipeline("image-classification")`: images in, labels and scores out."""

    def __init__(self, folder, names, run, dtype, description):
        super().__init__(folder, names, run, dtype, description)
        self.config = transformers.AutoConfig.from_pretrained(folder)
        self.image_processor = load_image_processor(folder)

    def __call__(self, images: Any, top_k: int = 5) -> list[Any]:
        """
        Args:
            images: a path, a PIL image or whatever the image processor takes; or a list of them.
            top_k (`int`, defaults to 5): how many labels.

        Returns:
            `list[dict]` with `label` and `score`, best first; for several images a list of those.
        """
        single = not isinstance(images, (list, tuple))
        pixel_values = self.image_processor([images] if single else images, return_tensors="np")["pixel_values"]
        best = [top_labels(logits, self.config, top_k) for logits in self.run(pixel_values)["logits"]]
        return best[0] if single and len(best) == 1 else best


class ExportedObjectDetector(ExportedModel):
    """Called like `pipeline("object-detection")`: images in; labels, scores and boxes out."""

    def __init__(self, folder, names, run, dtype, description):
        super().__init__(folder, names, run, dtype, description)
        self.config = transformers.AutoConfig.from_pretrained(folder)
        self.image_processor = load_image_processor(folder)
        self._choose = detections_of(self.image_processor)

    def __call__(self, images: Any, threshold: float = 0.5) -> list[Any]:
        """
        Args:
            images: a path, a PIL image, or a list of them.
            threshold (`float`, defaults to 0.5): scores above it.

        Returns:
            `list[dict]` with `label`, `score` and `box` (`xmin`, `ymin`, `xmax`, `ymax` in pixels), best first; for
            several images a list of those.
        """
        single = not isinstance(images, (list, tuple))
        loaded = [load_image(image) for image in ([images] if single else images)]
        sizes = [(image.height, image.width) for image in loaded]
        outputs = self.run(self.image_processor(loaded, return_tensors="pt")["pixel_values"])
        outputs = {name: torch.from_numpy(np.array(array)) for name, array in outputs.items()}
        found = [as_objects(each, self.config.id2label, threshold) for each in self._choose(outputs, sizes)]
        return found[0] if single else found


def top_labels(logits, config, top_k):
    """``pipeline``'s answer for the logits of one image: ``[{"label": …, "score": …}, …]``, best first."""
    logits = np.asarray(logits, dtype=np.float32)
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        scores = 1 / (1 + np.exp(-logits))
    else:
        powers = np.exp(logits - logits.max())
        scores = powers / powers.sum()
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": config.id2label[int(index)], "score": float(scores[index])} for index in best]


_CLASSES = {("logits",): ExportedImageClassifier, ("logits", "pred_boxes"): ExportedObjectDetector}


def _start_onnx(path, dtype, threads, names, largest_batch):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    inputs = [each.name for each in session.get_inputs()]
    return lambda *arrays: session.run(names, dict(zip(inputs, arrays)))


@functools.lru_cache(maxsize=1)
def openvino_core():
    """The process's one `openvino.Core`. Two whose lives overlap leave the thread a signal stack that is unmapped
    (2026.4.1), and the next signal that Python handles, Ctrl-C or the end of a worker, kills the process."""
    import openvino

    return openvino.Core()


def openvino_dtype(asked):
    """What OpenVINO computes: asked for a precision that the processor lacks, it takes float32 without a word."""
    if asked == "float32" or not is_native_in_openvino(torch.bfloat16, openvino_core()):
        return "float32"
    return "bfloat16"


def start_openvino(model, dtype, threads, names, largest_batch=None):
    """A function that runs a file or a model in memory on the CPU, one call at a time."""
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    request = openvino_core().compile_model(model, "CPU", options).create_infer_request()

    def run(*arrays):
        outputs = request.infer(list(arrays), share_inputs=True)
        return [outputs[index] for index in range(len(names))]

    return _one_at_a_time(run)


def _start_executorch(path, dtype, threads, names, largest_batch):
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")

    def run(pixel_values):
        largest = largest_batch or len(pixel_values)
        parts = [
            [output.numpy().copy() for output in method.execute([torch.from_numpy(np.ascontiguousarray(part))])]
            for part in (pixel_values[start : start + largest] for start in range(0, len(pixel_values), largest))
        ]
        return [np.concatenate(outputs) for outputs in zip(*parts)]

    return _one_at_a_time(run)


def _start_litert(path, dtype, threads, names, largest_batch):
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(path), num_threads=threads).get_signature_runner()
    (name,) = runner.get_input_details()
    return _one_at_a_time(lambda pixels: [array for _, array in sorted(runner(**{name: pixels}).items())])


def _start_ncnn(path, dtype, threads, names, largest_batch):
    import ncnn

    network = ncnn.Net()
    network.opt.use_fp16_packed = network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
    if threads:
        network.opt.num_threads = threads
    if network.load_param(str(path)) or network.load_model(str(Path(path).with_suffix(".bin"))):
        raise ValueError("ncnn does not read it")

    def run(pixels):
        extractor = network.create_extractor()
        image = ncnn.Mat(np.ascontiguousarray(pixels[0])).clone()  # its own memory, which outlives the array's
        extractor.input("in0", image)
        return [np.array(extractor.extract(f"out{index}")[1])[None] for index in range(len(names))]

    return _one_at_a_time(run)


def _one_at_a_time(run):
    lock = threading.Lock()

    def locked(*arrays):
        with lock:
            return run(*arrays)

    return locked


_RUNTIMES = {
    "onnx": _start_onnx,
    "openvino": start_openvino,
    "executorch": _start_executorch,
    "litert": _start_litert,
    "ncnn": _start_ncnn,
}
