"""The way back: from a Transformers folder to a weight file that another program loads."""

import dataclasses
import os
from pathlib import Path
from typing import Optional, Union

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..errors import ConversionError, raised_as
from ..files.atomic import atomic_file, atomic_folder, claim
from ..model.configuration_hgnetv2 import PADDLE_EPSILON, HGNetV2Config
from ..model.image_processing_hgnetv2 import IMAGENET_MEAN, IMAGENET_STD
from ..model.variants import PP_HGNET_VARIANTS
from ..wording import counted, sentence
from .architecture import missing_in_paddleclas, name_variant
from .convert import read_checkpoint
from .export_detector import DETECTOR_LAYOUTS, detector_tensors, is_detector
from .keras_preset import has_keras_head, write_preset
from .layouts import LAYOUTS, layouts_of, rename_back
from .ml_decoder import BILINEAR, DEFAULT_HEADS, paddleclas_ml_decoder
from .paddle_file import write_paddle_file
from .source import find_source


EXPORT_LAYOUTS = ("paddleclas", "timm", "keras", *DETECTOR_LAYOUTS)


_OPTIONS = (
    "resize_short", "crop_size", "image_size", "num_queries", "pool_padding", "dropout", "num_heads", "num_labels",
)  # fmt: skip


@dataclasses.dataclass
class ExportReport:
    """What an export did. ``str(report)`` is the text that the command line prints.

    Example:

        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> print(hgnetv2_hf.export_weights("digits", "digits.pdparams"))
        digits -> digits.pdparams
          layout paddleclas, 225 tensors
          to convert it back: --resize-short 32 --crop-size 32
    """

    source: str
    output: str
    layout: str
    num_tensors: int
    notes: list[str]  # where the other program computes something else than the folder
    resize_short: Optional[int] = None  # the folder's preprocessing in pixels, which a weight file does not hold
    crop_size: Optional[int] = None
    image_size: Optional[int] = None  # of a multi-label classifier, in the place of these two
    num_queries: Optional[int] = None  # of a detector, which no tensor shows
    pool_padding: Optional[str] = None  # these too, where a conversion would assume something else
    dropout: Optional[float] = None
    num_heads: Optional[int] = None
    num_labels: Optional[int] = None

    def __str__(self):
        lines = [f"{self.source} -> {self.output}", f"  layout {self.layout}, {counted(self.num_tensors, 'tensor')}"]
        options = {name: getattr(self, name) for name in _OPTIONS if getattr(self, name) is not None}
        if self.num_queries is not None:
            options = {"family": self.layout, **options}
        if options:
            given = (f"--{name.replace('_', '-')} {value}" for name, value in options.items())
            lines.append(f"  to convert it back: {' '.join(given)}")
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


@raised_as(ConversionError)
def export_weights(
    folder: Union[str, os.PathLike],
    output: Union[str, os.PathLike],
    layout: str = "paddleclas",
    overwrite: bool = False,
) -> ExportReport:
    """
    Writes the weights of a converted or fine-tuned folder under another program's names, bit for bit.

    Args:
        folder (`str` or `os.PathLike`): a folder of type `hgnet_v2`, `pp_hgnet_v2` or `pp_hgnet`, classifier or
            backbone; or of a detector (`d_fine`, `deim`, `deim_v2`), for the program that computes it.
        output (`str` or `os.PathLike`): the file to write; complete or absent. Its ending decides between safetensors
            and PyTorch (`.pth`, `.pt`, `.bin`); PaddleClas's is `.pdparams`; of KerasHub, a folder (a preset).
        layout (`str`, defaults to `"paddleclas"`): or `"timm"`, `"keras"`; or `"dfine"`, `"deim"`, `"rtdetrv4"`,
            `"deimv2"`: detectors, or backbones, whose head is left out.
        overwrite (`bool`, defaults to `False`): replace an existing file.

    Returns:
        [`ExportReport`]

    Raises:
        `ConversionError`: the folder cannot be read, or the other program cannot express its network.
        `ValueError`: there is no such layout, or the file's ending belongs to another format.

    Example:

        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> hgnetv2_hf.export_weights("digits", "digits.pth", layout="timm").num_tensors
        225
    """
    if layout not in EXPORT_LAYOUTS:
        raise ValueError(f"`layout` must be one of {', '.join(EXPORT_LAYOUTS)}; got {layout!r}.")
    write = _writer(Path(output).suffix, layout) if layout != "keras" else None
    if layout != "keras" and os.path.lexists(output) and not overwrite:
        raise ConversionError(f"{output} exists already; choose another file or pass --overwrite.")
    if not os.path.isdir(folder):
        raise ConversionError(f"There is no folder {folder}.")
    source = find_source(os.fspath(folder))
    if is_detector(folder):
        return _export_detector(source, folder, output, layout, write)
    network = _network_layout(layout)
    checkpoint = read_checkpoint(source, layout="transformers")
    model = checkpoint.model
    layouts = layouts_of(model.config.model_type)
    if network not in layouts:
        known = ", ".join(each for each in EXPORT_LAYOUTS if each in layouts)
        raise ConversionError(
            f"{folder} holds a PP-HGNet, which {LAYOUTS[network].title} does not know; choose one of {known}."
        )
    notes = _differences(model.config, hasattr(model, "fc"), network)
    if layout == "keras":
        return _export_preset(source, folder, checkpoint, output, overwrite, notes)
    tensors = rename_back(model.state_dict(), layouts[network])
    _write(write, tensors, output)
    has_head = hasattr(model, "fc") and LAYOUTS[network].has_head
    way_back = _options(model.config, network, has_head)
    if has_head:
        way_back.update(_pixels(checkpoint.report.assumed))
        notes += _lost(model.config, checkpoint.report.assumed, source.unsupported)
    return ExportReport(os.fspath(folder), os.fspath(output), layout, len(tensors), notes, **way_back)


