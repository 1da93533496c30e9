"""The conversion, from a weight file to a folder: source, read, recognise, rename, build, save, verify."""

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional, Union

import torch
from safetensors import SafetensorError

from ..errors import ConversionError, raised_as
from ..files.atomic import atomic_folder, claim
from ..model.heads import write_both_names
from ..model.variants import ALL_VARIANTS, canonical_name
from ..wording import counted
from .architecture import name_variant, recognise_architecture
from .assumptions import OPTIONS, assume
from .detectors import DETECTORS, recognise_detector
from .families import FAMILY_NAMES, check_family
from .keras_preset import check_preset
from .layouts import (
    LAYOUTS,
    is_head,
    layouts_of,
    recognise_layout,
    recognise_layouts,
    rename,
    rename_back,
    split_detector,
)
from .model_card import model_card
from .network import build_image_processor, build_network, choose_model_type, some
from .paddle_detector import COMPLETED, complete
from .paddle_inference import naming, read_inference_model
from .paddle_settings import read_settings
from .report import ConversionReport, report_on
from .source import find_source
from .text_recognition import declare_strides
from .timm_folder import TimmModel, check_timm_model
from .verification import TOLERANCE, Parity, compare_with_program
from .verification import verify as verify_original
from .weight_file import read_weights


TASKS = ("classification", "backbone", "detection")


