"""The conversion: read, rename, recognise, check, write all or nothing."""

import dataclasses
import hashlib
import json
import os
from typing import Any, Optional, Union

import torch
from safetensors import SafetensorError

from ..errors import ConversionError, raised_as
from ..files.atomic import atomic_folder, claim
from ..model.image_processing_hgnetv2 import HGNetV2ImageProcessor
from ..model.variants import canonical_name
from ..wording import counted
from .architecture import name_variant, recognise_architecture
from .assumptions import assume
from .detectors import DETECTORS, recognise_detector
from .families import FAMILY_NAMES, check_family
from .layouts import LAYOUTS, is_counter, is_head, recognise_layout, rename, rename_back, split_detector
from .model_card import model_card
from .source import find_source
from .timm_folder import TimmModel, check_timm_model
from .values import checked_weight, with_memory_of_their_own
from .verification import Parity
from .verification import verify as verify_original
from .weight_file import read_weights


TASKS = ("classification", "backbone", "detection")


@dataclasses.dataclass
class ConversionReport:
    """What a conversion did. ``str(report)`` is the text that the command line prints."""

    source: str
    address: str  # where the file is published, or its name
    published: Optional[str]  # its name in the table of published checkpoints
    sha256: str
    output_dir: str
    layout: str
    variant: Optional[str]
    has_lab: bool
    task: str
    model_type: str
    num_tensors: int
    num_parameters: int
    num_labels: Optional[int]
    num_channels: int  # of the images
    assumed: dict[str, tuple[Any, str]]  # field: (value, where it comes from); no tensor shows these
    left_out: list[str]  # what the file holds and the folder does not
    checks: list[str]
    parity: list[Parity] = dataclasses.field(default_factory=list)
    not_checked: list[str] = dataclasses.field(default_factory=list)  # what `verify` could not compare, and why
    repo_id: Optional[str] = None  # where it will be pushed
    pushed_to: Optional[str] = None  # the address, afterwards

    @property
    def title(self):
        network = f"PP-HGNetV2-{self.variant.upper()}" if self.variant else "HGNetV2 with its own widths"
        return f"{DETECTORS[self.layout].title} with {network}" if self.task == "detection" else network

    def __str__(self):
        head = f", {counted(self.num_labels, 'class', 'classes')}" if self.num_labels else ""
        tensors = counted(self.num_tensors, "tensor")
        lines = [
            f"{self.source} -> {self.output_dir}",
            f"  {self.title}, {self.task}{head}: {tensors}, {self.num_parameters / 1e6:.2f} M parameters",
            f"  layout {self.layout}, model type {self.model_type}, SHA-256 {self.sha256[:16]}…",
            "  assumed, because no tensor shows it:",
            *(f"    {field} = {value} ({reason})" for field, (value, reason) in self.assumed.items()),
            *(f"  left out: {what}" for what in self.left_out),
            *(f"  checked: {check}" for check in [*self.checks, *map(str, self.parity)]),
            *(f"  not checked: {what}" for what in self.not_checked),
        ]
        if self.pushed_to is not None:
            lines.append(f"  pushed to {self.pushed_to}")
        return "\n".join(lines)


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
    push_to_hub: Optional[str] = None,
    private: bool = False,
    create_pr: bool = False,
) -> ConversionReport:
    """
    Converts a weight file into a folder that Transformers loads.

    The folder holds `config.json`, `model.safetensors`, for classifiers `preprocessor_config.json`, a model card, and the
    code that loads it where this package is not installed. It is complete or absent, whatever stops the program.

    Args:
        source (`str` or `os.PathLike`): a weight file of PaddleClas or PaddleDetection (`.pdparams`), of timm, D-FINE, DEIM or
            RT-DETRv2 (PyTorch or safetensors), or of Transformers; a folder of timm or Transformers; or a published name
            (`PPHGNetV2_B4_ssld_stage2`; `hgnetv2-hf list`), which is downloaded.
        output_dir (`str` or `os.PathLike`): the folder to write.
        variant (`str`, *optional*): insist on a variant (`"b0"` … `"b6"`, …); recognised from the tensors without it.
        layout (`str`, *optional*): insist on a layout (`"paddleclas"`, `"paddledetection"`, `"timm"`, `"dfine"`,
            `"rtdetrv2"`, `"transformers"`); recognised from the names without it.
        task (`str`, *optional*): `"classification"`, `"detection"` or `"backbone"` (also of a detector); by default what the
            file holds.
        family (`"dfine"`, `"deim"` or `"rtdetrv4"`, *optional*): the program that a whole detector with D-FINE's tensors comes
            from, which the tensors of most files do not show; DEIM's and RT-DETRv4's are refused, their backbones convert.
        verify (`bool`, defaults to `False`): load the folder again, compare every tensor, and run the original program
            where it is installed (see `verification.py`).
        overwrite (`bool`, defaults to `False`): replace an existing model folder, atomically.
        resize_short, crop_size (`int`, *optional*): preprocessing in pixels; by default that of the published file with
            this name, else 232 (236 for `_ssld` files) and 224.
        pool_padding (`"same"` or `"zero"`, *optional*): what pads the stem's max-pool (see `PPHGNetV2Config`); by default
            `"same"` for PaddleClas, PaddleDetection and timm, `"zero"` for the others.
        dropout (`float`, *optional*): PaddleClas's `dropout_prob`, which no tensor shows; 0 by default.
        push_to_hub (`str`, *optional*): the repository that the folder is then uploaded to, `"user/name"`.
        private, create_pr (`bool`, defaults to `False`): create it private; open a pull request.

    Returns:
        [`ConversionReport`]

    Raises:
        `ConversionError`: one sentence; nothing is left behind (but the complete folder, when only the upload failed).
        `ValueError`: an argument is not one of its choices.
    """
    variant = canonical_name(variant) if variant is not None else None
    _check_choice("layout", layout, tuple(LAYOUTS))
    _check_choice("task", task, TASKS)
    _check_choice("family", family, FAMILY_NAMES)
    _check_choice("pool_padding", pool_padding, ("same", "zero"))
    if push_to_hub is not None:
        from ..hub.upload import check_repository

        check_repository(push_to_hub)
    options = {
        "resize_short": resize_short,
        "crop_size": crop_size,
        "pool_padding": pool_padding,
        "dropout_prob": dropout,
    }
    with claim(output_dir, source, overwrite):
        checkpoint = read_checkpoint(find_source(os.fspath(source)), layout, variant, task, options, family)
        report = checkpoint.report
        report.output_dir, report.repo_id = os.fspath(output_dir), push_to_hub
        _write(checkpoint, output_dir, verify)
    if push_to_hub is not None:
        from ..hub.upload import push_folder

        report.pushed_to = push_folder(output_dir, push_to_hub, private, create_pr)
    return report


