"""What a conversion did, for the person who ran it and for the model card."""

import dataclasses
import hashlib
from typing import Any, Optional

from ..model.variants import full_name
from ..wording import counted
from .detectors import DETECTORS
from .verification import Parity


@dataclasses.dataclass
class ConversionReport:
    """What a conversion did. ``str(report)`` is the text that the command line prints.

    Example:

        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> report.layout, report.task, report.model_type
        ('paddleclas', 'classification', 'pp_hgnet_v2')
        >>> report.assumed["resize_short"]
        (32, 'published with digits')
    """

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
    model_type_reason: Optional[str] = None  # of a network on its own

    @property
    def title(self):
        kind = "PP-HGNet" if self.model_type == "pp_hgnet" else "HGNetV2"
        network = full_name(self.variant) if self.variant else f"{kind} with its own widths"
        return f"{DETECTORS[self.layout].title} with {network}" if self.task == "detection" else network

    def __str__(self):
        head = f", {counted(self.num_labels, 'class', 'classes')}" if self.num_labels else ""
        tensors = counted(self.num_tensors, "tensor")
        lines = [
            f"{self.source} -> {self.output_dir}",
            f"  {self.title}, {self.task}{head}: {tensors}, {self.num_parameters / 1e6:.2f} M parameters",
            f"  layout {self.layout}, SHA-256 {self.sha256[:16]}…",
            f"  model type {self.model_type}" + (f": {self.model_type_reason}" if self.model_type_reason else ""),
            "  what no tensor shows, and who says so:",
            *(f"    {field} = {value} ({reason})" for field, (value, reason) in self.assumed.items()),
            *(f"  left out: {what}" for what in self.left_out),
            *(f"  checked: {check}" for check in [*self.checks, *map(str, self.parity)]),
            *(f"  not checked: {what}" for what in self.not_checked),
        ]
        if self.pushed_to is not None:
            lines.append(f"  pushed to {self.pushed_to}")
        return "\n".join(lines)


def report_on(source, model, layout, variant, task, assumed, left_out, num_tensors):
    """
    Args:
        source ([`Source`]): the file.
        model (`PreTrainedModel`): what it became.
        layout, variant, task (`str`): what was recognised; `variant` may be `None`.
        assumed (`dict[str, tuple]`): field to value and reason.
        left_out (`list[str]`): what the file holds and the model does not.
        num_tensors (`int`): of the file, as far as they were converted.

    Returns:
        [`ConversionReport`]: without what is known after the writing (folder, repository, verification).
    """
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


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file):
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(2**20), b""):
        digest.update(chunk)
    return digest.hexdigest()
