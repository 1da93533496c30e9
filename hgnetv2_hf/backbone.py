"""Backbones from any folder that holds the network, alone or put into a detector."""

import dataclasses
import os
from typing import Optional, Union

import torch
from transformers import AutoConfig, AutoImageProcessor

from .errors import HGNetV2Error
from .model import modeling_hgnetv2 as modeling
from .model.image_processing_hgnetv2 import HGNetV2ImageProcessor
from .model.remote_code import NETWORK_TYPES
from .model.variants import full_name
from .structure import is_network
from .wording import counted


def load_backbone(
    name_or_folder: Union[str, os.PathLike], out_features: Optional[list[str]] = None, **kwargs
) -> modeling.HGNetV2Backbone:
    """
    Loads the network as a backbone from a converted folder or a Hub repository, classifiers included; offline too.

    `AutoBackbone.from_pretrained` does the same on Transformers 4.56 but fails on local folders in 5.23.

    Args:
        name_or_folder (`str` or `os.PathLike`): a folder or a repository of type `hgnet_v2`, `pp_hgnet_v2`,
            `pp_hgnet_v2_ml`, `pp_hgnet` or `hgnet_v2_keras`.
        out_features (`list[str]`, *optional*): maps to return, of `"stem"`, `"stage1"`, …; by default what the
            configuration says, the last stage unless it was set.
        kwargs: passed on to `from_pretrained` (`dtype`, `device_map`, `revision`, …).

    Returns:
        `HGNetV2Backbone`, or the backbone's class of another type; `backbone.channels` holds the width of each map.

    Raises:
        `ValueError`: the folder holds another model, or a stage does not exist.
        `OSError`: there is no such folder or repository.

    Example:

        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> backbone = hgnetv2_hf.load_backbone("digits", out_features=["stage2", "stage4"])
        >>> backbone.channels
        [64, 128]
    """
    hub_options = ("revision", "token", "cache_dir", "local_files_only", "force_download", "subfolder")
    config = AutoConfig.from_pretrained(
        name_or_folder, **{key: value for key, value in kwargs.items() if key in hub_options}
    )
    if config.model_type not in NETWORK_TYPES:
        raise ValueError(
            f"{name_or_folder} holds a {config.model_type} model, not an HGNetV2 or PP-HGNet "
            f"({', '.join(NETWORK_TYPES)})."
        )
    if out_features is not None:
        config.out_features = list(out_features)
    from .conversion.network import model_class

    return model_class(config.model_type, "AutoBackbone").from_pretrained(name_or_folder, config=config, **kwargs)


def check_name(name):
    """
    Raises before the Hub is asked for what cannot be there.

    Raises:
        `HGNetV2Error`: the name is no folder, and not of the form `user/name` either.
    """
    name = os.fspath(name)
    if not os.path.isdir(name) and (name.count("/") != 1 or name.startswith(("/", ".", "~")) or name.endswith("/")):
        raise HGNetV2Error(f"There is no folder {name}; expected a model's folder, or a repository as USER/NAME.")


def load_image_processor(folder):
    """`AutoImageProcessor`, also in versions that hide it where torchvision is missing (such as 5.8 and 5.16)."""
    try:
        return AutoImageProcessor.from_pretrained(folder)
    except ImportError:
        return HGNetV2ImageProcessor.from_pretrained(folder)


@dataclasses.dataclass
class LoadedBackbone:
    """What [`load_backbone_into`] did. ``str(report)`` is one line per fact.

    Example:

        >>> import torch
        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> detector = torch.nn.ModuleDict({"backbone": hgnetv2_hf.load_backbone("digits")})
        >>> loaded = hgnetv2_hf.load_backbone_into(detector, "digits")
        >>> loaded.place, loaded.num_tensors, loaded.notes
        ('backbone', 220, [])
    """

    source: str
    variant: Optional[str]
    place: str  # the name of the backbone inside the model
    num_tensors: int
    num_parameters: int
    notes: list[str]

    def __str__(self):
        name = full_name(self.variant) if self.variant else "an HGNetV2 with its own widths"
        lines = [
            f"{self.source}: {name} put into {self.place}: {counted(self.num_tensors, 'tensor')}, "
            f"{self.num_parameters / 1e6:.2f} M parameters; everything else keeps its values"
        ]
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])