def _export_preset(source, folder, checkpoint, output, overwrite, notes):
    model = checkpoint.model
    assumed = {field: value for field, (value, _) in checkpoint.report.assumed.items()}
    preprocessing = {name: assumed[name] for name in ("resample", "image_mean", "image_std") if name in assumed}
    preprocessing["image_size"] = assumed.get("image_size", [assumed.get("crop_size", 224)] * 2)
    preprocessing["crops"] = "image_size" not in assumed
    if has_keras_head(model) and source.unsupported:
        raise ConversionError(source.unsupported)
    if has_keras_head(model) and assumed.get("resize_short") != assumed.get("crop_size"):
        notes.append(
            f"KerasHub resizes to the crop itself: {assumed['crop_size']} pixels, not "
            f"{assumed['resize_short']} with a border cut off"
        )
    with claim(output, folder, overwrite), atomic_folder(output) as partial:
        try:
            count = write_preset(model, partial, preprocessing)
        except (OSError, RuntimeError) as error:  # h5py's on a full disk
            raise ConversionError(f"Cannot write {output}: {sentence(error)}") from error
    return ExportReport(os.fspath(folder), os.fspath(output), "keras", count, notes)


def _options(config, layout, has_head):
    """What a weight file does not hold of the network, as options of a conversion, where that assumes otherwise."""
    options = {}
    padding = getattr(config, "pool_padding", "zero")  # stock's
    if config.use_learnable_affine_block and padding != LAYOUTS[layout].pool_padding:
        options["pool_padding"] = padding
    if not has_head:
        return options
    assumed = _paddleclas_dropout(config) if layout == "paddleclas" else 0.0
    if getattr(config, "use_last_conv", False) and config.dropout_prob != assumed:
        options["dropout"] = config.dropout_prob
    if hasattr(config, "decoder_queries"):
        if config.decoder_attention_heads != DEFAULT_HEADS:
            options["num_heads"] = config.decoder_attention_heads
        if config.num_labels > config.decoder_queries:
            options["num_labels"] = config.num_labels
    return options


def _pixels(assumed):
    """The same of a classifier's preprocessing."""
    if {"resize_short", "crop_size"} <= set(assumed):
        return {field: assumed[field][0] for field in ("resize_short", "crop_size")}
    height, width = assumed.get("image_size", ((None, None),))[0]
    return {"image_size": height} if height == width else {}


def _lost(config, assumed, unsupported):
    """What neither the file nor an option of a conversion holds, in words."""
    is_decoder = hasattr(config, "decoder_queries")
    problems = ("multi_label_classification",) if is_decoder else (None, "single_label_classification")
    usual = {
        "problem_type": config.problem_type in problems,
        "image_size": len(set(assumed.get("image_size", ((),))[0])) < 2,  # not a square
        "resample": assumed["resample"][0] == (BILINEAR if is_decoder else 3),
        "image_mean": list(assumed["image_mean"][0]) == list(IMAGENET_MEAN),
        "image_std": list(assumed["image_std"][0]) == list(IMAGENET_STD),
        "decoder_activation_function": getattr(config, "decoder_activation_function", "relu") == "relu",
    }
    lost = [name for name, is_usual in usual.items() if not is_usual]
    notes = [f"no weight file holds {', '.join(lost)}; set them in the folder that it converts to"] if lost else []
    return [*notes, unsupported] if unsupported else notes