@raised_as(ConversionError)
def convert_checkpoint(
    source: Union[str, os.PathLike],
    output_dir: Union[str, os.PathLike],
    variant: Optional[str] = None,
    layout: Optional[str] = None,
    task: Optional[str] = None,
    family: Optional[str] = None,
    verify: bool = False,
    overwrite: bool = False,
    resize_short: Optional[int] = None,
    crop_size: Optional[int] = None,
    pool_padding: Optional[str] = None,
    dropout: Optional[float] = None,
    num_queries: Optional[int] = None,
    push_to_hub: Optional[str] = None,
    private: bool = False,
    create_pr: bool = False,
    image_size: Optional[int] = None,
    num_labels: Optional[int] = None,
    num_heads: Optional[int] = None,
    weights: Optional[str] = None,
) -> ConversionReport:
    """
    Converts a weight file into a folder that Transformers loads.

    The folder holds `config.json`, `model.safetensors`, for classifiers `preprocessor_config.json`, a model card, and
    the code that loads it where this package is not installed. It is complete or absent, whatever stops the program.

    Args:
        source (`str` or `os.PathLike`): a weight file of PaddleClas or PaddleDetection (`.pdparams`), of timm, D-FINE,
            DEIM, RT-DETRv4, DEIMv2 or RT-DETRv2 (PyTorch or safetensors), of KerasHub (`.weights.h5`), or of
            Transformers; a folder of timm, KerasHub (a preset) or Transformers; an inference model of Paddle, in a
            folder or an archive; or a published name
            (`PPHGNetV2_B4_ssld_stage2`; `hgnetv2-hf list`), which is downloaded.
        output_dir (`str` or `os.PathLike`): the folder to write.
        variant (`str`, *optional*): insist on a variant (`"b0"` … `"b6"`, `"tiny"`, …); recognised from the tensors
            without it.
        layout (`str`, *optional*): insist on a layout (`"paddleclas"`, `"paddledetection"`, `"timm"`,
            `"timm_features"`, `"dfine"`, `"rtdetrv2"`, `"keras"`, `"transformers"`); recognised from the names
            without it.
        task (`str`, *optional*): `"classification"`, `"detection"` or `"backbone"` (also of a detector); by default
            what the file holds.
        family (`"dfine"`, `"deim"`, `"rtdetrv4"` or `"deimv2"`, *optional*): the program that a whole detector with
            D-FINE's tensors comes from, which the tensors of most files do not show.
        verify (`bool`, defaults to `False`): load the folder again, compare every tensor, and run the original program
            where it is installed (see `verification.py`).
        overwrite (`bool`, defaults to `False`): replace an existing model folder, atomically.
        resize_short, crop_size (`int`, *optional*): preprocessing in pixels; by default that of the published file
            with this name, else 232 (236 for `_ssld` files and PP-HGNet's `small` and `base`) and 224.
        pool_padding (`"same"` or `"zero"`, *optional*): what pads the stem's max-pool (see `PPHGNetV2Config`); by
            default `"same"` for PaddleClas, PaddleDetection and timm, `"zero"` for the others.
        dropout (`float`, *optional*): PaddleClas's `dropout_prob`, which no tensor shows; 0 by default, and 0.2 for
            PaddleClas's PP-HGNet `base`.
        num_queries (`int`, *optional*): of a detector; by default what its authors publish.
        push_to_hub (`str`, *optional*): the repository that the folder is then uploaded to, `"user/name"`.
        private, create_pr (`bool`, defaults to `False`): create it private; open a pull request.
        image_size (`int`, *optional*): resize to a square of so many pixels, without a crop; by default 448 for
            ML-Decoder classifiers, as PaddleX.
        num_labels (`int`, *optional*): of an ML-Decoder with several logits per query, which leave it open.
        num_heads (`int`, *optional*): of an ML-Decoder's attention, which no tensor shows; 8 by default.
        weights (`str`, *optional*): which weights of a file with several: `"ema"`, `"model"`, `"student"`,
            `"teacher"`, or the place that the report names, such as `"state_dict_ema"`; by default averaged ones
            before others, a student before its teacher.

    Returns:
        [`ConversionReport`]

    Raises:
        `ConversionError`: one sentence; nothing is left behind (but the complete folder, when only the upload failed).
        `ValueError`: an argument is not one of its choices.

    Example:

        >>> from pathlib import Path
        >>> import transformers
        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> sorted(path.name for path in Path("digits").glob("*.json"))
        ['config.json', 'preprocessor_config.json']
        >>> transformers.AutoModelForImageClassification.from_pretrained("digits").num_labels
        10
    """
    variant = canonical_name(variant, ALL_VARIANTS) if variant is not None else None
    _check_choice("layout", layout, tuple(LAYOUTS))
    _check_choice("task", task, TASKS)
    _check_choice("family", family, FAMILY_NAMES)
    _check_choice("pool_padding", pool_padding, ("same", "zero"))
    if push_to_hub is not None:
        from ..hub.upload import check_repository

        check_repository(push_to_hub)
    counts = {"num_queries": num_queries, "image_size": image_size, "num_labels": num_labels, "num_heads": num_heads}
    for name, value in counts.items():
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be a positive whole number; got {value!r}.")
    options = {
        "resize_short": resize_short,
        "crop_size": crop_size,
        "image_size": None if image_size is None else [image_size, image_size],
        "pool_padding": pool_padding,
        "dropout_prob": dropout,
        "num_labels": num_labels,
        "decoder_attention_heads": num_heads,
    }
    detector_options = {"family": family, "num_queries": num_queries}
    with claim(output_dir, source, overwrite):
        found = find_source(os.fspath(source))
        checkpoint = read_checkpoint(found, layout, variant, task, options, detector_options, weights)
        if found.unsupported and checkpoint.report.task == "classification":
            raise ConversionError(found.unsupported)
        report = _write(checkpoint, output_dir, verify, push_to_hub)
    if push_to_hub is None:
        return report
    from ..hub.upload import push_folder

    return dataclasses.replace(report, pushed_to=push_folder(output_dir, push_to_hub, private, create_pr))


def _check_choice(name, value, choices):
    if value is not None and value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}; got {value!r}.")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What was read: the report so far, the model with its weights, and the tensors under the source's own names."""

    report: ConversionReport
    model: torch.nn.Module
    original: dict[str, torch.Tensor]
    processor: Any = None  # an image processor, or its configuration
    timm: Optional[TimmModel] = None  # of a timm folder