def _write(checkpoint, output_dir, verify):
    try:
        with atomic_folder(output_dir) as folder:
            checkpoint.save(folder)
            if verify:
                _verify(checkpoint, folder)
            (folder / "README.md").write_text(model_card(checkpoint.report), encoding="utf-8")
    except SafetensorError as error:
        raise ConversionError(f"Cannot write {output_dir}: {error}.") from error


@dataclasses.dataclass
class Checkpoint:
    """What was read: the report so far, the model with its weights, and the tensors under the source's own names."""

    report: ConversionReport
    model: torch.nn.Module
    original: dict[str, torch.Tensor]
    processor: Any = None  # an image processor, or its configuration
    timm: Optional[TimmModel] = None  # of a timm folder

    def save(self, folder):
        self.model.save_pretrained(folder)
        if isinstance(self.processor, dict):
            text = json.dumps(self.processor, indent=2, sort_keys=True)
            (folder / "preprocessor_config.json").write_text(text + "\n", encoding="utf-8")
        elif self.processor is not None:
            self.processor.save_pretrained(folder)


def read_checkpoint(source, layout=None, variant=None, task=None, options=None, family=None):
    """
    The first half of a conversion: everything but the writing (see [`convert_checkpoint`] for arguments and errors).

    Returns:
        [`Checkpoint`]
    """
    options = options or dict.fromkeys(("resize_short", "crop_size", "pool_padding", "dropout_prob"))
    content, place = read_weights(source.path)
    detector = recognise_detector(content)
    if family is not None and detector != "dfine":
        raise ConversionError(
            f"The option family tells the programs with D-FINE's tensors apart; {source.path} holds no such detector."
        )
    if detector is not None and task in (None, "detection"):
        read = _read_whole_detector(source, detector, content, layout, options, family)
    else:
        read = _read_network(source, content, layout, task, options)
        if family is not None:
            check_family(source, content, read.report.variant, family)
    report = read.report
    if variant is not None and variant != report.variant:
        what = f"a {report.variant}" if report.variant else "none of the published variants"
        raise ConversionError(f"{source.path} does not hold a {variant}: its widths and depths are those of {what}.")
    if place:
        preferred = "a student's, not its teacher's" if place.endswith("Student") else "averaged weights are preferred"
        where = {"weights": (place, f"the place inside the file; {preferred}")}
        report.assumed = {**where, **report.assumed}
    return read


def _read_whole_detector(source, key, content, layout, options, family):
    from .convert_detector import read_detector

    if layout not in (None, key):
        raise ConversionError(
            f"{source.path} holds a detector of {DETECTORS[key].title}, not of {LAYOUTS[layout].title}."
        )
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise ConversionError(f"A detector takes no option {' or '.join(given)}.")
    model, processor, variant, assumed, left_out = read_detector(source, key, content, family)
    report = _report(source, model, key, variant, "detection", assumed, left_out, len(content))
    return Checkpoint(report, model, content, processor)


