"""Runs the folders that `hgnetv2-hf export` writes, through ONNX Runtime, OpenVINO or ExecuTorch."""

import functools
import json
import os
import warnings
from pathlib import Path
from typing import Any, Optional, Union

import numpy as np
import torch
import transformers

from ..backbone import load_image_processor
from ..errors import InferenceError, raised_as
from ..wording import sentence
from .precision import PrecisionWarning, is_native_in_openvino


FORMATS = {"onnx": "model.onnx", "openvino": "model.xml", "executorch": "model.pte"}
DESCRIPTION = "export.json"


def is_exported(folder: Union[str, os.PathLike]) -> bool:
    """Whether `hgnetv2-hf export` wrote this folder."""
    return (Path(folder) / DESCRIPTION).is_file()


@raised_as(InferenceError)
def load_exported(
    folder: Union[str, os.PathLike], dtype: str = "float32", threads: Optional[int] = None
) -> Union["ExportedModel", "ExportedImageClassifier"]:
    """
    Loads what `hgnetv2-hf export` wrote.

    Args:
        folder (`str` or `os.PathLike`): the folder.
        dtype (`"float32"`, `"bfloat16"` or `"auto"`, defaults to `"float32"`): what OpenVINO computes in; the others
            have one. `"auto"` is bfloat16 where OpenVINO computes it natively on this processor, else float32.
        threads (`int`, *optional*): CPU threads; by default the runtime's choice.

    Returns:
        `ExportedImageClassifier` for a classifier, else `ExportedModel`; `.dtype` says what is computed.

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
        start = _RUNTIMES[description["format"]]
        names = description["outputs"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InferenceError(f"{folder} holds no model that `hgnetv2-hf export` wrote ({DESCRIPTION}).") from error
    is_openvino = description["format"] == "openvino"
    if dtype not in ("float32", "bfloat16", "auto") or (dtype == "bfloat16" and not is_openvino):
        raise InferenceError(
            f"A folder for {description['format']} does not run in {dtype}: float32 always works, bfloat16 in "
            "openvino."
        )
    path = Path(folder) / FORMATS[description["format"]]
    try:
        computed = _openvino_dtype(dtype) if is_openvino else "float32"
        run = start(path, computed, threads, description)
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
    is_classifier = names == ["logits"]
    return (ExportedImageClassifier if is_classifier else ExportedModel)(folder, names, run, computed)


class ExportedModel:
    """A model in another runtime: `(batch, channels, height, width)` float32 in, named arrays out."""

    def __init__(self, folder, names, run, dtype):
        self.folder = os.fspath(folder)
        self.names = names
        self.dtype = dtype
        self._run = run

    def run(self, pixel_values: Union[np.ndarray, torch.Tensor]) -> dict[str, np.ndarray]:
        """
        Args:
            pixel_values (`np.ndarray` or `torch.Tensor`): normalised images, `(batch, channels, height, width)`.

        Returns:
            `dict[str, np.ndarray]`: `logits`; or a map per stage of a backbone; or `logits` and `pred_boxes`.

        Raises:
            `ValueError`: NaN or infinite values, which some runtimes turn into ordinary numbers.
        """
        pixel_values = np.ascontiguousarray(pixel_values, dtype=np.float32)
        if not np.isfinite(pixel_values.sum(dtype=np.float64)):
            raise ValueError("`pixel_values` holds NaN or infinite values.")
        return dict(zip(self.names, self._run(pixel_values)))

    def __call__(self, *args: Any, **options: Any) -> Any:
        return self.run(*args, **options)


class ExportedImageClassifier(ExportedModel):
    """Called like `pipeline("image-classification")`: images in, labels and scores out."""

    def __init__(self, folder, names, run, dtype):
        super().__init__(folder, names, run, dtype)
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


def _start_onnx(path, dtype, threads, description):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = onnxruntime.InferenceSession(str(path), options, providers=onnxruntime.get_available_providers())
    return lambda pixel_values: session.run(description["outputs"], {session.get_inputs()[0].name: pixel_values})


@functools.lru_cache(maxsize=1)
def openvino_core():
    """The process's one `openvino.Core`. Two whose lives overlap leave the thread a signal stack that is unmapped
    (2026.4.1), and the next signal that Python handles, Ctrl-C or the end of a worker, kills the process."""
    import openvino

    return openvino.Core()


def _openvino_dtype(asked):
    """What OpenVINO computes: asked for a precision that the processor lacks, it takes float32 without a word."""
    if asked == "float32" or not is_native_in_openvino(torch.bfloat16, openvino_core()):
        return "float32"
    return "bfloat16"


def _start_openvino(path, dtype, threads, description):
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "bf16" if dtype == "bfloat16" else "f32"}
    if threads:
        options["INFERENCE_NUM_THREADS"] = threads
    request = openvino_core().compile_model(path, "CPU", options).create_infer_request()

    def run(pixel_values):
        outputs = request.infer([pixel_values], share_inputs=True)
        return [outputs[index] for index in range(len(description["outputs"]))]

    return run


def _start_executorch(path, dtype, threads, description):
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(path)).load_method("forward")
    largest = description["maximum"]["batch"]

    def run(pixel_values):
        parts = [
            method.execute([torch.from_numpy(np.ascontiguousarray(pixel_values[start : start + largest]))])
            for start in range(0, len(pixel_values), largest)
        ]
        return [np.concatenate([part[index].numpy().copy() for part in parts]) for index in range(len(parts[0]))]

    return run


_RUNTIMES = {"onnx": _start_onnx, "openvino": _start_openvino, "executorch": _start_executorch}