def read_checkpoint(source, layout=None, variant=None, task=None, options=None, detector_options=None, weights=None):
    """
    The first half of a conversion, read, recognise, rename, build: arguments and errors are [`convert_checkpoint`]'s.

    Args:
        source ([`Source`]): the file.
        options (`dict`, *optional*): [`OPTIONS`], or `None`.
        detector_options (`dict`, *optional*): `family` and `num_queries`, or `None`.
        weights (`str`, *optional*): the set of weights.

    Returns:
        [`Checkpoint`]
    """
    options = options or dict.fromkeys(OPTIONS)
    detector_options = detector_options or {"family": None, "num_queries": None}
    family = detector_options["family"]
    source, content, assumed, inference_model = _read(source, weights, task)
    detector = recognise_detector(content)
    if family is not None and detector not in ("dfine", "deimv2"):
        raise ConversionError(
            f"The option family tells the programs with D-FINE's tensors apart; {source.path} holds no such detector."
        )
    if detector is not None and task in (None, "detection"):
        content = complete(content) if inference_model is not None else content
        checkpoint = _build_detector(source, detector, content, layout, options, detector_options)
    else:
        checkpoint = _build_network(source, content, layout, task, options)
        if family is not None:
            check_family(source, content, checkpoint.report.variant, family)
        if detector_options["num_queries"] is not None:
            raise ConversionError("The option num_queries is for whole detectors.")
    _check_variant(source, checkpoint.report.variant, variant)
    if inference_model is not None and inference_model.program is not None:
        checkpoint = _compared_with_program(checkpoint, inference_model)
    assumed = {**assumed, **checkpoint.report.assumed}
    return dataclasses.replace(checkpoint, report=dataclasses.replace(checkpoint.report, assumed=assumed))


def _read(source, weights, task):
    """The source with all that it declares, its tensors, what is assumed of them, and the inference model, if any."""
    if source.inference is None:
        content, place = read_weights(source.path, weights)
        if source.keras is not None and source.keras.head_weights is not None:
            head, _ = read_weights(source.keras.head_weights)
            if both := [name for name in head if name in content and not _equal(head[name], content[name])]:
                raise ConversionError(
                    f"{source.path} and {source.keras.head_weights} both hold {some(both)}, and differ there; take "
                    "them out of one."
                )
            content = {**head, **content}
        return source, content, _assumed_place(place, weights), None
    if weights is not None:
        raise ConversionError("The option weights chooses among several sets; an inference model has one.")
    with naming(source.path, source.inference.folder):
        model = read_inference_model(source.inference)
        settings = {}
        if source.inference.settings is not None and task != "backbone":  # which has neither images nor labels
            settings = read_settings(source.inference.settings, recognise_detector(model.tensors) is not None)
    declared = {**model.declared, **settings}
    if not settings.keys().isdisjoint(("resize_short", "crop_size")):
        declared.pop("image_size", None)  # the program's
    return dataclasses.replace(source, declared=declared), model.tensors, model.assumed, model


def _compared_with_program(checkpoint, inference_model):
    """Whatever was recognised, the network computes what the exported program does, or is refused."""
    report = checkpoint.report
    image_size = None
    if report.task == "detection":
        image_size, _ = report.assumed["image_size"]
        left_out = [*report.left_out, COMPLETED]
        report = dataclasses.replace(report, num_tensors=len(inference_model.tensors), left_out=left_out)
    parity = compare_with_program(checkpoint.model, inference_model, image_size)
    if parity.as_converted > TOLERANCE and report.assumed.get("pool_padding", ("", ""))[1] == "option":
        raise ConversionError(
            "The exported program pads in another way than the option pool_padding says; leave it out."
        )
    return dataclasses.replace(checkpoint, report=dataclasses.replace(report, parity=[*report.parity, parity]))


def _build_detector(source, key, content, layout, options, detector_options):
    from .convert_detector import read_detector

    if layout not in (None, key, DETECTORS[key].backbone_layout):
        raise ConversionError(
            f"{source.path} holds a detector of {DETECTORS[key].title}, not of {LAYOUTS[layout].title}."
        )
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConversionError(f"A detector takes no option {' or '.join(given)}.")
    key, model, processor, variant, assumed, left_out = read_detector(source, key, content, **detector_options)
    report = report_on(source, model, key, variant, "detection", assumed, left_out, len(content))
    return Checkpoint(report, model, content, processor)


