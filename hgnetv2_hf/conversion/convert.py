"""The conversion: read, rename, recognise, check, write all or nothing."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Optional, Union

import torch
from safetensors import SafetensorError

from ..image_processing_hgnetv2 import HGNetV2ImageProcessor
from ..published import ASSETS, PUBLISHED, find_published
from ..variants import canonical_name
from .architecture import name_variant, recognise_architecture
from .errors import ConversionError
from .folder import atomic_folder, check_target
from .layouts import LAYOUTS, recognise_layout, rename
from .model_card import model_card
from .paddle_file import read_paddle_file


TASKS = ("classification", "backbone")
_HEAD = ("fc.", "last_conv.", "lab.")


@dataclasses.dataclass
class ConversionReport:
    """What a conversion did. ``str(report)`` is the text that the command line prints."""

    source: str
    sha256: str
    output_dir: str
    layout: str
    variant: Optional[str]
    task: str
    model_type: str
    num_tensors: int
    num_parameters: int
    num_labels: Optional[int]
    assumed: dict[str, tuple[Any, str]]  # field: (value, where it comes from); no tensor shows these
    checks: list[str]

    def __str__(self):
        name = f"PP-HGNetV2-{self.variant.upper()}" if self.variant else "HGNetV2 with its own widths"
        head = f", {self.num_labels} classes" if self.num_labels else ""
        lines = [
            f"{self.source} -> {self.output_dir}",
            f"  {name}, {self.task}{head}: {self.num_tensors} tensors, {self.num_parameters / 1e6:.2f} M parameters",
            f"  layout {self.layout}, model type {self.model_type}, SHA-256 {self.sha256[:16]}…",
            "  assumed, because no tensor shows it:",
            *(f"    {field} = {value} ({reason})" for field, (value, reason) in self.assumed.items()),
            *(f"  checked: {check}" for check in self.checks),
        ]
        return "\n".join(lines)


def convert_checkpoint(
    source: Union[str, os.PathLike],
    output_dir: Union[str, os.PathLike],
    variant: Optional[str] = None,
    layout: Optional[str] = None,
    task: Optional[str] = None,
    verify: bool = False,
    overwrite: bool = False,
    resize_short: Optional[int] = None,
    crop_size: Optional[int] = None,
    pool_padding: str = "same",
    dropout: float = 0.0,
) -> ConversionReport:
    """
    Converts a weight file into a folder that Transformers loads.

    The folder holds `config.json`, `model.safetensors`, for classifiers `preprocessor_config.json`, a model card, and the
    code that loads it where this package is not installed. It is complete or absent, whatever stops the program.

    Args:
        source (`str` or `os.PathLike`): a `.pdparams` file, or `"digits"` for the one that ships with the package.
        output_dir (`str` or `os.PathLike`): the folder to write.
        variant (`str`, *optional*): insist on a variant (`"b0"` … `"b6"`, …); recognised from the tensors without it.
        layout (`str`, *optional*): insist on a layout (`"paddleclas"`); recognised from the names without it.
        task (`str`, *optional*): `"classification"` or `"backbone"`; by default what the file holds.
        verify (`bool`, defaults to `False`): load the folder again and compare every tensor.
        overwrite (`bool`, defaults to `False`): replace an existing model folder, atomically.
        resize_short, crop_size (`int`, *optional*): preprocessing in pixels; by default that of the published file with
            this name, else 232 (236 for `_ssld` files) and 224.
        pool_padding (`"same"` or `"zero"`, defaults to `"same"`): what pads the stem's max-pool (see `PPHGNetV2Config`).
        dropout (`float`, defaults to 0.0): PaddleClas's `dropout_prob`, which no tensor shows.

    Returns:
        [`ConversionReport`]

    Raises:
        `ConversionError`: one sentence; nothing is left behind.
        `ValueError`: an argument is not one of its choices.
    """
    variant = canonical_name(variant) if variant is not None else None
    _check_choice("layout", layout, tuple(LAYOUTS))
    _check_choice("task", task, TASKS)
    _check_choice("pool_padding", pool_padding, ("same", "zero"))
    source = _find(os.fspath(source))
    check_target(output_dir, source, overwrite)

    tensors = read_paddle_file(source)
    layout = _layout(source, layout, tensors)
    tensors = rename(tensors, LAYOUTS[layout])
    fields = recognise_architecture(tensors)
    task = _task(source, task, fields)
    found = name_variant(fields)
    if variant is not None and variant != found:
        what = f"a {found}" if found else "none of the published variants"
        raise ConversionError(f"{source} does not hold a {variant}: its widths and depths are those of {what}.")
    if task == "backbone":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(_HEAD)}

    assumed = _assumptions(source, task, fields, resize_short, crop_size, pool_padding, dropout)
    model = _load(_empty_model(task, fields, assumed), tensors)
    processor = _image_processor(assumed) if task == "classification" else None
    report = ConversionReport(
        source=source,
        sha256=_sha256(source),
        output_dir=os.fspath(output_dir),
        layout=layout,
        variant=found,
        task=task,
        model_type=model.config.model_type,
        num_tensors=len(tensors),
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_labels=model.config.num_labels if task == "classification" else None,
        assumed={field: pair for field, pair in assumed.items() if field != "id2label"},
        checks=["every tensor has its place and shape, and all values are finite"],
    )
    try:
        with atomic_folder(output_dir) as folder:
            model.save_pretrained(folder)
            if processor is not None:
                processor.save_pretrained(folder)
            if verify:
                report.checks.append(_verify(model, folder))
            (folder / "README.md").write_text(model_card(report), encoding="utf-8")
    except SafetensorError as error:
        raise ConversionError(f"Cannot write {output_dir}: {error}.") from error
    return report


def _find(source):
    """The path of the file that ``source`` means: itself, or one that ships with the package."""
    if os.path.isfile(source):
        return source
    if os.path.exists(source):
        raise ConversionError(f"{source} is not a file.")
    row = PUBLISHED.get(source)
    if row is None:
        raise ConversionError(f"There is no file {source}.")
    if row.url is None:
        return str(ASSETS / row.file_name)
    raise ConversionError(f"{source} is published as {row.url}; download that file and convert it.")


def _check_choice(name, value, choices):
    if value is not None and value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(choices)}; got {value!r}.")


def _layout(source, layout, tensors):
    found = recognise_layout(tensors)
    if found is None or layout not in (None, found):
        wanted = LAYOUTS[layout].title if layout else " or ".join(known.title for known in LAYOUTS.values())
        first = ", ".join(sorted(tensors)[:3])
        raise ConversionError(
            f"{source} does not hold HGNetV2 weights in the layout of {wanted}; its tensors are {first}, …"
        )
    return found


def _task(source, task, fields):
    has_head = "num_labels" in fields
    if task == "classification" and not has_head:
        raise ConversionError(f"{source} holds a backbone without a classifier (no fc.weight); use --task backbone.")
    return task or ("classification" if has_head else "backbone")


def _assumptions(source, task, fields, resize_short, crop_size, pool_padding, dropout):
    """What no tensor shows, each with where it comes from."""
    row = find_published(source)
    published = f"published with {Path(source).name}"
    assumed = {
        "hidden_act": ("relu", "every published HGNetV2"),
        "stem_strides": ([2, 1, 1, 2, 1], "every published HGNetV2"),
        "stage_downsample_strides": ([2] * len(fields["stage_in_channels"]), "every published HGNetV2"),
    }
    if fields["use_learnable_affine_block"]:
        assumed["pool_padding"] = (pool_padding, "PaddleClas" if pool_padding == "same" else "option")
    has_dropout = task == "classification" and fields["use_last_conv"]
    if has_dropout:
        assumed["dropout_prob"] = (dropout, "option" if dropout else "published weights have none")
    elif dropout:
        raise ConversionError(
            "PaddleClas drops out only behind its last convolution, which this network does not have."
        )
    if task == "backbone":
        return assumed
    if resize_short is not None:
        assumed["resize_short"] = (resize_short, "option")
    elif row is not None:
        assumed["resize_short"] = (row.resize_short, published)
    elif "_ssld" in Path(source).name:
        assumed["resize_short"] = (236, "PaddleClas's SSLD configurations")
    else:
        assumed["resize_short"] = (232, "PaddleClas's training configurations")
    if crop_size is not None:
        assumed["crop_size"] = (crop_size, "option")
    else:
        assumed["crop_size"] = (row.crop_size, published) if row else (224, "every published ImageNet classifier")
    labels = row.labels if row is not None else "imagenet-1k" if fields["num_labels"] == 1000 else None
    if labels is not None:
        names = json.loads((ASSETS / f"labels_{labels}.json").read_text(encoding="utf-8"))
        if len(names) == fields["num_labels"]:
            assumed["labels"] = (labels, published if row else "1000 classes")
            assumed["id2label"] = (dict(enumerate(names)), "")
    return assumed


def _empty_model(task, fields, assumed):
    """The model, without memory for its weights; of type ``hgnet_v2`` where stock Transformers computes the same."""
    from .. import modeling_hgnetv2 as modeling

    head = {name: fields[name] for name in ("num_labels", "use_last_conv", "class_expand") if name in fields}
    trunk = {name: value for name, value in fields.items() if name not in head}
    trunk.update({name: assumed[name][0] for name in _ASSUMED_CONFIGURATION if name in assumed})
    pool_padding = assumed.get("pool_padding", ("same", ""))[0]
    pads_differently = fields["use_learnable_affine_block"] and pool_padding == "same"
    has_own_head = task == "classification" and head["use_last_conv"]
    faithful = pads_differently or has_own_head
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
    except ValueError as error:
        raise ConversionError(f"The tensors do not form a network: {error}") from error


_ASSUMED_CONFIGURATION = ("hidden_act", "stem_strides", "stage_downsample_strides")


def _load(model, tensors):
    """Gives the model its weights after checking every one of them."""
    expected = model.state_dict()
    counters = {name for name in expected if name.endswith("num_batches_tracked")}
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
        if not tensor.is_floating_point():
            raise ConversionError(
                f"The tensor {name} holds {tensor.dtype} values; weights are floating-point numbers."
            )
        if not torch.isfinite(tensor).all():
            raise ConversionError(f"The tensor {name} holds values that are not finite (NaN or infinity).")
        state_dict[name] = tensor.float().contiguous()
    for name in counters:
        state_dict[name] = torch.tensor(0)
    model.load_state_dict(state_dict, assign=True)
    return model


def _some(names):
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + rest


def _image_processor(assumed):
    short, crop = assumed["resize_short"][0], assumed["crop_size"][0]
    if crop > short:
        raise ConversionError(
            f"A crop of {crop} pixels does not fit into images whose short side is resized to {short}."
        )
    return HGNetV2ImageProcessor(size={"shortest_edge": short}, crop_size={"height": crop, "width": crop})


def _verify(model, folder):
    """Loads the folder again and compares every tensor; the original program is not run here."""
    reloaded = type(model).from_pretrained(folder).eval()
    written, read = model.state_dict(), reloaded.state_dict()
    different = [name for name, tensor in written.items() if not torch.equal(tensor, read[name])]
    if different:
        raise ConversionError(f"The folder holds other values than the source for {_some(different)}.")
    pixel_values = torch.randn(1, model.config.num_channels, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output = reloaded(pixel_values, return_dict=False)[0]
    if not all(torch.isfinite(each).all() for each in (output if isinstance(output, tuple) else (output,))):
        raise ConversionError("The converted model computes values that are not finite.")
    return (
        "the folder, loaded again, holds the same bits and computes finite values (the original program was not run)"
    )


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file):
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(2**20), b""):
        digest.update(chunk)
    return digest.hexdigest()


__all__ = ["TASKS", "ConversionReport", "convert_checkpoint"]