def load_backbone_into(model: torch.nn.Module, source: Union[str, os.PathLike]) -> LoadedBackbone:
    """
    Starts a detector from ImageNet weights: copies a backbone's weights into a model that contains the same network.

    Args:
        model (`torch.nn.Module`): a D-FINE, RT-DETR or other model with one HGNetV2 backbone, of this package or of
            stock Transformers, with frozen batch norm or not; changed in place.
        source (`str` or `os.PathLike`): a converted folder (classifiers included), a Hub repository, a weight file, or
            a published name (`"PPHGNetV2_B4_ssld_stage1"`), which is downloaded.

    Returns:
        [`LoadedBackbone`]: what was loaded, and where the two programs compute something else.

    Raises:
        `ValueError`: the model has no such backbone, or another variant's; nothing is changed.
        `ConversionError`, `OSError`: the source cannot be read.

    Example:

        >>> import torch
        >>> import transformers
        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits")
        >>> config = transformers.AutoConfig.from_pretrained("digits")
        >>> config.out_features = ["stage3", "stage4"]
        >>> detector = torch.nn.ModuleDict({"backbone": hgnetv2_hf.PPHGNetV2Backbone(config)})
        >>> print(hgnetv2_hf.load_backbone_into(detector, "digits"))
        digits: an HGNetV2 with its own widths put into backbone: 220 tensors, 0.07 M parameters; ...
    """
    from .conversion.architecture import name_variant
    from .conversion.layouts import is_counter
    from .model.variants import STAGE_FIELDS

    place, target = _find_backbone(model)
    loaded = read_backbone(os.fspath(source))
    fields = ("stem_channels", "use_learnable_affine_block", *STAGE_FIELDS)
    given, wanted = ({field: getattr(each.config, field) for field in fields} for each in (loaded, target))
    different = [field for field in fields if _as_list(given[field]) != _as_list(wanted[field])]
    if different:
        names = [name_variant(each) or "no published variant" for each in (given, wanted)]
        raise ValueError(
            f"{source} holds {names[0]}, and the model has {names[1]}: they differ in {', '.join(different)}. Build "
            "the model's backbone_config with the values of the weights, or choose weights that fit the model."
        )
    tensors = {name: tensor for name, tensor in loaded.state_dict().items() if not is_counter(name)}
    places = target.state_dict()
    with torch.no_grad():
        for name, tensor in tensors.items():
            places[name].copy_(tensor)
    parameters = sum(parameter.numel() for parameter in loaded.parameters())
    return LoadedBackbone(
        os.fspath(source), name_variant(given), place, len(tensors), parameters, _differences(loaded, target)
    )


def _as_list(value):
    return list(value) if isinstance(value, (list, tuple)) else value


def _find_backbone(model):
    found = [
        (name, module) for name, module in model.named_modules() if is_network(module) and hasattr(module, "config")
    ]
    if len(found) != 1:
        count = "no" if not found else str(len(found))
        raise ValueError(f"{type(model).__name__} has {count} HGNetV2 inside; exactly one is needed.")
    return found[0]


def read_backbone(source):
    """The backbone of a folder, a repository, a weight file or a published name."""
    from .conversion.convert import read_checkpoint
    from .conversion.source import find_source
    from .hub.published import published_name

    if os.path.isfile(source) or (published_name(source) is not None and not os.path.isdir(source)):
        return read_checkpoint(find_source(source), task="backbone").model
    return load_backbone(source)


def _differences(loaded, target):
    notes = []
    padding = getattr(loaded.embedder, "pool_padding", 0.0)
    if loaded.config.use_learnable_affine_block and padding != getattr(target.embedder, "pool_padding", 0.0):
        notes.append(
            "the model pads the stem's max-pool in another way than the weights' own program: with LAB, maps differ "
            "at the border"
        )
    for field in ("hidden_act", "stem_strides", "stage_downsample_strides"):
        own, theirs = (_as_list(getattr(each.config, field, None)) for each in (loaded, target))
        if theirs is not None and own != theirs:
            notes.append(f"the weights belong to {field} {own}, and the model has {theirs}")
    return notes