def _build_network(source, content, layout, task, options):
    layouts = recognise_layouts(content)
    layout = _recognise_layout(source, layout, content, layouts)
    original, others = split_detector(content, layouts[layout])
    if task is None and source.row is not None and source.row.task == "backbone":
        task = "backbone"
    _check_detector(source, others, task)
    tensors = rename(original, layouts[layout])
    fields = recognise_architecture(tensors)
    declared = {**declare_strides(source.path, others, fields), **source.declared}
    source = dataclasses.replace(source, declared=declared)
    task = _recognise_task(source, task, fields)
    if source.timm is not None:
        check_timm_model(source.timm, fields, task)
    if source.keras is not None:
        check_preset(source.keras, fields)
    assumed = assume(source, layouts[layout], task, fields, options)
    left_out = _left_out(tensors, others, task)
    if task == "backbone":
        tensors = {name: tensor for name, tensor in tensors.items() if not is_head(name)}
    model_type = choose_model_type(task, fields, assumed)
    model = build_network(model_type.name, task, fields, assumed, tensors)
    processor = build_image_processor(assumed) if task == "classification" else None
    report = report_on(source, model, layout, name_variant(fields), task, assumed, left_out, len(tensors))
    report = dataclasses.replace(report, model_type_reason=model_type.reason)
    return Checkpoint(report, model, original, processor, source.timm)


def _recognise_layout(source, wanted, tensors, layouts):
    found = recognise_layout(tensors, wanted, layouts)
    if wanted is None and source.row is not None:  # PaddleDetection's backbone files have PaddleClas's names
        found = recognise_layout(tensors, source.row.layout, layouts) or found
    if found is None:
        titles = [LAYOUTS[wanted].title] if wanted else [layout.title for layout in LAYOUTS.values()]
        raise ConversionError(
            f"{source.path} does not hold HGNetV2 weights in the layout of {' or '.join(titles)}; its tensors are "
            f"{some(sorted(tensors))}."
        )
    return found


def _check_detector(source, others, task):
    """Raises ``ConversionError`` unless the tensors beside the network fit the task."""
    if task == "detection" and not others:
        raise ConversionError(f"{source.path} holds no detector, but a network alone.")
    if others and task != "backbone":
        raise ConversionError(
            f"{source.path} holds a whole detector (its tensors include {some(sorted(others))}); pass --task backbone "
            "to convert its backbone alone."
        )


def _recognise_task(source, task, fields):
    has_head = "num_labels" in fields
    if task is None and not has_head and source.keras is not None and source.keras.classifier is not None:
        raise ConversionError(
            f"{source.keras.head_weights} lacks the classifier that task.json builds (layers/dense); use --task "
            "backbone for the backbone alone."
        )
    if task == "classification" and not has_head:
        raise ConversionError(
            f"{source.path} holds a backbone without a classifier (no fc.weight); use --task backbone."
        )
    return task or ("classification" if has_head else "backbone")


def _left_out(tensors, others, task):
    """What the file holds and the folder will not, in words."""
    left_out = [f"{counted(len(others), 'tensor')} of the detector"] if others else []
    if task == "backbone":
        left_out += sorted(filter(is_head, tensors))
    types = {str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values()} - {"float32", "int64"}
    for name in sorted(types):
        how = ", rounded" if name == "float64" else ""
        left_out.append(f"the type {name}: weights are saved in float32{how}")
    return left_out


def _check_variant(source, found, wanted):
    if wanted not in (None, found):
        what = f"a {found}" if found else "none of the published variants"
        raise ConversionError(f"{source.path} does not hold a {wanted}: its widths and depths are those of {what}.")


def _assumed_place(place, wanted):
    """Where the weights lie inside the file, as an assumed field: the file may hold others too."""
    if not place.taken:
        return {}
    chosen = "option" if wanted is not None else "the place inside the file"
    others = f"; it also holds {', '.join(place.others)}" if place.others else ""
    return {"weights": (place.taken, chosen + others)}