def _export_detector(source, folder, output, layout, write):
    if layout not in DETECTOR_LAYOUTS:
        raise ConversionError(
            f"{folder} holds a whole detector, which {LAYOUTS[layout].title} does not know; the programs that do are "
            f"{', '.join(DETECTOR_LAYOUTS)}."
        )
    tensors, config, notes = detector_tensors(folder, source.path, layout)
    backbone = config.backbone_config
    if not isinstance(backbone, HGNetV2Config):  # stock's own
        backbone = HGNetV2Config.from_dict(backbone.to_dict())
    notes += _differences(backbone, False, _network_layout(layout))
    # The programs look for the weights under this name; DEIMv2's safetensors files are flat.
    _write(write, tensors if Path(output).suffix == ".safetensors" else {"model": tensors}, output)
    return ExportReport(
        os.fspath(folder), os.fspath(output), layout, len(tensors), notes, num_queries=config.num_queries
    )


def _network_layout(layout):
    """D-FINE and its families name the tensors of a backbone alike."""
    return "dfine" if layout in DETECTOR_LAYOUTS else layout


def _write(write, tensors, output):
    try:
        write(tensors, output)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ConversionError(f"Cannot write {output}: {getattr(error, 'strerror', None) or error}.") from error


def _writer(suffix, layout):
    if layout == "paddleclas":
        writers = {".pdparams": write_paddle_file}
    else:
        writers = {".safetensors": _write_safetensors, **dict.fromkeys((".pth", ".pt", ".bin"), _write_torch_file)}
    if suffix not in writers:
        title = LAYOUTS[_network_layout(layout)].title
        raise ValueError(f"A file of {title} ends in {' or '.join(writers)}; got {suffix or 'no ending'}.")
    return writers[suffix]


def _write_safetensors(tensors, path):
    with atomic_file(path) as partial:
        save_file({name: tensor.clone() for name, tensor in _contiguous(tensors).items()}, partial)


def _write_torch_file(tensors, path):
    with atomic_file(path) as partial:
        torch.save(_contiguous(tensors), partial)


def _contiguous(tensors):
    return {name: _contiguous(each) if isinstance(each, dict) else each.contiguous() for name, each in tensors.items()}


def _differences(config, has_head, layout):
    """Weights are not the whole network: what else the other program must be told, or computes in its own way."""
    title, notes = LAYOUTS[layout].title, []
    if config.hidden_act != "relu" or not config.has_default_strides():
        raise ConversionError(
            f"This network has the activation {config.hidden_act} and strides "
            f"{getattr(config, 'stem_strides', 'as published')}, {config.stage_downsample_strides}; {title} cannot "
            "express that."
        )
    if layout == "paddleclas" and (missing := missing_in_paddleclas(config)):
        raise ConversionError(f"{title} cannot express {missing}.")
    if has_head and layout == "keras" and not hasattr(config, "head_pooling"):
        notes.append("the classifier is left out: KerasHub's is applied before the pooling, and this one behind it")
        has_head = False
    elif has_head and LAYOUTS[layout].has_head and layout != "keras" and hasattr(config, "head_pooling"):
        raise ConversionError(f"This network's head is applied before the pooling; {title} cannot express that.")
    has_decoder = has_head and LAYOUTS[layout].has_head and hasattr(config, "decoder_queries")
    if has_decoder and layout == "timm":
        raise ConversionError(f"This network ends in an ML-Decoder; {title} cannot express that.")
    if has_decoder:
        notes.append(f"build the network with use_ml_decoder: True and MLDecoder: {paddleclas_ml_decoder(config)}")
    padding = getattr(config, "pool_padding", "zero")
    theirs = "same" if layout == "paddleclas" else "zero"
    if config.use_learnable_affine_block and padding != theirs:
        notes.append(
            f"{title} pads the stem's max-pool in its own way ({theirs}, this folder {padding}): with LAB, its "
            "outputs differ at the right and lower border"
        )
    if has_head and not LAYOUTS[layout].has_head:
        notes.append("the classifier is left out")
    elif has_head and not getattr(config, "use_last_conv", False):
        notes.append(f"build the network without the head's 1×1 convolution in {title}")
    if has_head and layout == "paddleclas" and getattr(config, "dropout_prob", 0.0) != _paddleclas_dropout(config):
        notes.append(f"build the network with dropout_prob={config.dropout_prob}, which scales its logits")
    elif has_head and getattr(config, "dropout_prob", 0.0) and layout == "timm":
        notes.append(f"timm's dropout does not scale in evaluation as Paddle's does ({config.dropout_prob} here)")
    epsilon = getattr(config, "batch_norm_eps", PADDLE_EPSILON)
    if abs(epsilon - PADDLE_EPSILON) > PADDLE_EPSILON * 1e-6:
        notes.append(f"{title}'s batch norm has an epsilon of 1e-5, this folder's {epsilon}: its outputs differ")
    return notes


def _paddleclas_dropout(config):
    """What PaddleClas's own function for this variant sets."""
    variant = name_variant(config.to_dict())
    return PP_HGNET_VARIANTS[variant].dropout_prob if variant in PP_HGNET_VARIANTS else 0.0