def _read_network(source, content, layout, task, options):
    layout = _layout(source, layout, content)
    original, others = split_detector(content, LAYOUTS[layout])
    if task == "detection" and not others:
        raise ConversionError(f"{source.path} holds no detector, but a network alone.")
    if others and task != "backbone":
        raise ConversionError(
            f"{source.path} holds a whole detector (its tensors include {_some(sorted(others))}); pass --task backbone to "
            "convert its backbone alone."
        )
    tensors = rename(original, LAYOUTS[layout])
    fields = recognise_architecture(tensors)
    task = _task(source, task, fields)
    if source.timm is not None:
        check_timm_model(source.timm, fields, task)
    left_out = _left_out(tensors, others, task)
    if task == "backbone":
        tensors = {name: tensor for name, tensor in tensors.items() if not is_head(name)}
    assumed = assume(source, LAYOUTS[layout], task, fields, options)
    model = _load(_empty_model(task, fields, assumed), tensors)
    report = _report(source, model, layout, name_variant(fields), task, assumed, left_out, len(tensors))
    processor = _image_processor(assumed) if task == "classification" else None
    return Checkpoint(report, model, original, processor, source.timm)


def _report(source, model, layout, variant, task, assumed, left_out, num_tensors):
    backbone_config = getattr(model.config, "backbone_config", None) or model.config
    return ConversionReport(
        source=source.path,
        address=source.address,
        published=source.name,
        sha256=_sha256(source.path),
        output_dir="",
        layout=layout,
        variant=variant,
        has_lab=backbone_config.use_learnable_affine_block,
        task=task,
        model_type=model.config.model_type,
        num_tensors=num_tensors,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_channels=backbone_config.num_channels,
        num_labels=model.config.num_labels if task != "backbone" else None,
        assumed={field: pair for field, pair in assumed.items() if field != "id2label"},
        left_out=left_out,
        checks=["every tensor has its place and shape, and all values are finite"],
    )


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


def _check_choice(name, value, choices):
    if value is not None and value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}; got {value!r}.")


def _layout(source, wanted, tensors):
    found = recognise_layout(tensors, wanted)
    if wanted is None and source.row is not None:  # PaddleDetection's backbone files have PaddleClas's names
        found = recognise_layout(tensors, source.row.layout) or found
    if found is None:
        titles = [LAYOUTS[wanted].title] if wanted else [layout.title for layout in LAYOUTS.values()]
        raise ConversionError(
            f"{source.path} does not hold HGNetV2 weights in the layout of {' or '.join(titles)}; its tensors are "
            f"{_some(sorted(tensors))}."
        )
    return found


def _task(source, task, fields):
    has_head = "num_labels" in fields
    if task == "classification" and not has_head:
        raise ConversionError(
            f"{source.path} holds a backbone without a classifier (no fc.weight); use --task backbone."
        )
    is_backbone = not has_head or (source.row is not None and source.row.task == "backbone")
    return task or ("backbone" if is_backbone else "classification")


def _empty_model(task, fields, assumed):
    """The model, without memory for its weights; of type ``hgnet_v2`` where stock Transformers computes the same."""
    from ..model import modeling_hgnetv2 as modeling

    head = {name: fields[name] for name in ("num_labels", "use_last_conv", "class_expand") if name in fields}
    trunk = {name: value for name, value in fields.items() if name not in head}
    trunk.update({name: assumed[name][0] for name in _ASSUMED_CONFIGURATION if name in assumed})
    pool_padding = assumed["pool_padding"][0] if "pool_padding" in assumed else "zero"
    pads_differently = fields["use_learnable_affine_block"] and pool_padding == "same"
    has_own_head = task == "classification" and head["use_last_conv"]
    is_unusual = trunk["hidden_act"] != "relu" or not _has_default_strides(trunk)
    faithful = pads_differently or has_own_head or is_unusual
    if faithful:
        trunk["pool_padding"] = pool_padding
    if task == "classification":
        trunk.update(head if faithful else {"num_labels": head["num_labels"]})
        if has_own_head:
            trunk["dropout_prob"] = assumed["dropout_prob"][0]
        if "id2label" in assumed:
            id2label = assumed["id2label"][0]
            trunk.update(id2label=id2label, label2id={name: index for index, name in id2label.items()})
    suffix = "Backbone" if task == "backbone" else "ForImageClassification"
    model_class = getattr(modeling, f"{'PP' if faithful else ''}HGNetV2{suffix}")
    try:
        config = model_class.config_class(**trunk)
        config.set_compatibility_fields()
        with torch.device("meta"):
            return model_class(config).eval()
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ConversionError(f"The tensors do not form a network: {error}") from error