def _write(checkpoint, output_dir, verify, repo_id):
    """Saves and verifies; returns the whole report."""
    try:
        with atomic_folder(output_dir) as folder:
            save(checkpoint, folder)
            verified = verify_folder(checkpoint, folder) if verify else Verified()
            report = dataclasses.replace(
                checkpoint.report,
                output_dir=os.fspath(output_dir),
                repo_id=repo_id,
                checks=[*checkpoint.report.checks, *verified.checks],
                parity=[*checkpoint.report.parity, *verified.parity],
                not_checked=[*verified.not_checked],
            )
            (folder / "README.md").write_text(model_card(report), encoding="utf-8")
    except SafetensorError as error:
        raise ConversionError(f"Cannot write {output_dir}: {error}.") from error
    return report


def save(checkpoint, folder):
    """Writes the model and its preprocessing into an empty folder."""
    checkpoint.model.save_pretrained(folder)
    write_both_names(folder, checkpoint.model.config.model_type)
    if isinstance(checkpoint.processor, dict):
        text = json.dumps(checkpoint.processor, indent=2, sort_keys=True)
        (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")
    elif checkpoint.processor is not None:
        checkpoint.processor.save_pretrained(folder)


class Verified(NamedTuple):
    """Sentences on what was compared and what could not be, and the comparisons with original programs."""

    checks: Sequence[str] = ()
    parity: Sequence[Parity] = ()
    not_checked: Sequence[str] = ()


def verify_folder(checkpoint, folder):
    """
    Loads the folder again and compares it with the source.

    Args:
        checkpoint ([`Checkpoint`]): what the folder was written from.
        folder (`Path`): the folder.

    Returns:
        [`Verified`]

    Raises:
        `ConversionError`: the folder holds or computes something else.
    """
    model = type(checkpoint.model).from_pretrained(folder).eval()
    report, tensors = checkpoint.report, model.state_dict()
    _check_same_bits(checkpoint.model.state_dict(), tensors)
    _check_finite_outputs(model, report)
    checks = ["the folder, loaded again, holds the same bits", "the outputs for a random image are finite"]
    if report.task == "detection":
        backbone_layout = DETECTORS[report.layout].backbone_layout
        original, _ = split_detector(checkpoint.original, LAYOUTS[backbone_layout])
        parity, notes = verify_original(_backbone_of(model), report.variant, backbone_layout, original)
        not_run = (
            "the detector's own program was not run (none can be installed); comparisons are of its backbone alone"
        )
        return Verified(checks, parity, [not_run, *notes] if not report.parity else notes)
    back = rename_back(tensors, layouts_of(model.config.model_type)[report.layout])
    if all(name in checkpoint.original and _equal(back[name], checkpoint.original[name]) for name in back):
        checks.append(f"renamed back, {counted(len(back), 'tensor')} of the folder are the source's bit for bit")
    return Verified(
        checks, *verify_original(model, report.variant, report.layout, checkpoint.original, checkpoint.timm)
    )


def _check_same_bits(written, read):
    different = [name for name, tensor in written.items() if not torch.equal(tensor, read[name])]
    if different:
        raise ConversionError(f"The folder holds other values than the source for {some(different)}.")


def _check_finite_outputs(model, report):
    height, width = report.assumed["image_size"][0] if report.task == "detection" else (96, 96)
    pixel_values = torch.randn(1, report.num_channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = model(pixel_values, return_dict=False)[0]
    if not all(torch.isfinite(each).all() for each in (output if isinstance(output, tuple) else (output,))):
        raise ConversionError("The converted model computes values that are not finite.")


def _backbone_of(detector):
    """The backbone inside a detector, on its own and with ordinary batch norm in the place of the frozen one."""
    inside = next(module for module in detector.modules() if hasattr(getattr(module, "encoder", None), "stages"))
    backbone = type(inside)(inside.config)
    backbone.load_state_dict(inside.state_dict(), strict=False)
    return backbone.eval()


def _equal(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)


__all__ = ["TASKS", "Checkpoint", "ConversionReport", "convert_checkpoint", "read_checkpoint"]
