"""Every difference between Transformers 4.56 and 5.x that this package has to know, and nothing else."""

import os
import sys

from transformers.configuration_utils import PretrainedConfig
from transformers.utils import is_torchvision_available


try:  # 5.x
    from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
except ImportError:  # 4.56 and 5.0
    from transformers.utils.backbone_utils import BackboneConfigMixin, BackboneMixin

try:  # 5.x: leaves tensors alone that a checkpoint has filled
    from transformers import initialization as init
except ImportError:
    from torch.nn import init


__all__ = ["BackboneConfigMixin", "BackboneMixin", "PretrainedConfig", "init"]

# Model types that can hold a backbone and exist in Transformers 5.3.0, the last release whose HGNetV2 ignores strides.
# The list is closed: a type that came later came with strides; this package's own detectors are in it, because they
# hold stock's backbone where they are loaded without the package.
TYPES_OLDER_THAN_STRIDES = frozenset(
    """
    conditional_detr d_fine dab-detr deformable_detr deim deim_v2 depth_anything detr dpt edgetam edgetam_vision_model
    grounding-dino lw_detr lw_detr_vit mask2former maskformer mm-grounding-dino omdet-turbo oneformer
    pp_doclayout_v2 pp_doclayout_v3 prompt_depth_anything rt_detr rt_detr_v2 sam2 sam2_hiera_det_model
    sam2_vision_model sam3 sam3_detr_decoder sam3_detr_encoder sam3_geometry_encoder sam3_mask_decoder
    sam3_tracker_video sam3_vision_model sam3_vit_model table-transformer tvp upernet vitmatte vitpose zoedepth
    """.split()
)


def align_out_features(config, out_features, out_indices):
    """Sets both from either one. Raises ``ValueError`` for a stage that does not exist."""
    out_features = list(out_features) if isinstance(out_features, tuple) else out_features
    out_indices = list(out_indices) if isinstance(out_indices, tuple) else out_indices
    if hasattr(config, "set_output_features_output_indices"):
        config.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)
        return
    from transformers.utils.backbone_utils import get_aligned_output_features_output_indices

    config._out_features, config._out_indices = get_aligned_output_features_output_indices(
        out_features=out_features, out_indices=out_indices, stage_names=config.stage_names
    )


def knows_strides(stock_config):
    """Whether this Transformers version's own HGNetV2 honours strides (since 5.4)."""
    return hasattr(type(stock_config)(), "stem_strides")


def init_backbone(model):
    """4.56 and 5.0 leave to each backbone what later versions do in ``BackboneMixin.__init__``."""
    if hasattr(model, "_init_backbone"):
        model._init_backbone(model.config)


def convert_names_like(model_type, other):
    """5.x renames the tensors of some model types between file and memory: ``model_type`` like ``other``."""
    try:
        from transformers.conversion_mapping import (
            get_checkpoint_conversion_mapping,
            register_checkpoint_conversion_mapping,
        )
    except ImportError:  # 4.56: names in memory are those in the file
        return
    mapping = get_checkpoint_conversion_mapping(other)
    if mapping is not None:
        register_checkpoint_conversion_mapping(model_type, mapping, overwrite=True)


def returns_dict(config, return_dict):
    """Whether a forward returns a ``ModelOutput``; 4.56 has a ``torchscript`` switch that forbids it."""
    if return_dict is not None:
        return return_dict
    return config.return_dict and not getattr(config, "torchscript", False)


def torchvision_image_processor_base():
    """The base class of torchvision image processors, or ``None`` without torchvision."""
    if not is_torchvision_available():
        return None
    try:
        from transformers.image_processing_backends import TorchvisionBackend as base
    except ImportError:
        from transformers.image_processing_utils_fast import BaseImageProcessorFast as base
    return base


def display_names(module):
    """The names that older versions print in the docstrings of their Auto classes, by model type."""
    return getattr(module, "MODEL_NAMES_MAPPING", {})


def image_processor_entry(module, pil_class, torchvision_class):
    """What ``IMAGE_PROCESSOR_MAPPING`` holds per configuration: a pair up to 5.3, a dictionary of backends since."""
    if hasattr(module, "_resolve_backend"):
        entry = {"pil": pil_class, "torchvision": torchvision_class}
        return {backend: cls for backend, cls in entry.items() if cls is not None}
    return (pil_class, torchvision_class)


def image_processors_kept_on_pil(module):
    """The image processor names that 5.x does not replace by their torchvision form unasked; ``None`` in 4.56."""
    for name in ("DEFAULT_TO_PIL_BACKEND_IMAGE_PROCESSORS", "DEFAULT_TO_SLOW_IMAGE_PROCESSORS"):
        if hasattr(module, name):
            return getattr(module, name)
    return None


def choose_fsdp2():
    """Sharding in its second form, which 4.56 takes from the environment only."""
    os.environ.setdefault("FSDP_VERSION", "2")


def fsdp_plugin_options(training_arguments):
    """The arguments of accelerate's FSDP plugin; 4.56 puts them into the environment, where the plugin finds them."""
    return getattr(training_arguments, "fsdp_plugin_args", None) or {}


# A configuration does not know who holds it, and what may be written depends on that (never silently different from
# stock): the file of a detector is written by the detector's `to_dict`, which calls that of its backbone's
# configuration and does not say so. The holder is found on the call stack, where it is `self` in a frame called
# `to_dict` in every Transformers version. This can go when a configuration is told that it is written as a part of
# another one.
def enclosing_configuration(config):
    """The configuration that is serialising ``config`` as one of its fields, or ``None``."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_code.co_name == "to_dict":
        holder = frame.f_locals.get("self")
        if isinstance(holder, PretrainedConfig) and holder is not config:
            return holder
        frame = frame.f_back
    return None
