"""PP-HGNetV2 for Transformers. Importing the package registers it with the Auto classes."""

import importlib
from typing import TYPE_CHECKING

from .registration import register, unregister


if TYPE_CHECKING:
    from .backbone import LoadedBackbone, load_backbone, load_backbone_into
    from .conversion import ConversionReport, ExportReport, convert_checkpoint, export_weights
    from .errors import ConversionError, HGNetV2Error
    from .inference.evaluate import evaluate
    from .inference.export import export_model
    from .inference.grad_cam import grad_cam
    from .inference.optimize import optimize_for_inference
    from .inference.runtime import load_exported
    from .model.configuration_deim import DEIMConfig, DEIMv2Config
    from .model.configuration_hgnetv2 import HGNetV2Config, PPHGNetV2Config
    from .model.configuration_keras import HGNetV2KerasConfig
    from .model.configuration_ml_decoder import PPHGNetV2MLConfig
    from .model.configuration_pp_hgnet import PPHGNetConfig
    from .model.image_processing_hgnetv2 import HGNetV2ImageProcessor, HGNetV2ImageProcessorFast
    from .model.modeling_deim import DEIMForObjectDetection, DEIMModel
    from .model.modeling_deimv2 import DEIMv2ForObjectDetection, DEIMv2Model
    from .model.modeling_hgnetv2 import (
        HGNetV2Backbone,
        HGNetV2ForImageClassification,
        HGNetV2Model,
        HGNetV2PreTrainedModel,
        PPHGNetV2Backbone,
        PPHGNetV2ForImageClassification,
        PPHGNetV2Model,
    )
    from .model.modeling_keras import HGNetV2KerasBackbone, HGNetV2KerasForImageClassification, HGNetV2KerasModel
    from .model.modeling_ml_decoder import (
        PPHGNetV2MLBackbone,
        PPHGNetV2MLForImageClassification,
        PPHGNetV2MLModel,
    )
    from .model.modeling_pp_hgnet import PPHGNetBackbone, PPHGNetForImageClassification, PPHGNetModel
    from .training.stochastic_depth import set_drop_path_rate


__version__ = "0.1.0"

# The same names again for the interpreter: the models cost two seconds of imports inside Transformers, and only those
# who use them shall pay.
_MODULE_OF = {
    **dict.fromkeys(("HGNetV2Config", "PPHGNetV2Config"), "model.configuration_hgnetv2"),
    "PPHGNetConfig": "model.configuration_pp_hgnet",
    **dict.fromkeys(("PPHGNetBackbone", "PPHGNetForImageClassification", "PPHGNetModel"), "model.modeling_pp_hgnet"),
    **dict.fromkeys(("DEIMConfig", "DEIMv2Config"), "model.configuration_deim"),
    "HGNetV2KerasConfig": "model.configuration_keras",
    **dict.fromkeys(
        ("HGNetV2KerasBackbone", "HGNetV2KerasForImageClassification", "HGNetV2KerasModel"), "model.modeling_keras"
    ),
    "PPHGNetV2MLConfig": "model.configuration_ml_decoder",
    **dict.fromkeys(
        ("PPHGNetV2MLBackbone", "PPHGNetV2MLForImageClassification", "PPHGNetV2MLModel"), "model.modeling_ml_decoder"
    ),
    **dict.fromkeys(("DEIMForObjectDetection", "DEIMModel"), "model.modeling_deim"),
    **dict.fromkeys(("DEIMv2ForObjectDetection", "DEIMv2Model"), "model.modeling_deimv2"),
    **dict.fromkeys(("ConversionError", "HGNetV2Error"), "errors"),
    **dict.fromkeys(("ConversionReport", "ExportReport", "convert_checkpoint", "export_weights"), "conversion"),
    **dict.fromkeys(("HGNetV2ImageProcessor", "HGNetV2ImageProcessorFast"), "model.image_processing_hgnetv2"),
    **dict.fromkeys(("LoadedBackbone", "load_backbone", "load_backbone_into"), "backbone"),
    "evaluate": "inference.evaluate",
    "export_model": "inference.export",
    "grad_cam": "inference.grad_cam",
    "load_exported": "inference.runtime",
    "optimize_for_inference": "inference.optimize",
    "set_drop_path_rate": "training.stochastic_depth",
}

__all__ = [
    "ConversionError",
    "ConversionReport",
    "DEIMConfig",
    "DEIMForObjectDetection",
    "DEIMModel",
    "DEIMv2Config",
    "DEIMv2ForObjectDetection",
    "DEIMv2Model",
    "ExportReport",
    "HGNetV2Backbone",
    "HGNetV2Config",
    "HGNetV2Error",
    "HGNetV2ForImageClassification",
    "HGNetV2ImageProcessor",
    "HGNetV2ImageProcessorFast",
    "HGNetV2KerasBackbone",
    "HGNetV2KerasConfig",
    "HGNetV2KerasForImageClassification",
    "HGNetV2KerasModel",
    "HGNetV2Model",
    "HGNetV2PreTrainedModel",
    "LoadedBackbone",
    "PPHGNetBackbone",
    "PPHGNetConfig",
    "PPHGNetForImageClassification",
    "PPHGNetModel",
    "PPHGNetV2Backbone",
    "PPHGNetV2Config",
    "PPHGNetV2ForImageClassification",
    "PPHGNetV2MLBackbone",
    "PPHGNetV2MLConfig",
    "PPHGNetV2MLForImageClassification",
    "PPHGNetV2MLModel",
    "PPHGNetV2Model",
    "convert_checkpoint",
    "evaluate",
    "export_model",
    "export_weights",
    "grad_cam",
    "load_backbone",
    "load_backbone_into",
    "load_exported",
    "optimize_for_inference",
    "register",
    "set_drop_path_rate",
    "unregister",
]


def __getattr__(name):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _MODULE_OF.get(name, "model.modeling_hgnetv2")
    return getattr(importlib.import_module(f".{module}", __name__), name)


def __dir__():
    return sorted({*globals(), *__all__})


register()