def _has_default_strides(trunk):
    return trunk["stem_strides"] == [2, 1, 1, 2, 1] and set(map(str, trunk["stage_downsample_strides"])) == {"2"}


_ASSUMED_CONFIGURATION = ("hidden_act", "stem_strides", "stage_downsample_strides")


def _load(model, tensors):
    """Gives the model its weights after checking every one of them."""
    expected = model.state_dict()
    counters = set(filter(is_counter, expected))
    missing = sorted(set(expected) - counters - set(tensors))
    unknown = sorted(set(tensors) - set(expected))
    if missing:
        raise ConversionError(f"The file lacks {_some(missing)}.")
    if unknown:
        raise ConversionError(f"The file holds what this network does not have: {_some(unknown)}.")
    state_dict = {}
    for name, tensor in tensors.items():
        if tensor.shape != expected[name].shape:
            raise ConversionError(
                f"The tensor {name} has shape {list(tensor.shape)}; this network needs {list(expected[name].shape)}."
            )
        if name in counters:
            state_dict[name] = _counter(name, tensor)
            continue
        if not tensor.is_floating_point():
            raise ConversionError(
                f"The tensor {name} holds {tensor.dtype} values; weights are floating-point numbers."
            )
        state_dict[name] = checked_weight(name, tensor)
    for name in counters - set(tensors):
        state_dict[name] = torch.tensor(0)
    model.load_state_dict(with_memory_of_their_own(state_dict), assign=True)
    return model


def _counter(name, tensor):
    if tensor.dtype != torch.int64 or int(tensor) < 0:
        raise ConversionError(f"The tensor {name} is not a count.")
    return tensor.clone()


def _some(names):
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def _image_processor(assumed):
    values = {field: value for field, (value, _) in assumed.items()}
    short, crop = values["resize_short"], values["crop_size"]
    if crop > short:
        raise ConversionError(
            f"A crop of {crop} pixels does not fit into images whose short side is resized to {short}."
        )
    try:
        return HGNetV2ImageProcessor(
            size={"shortest_edge": short},
            crop_size={"height": crop, "width": crop},
            **{field: values[field] for field in ("resample", "image_mean", "image_std")},
        )
    except (ValueError, TypeError) as error:
        raise ConversionError(f"The preprocessing declared beside the weights does not work: {error}") from error


def _verify(checkpoint, folder):
    """Adds to the report what the folder, loaded again, was compared with."""
    report, model, original = checkpoint.report, checkpoint.model, checkpoint.original
    reloaded = type(model).from_pretrained(folder).eval()
    written, read = model.state_dict(), reloaded.state_dict()
    different = [name for name, tensor in written.items() if not torch.equal(tensor, read[name])]
    if different:
        raise ConversionError(f"The folder holds other values than the source for {_some(different)}.")
    report.checks.append("the folder, loaded again, holds the same bits")
    height, width = report.assumed["image_size"][0] if report.task == "detection" else (96, 96)
    pixel_values = torch.randn(1, report.num_channels, height, width, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = reloaded(pixel_values, return_dict=False)[0]
    if not all(torch.isfinite(each).all() for each in (output if isinstance(output, tuple) else (output,))):
        raise ConversionError("The converted model computes values that are not finite.")
    report.checks.append("the outputs for a random image are finite")
    if report.task == "detection":
        report.not_checked.append(
            "the detector's own program was not run (none can be installed); comparisons are of its backbone alone"
        )
        reloaded = _backbone_of(reloaded)
        original, _ = split_detector(original, LAYOUTS[DETECTORS[report.layout].backbone_layout])
        report.parity, notes = verify_original(reloaded, report.variant, report.layout, original)
        report.not_checked += notes
        return
    back = rename_back(read, LAYOUTS[report.layout])
    compared = [name for name in back if name in original]
    if len(compared) == len(back) and all(_equal(back[name], original[name]) for name in compared):
        report.checks.append(
            f"renamed back, {counted(len(back), 'tensor')} of the folder are the source's bit for bit"
        )
    report.parity, notes = verify_original(reloaded, report.variant, report.layout, original, checkpoint.timm)
    report.not_checked += notes


def _backbone_of(detector):
    """The backbone inside a detector, on its own and with ordinary batch norm in the place of the frozen one."""
    inside = next(module for module in detector.modules() if hasattr(getattr(module, "encoder", None), "stages"))
    backbone = type(inside)(inside.config)
    backbone.load_state_dict(inside.state_dict(), strict=False)
    return backbone.eval()


def _equal(one, other):
    return one.dtype == other.dtype and torch.equal(one, other)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file):
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(2**20), b""):
        digest.update(chunk)
    return digest.hexdigest()


__all__ = ["TASKS", "Checkpoint", "ConversionReport", "convert_checkpoint", "read_checkpoint"]
