"""PP-HGNetV2 for Transformers. Importing the package registers it with the Auto classes."""

import importlib

from .registration import register, unregister


__version__ = "0.1.0"

_EXPORTS = {
    "configuration_hgnetv2": ("HGNetV2Config", "PPHGNetV2Config"),
    "modeling_hgnetv2": (
        "HGNetV2Backbone",
        "HGNetV2ForImageClassification",
        "HGNetV2Model",
        "HGNetV2PreTrainedModel",
        "PPHGNetV2Backbone",
        "PPHGNetV2ForImageClassification",
        "PPHGNetV2Model",
    ),
    "image_processing_hgnetv2": ("HGNetV2ImageProcessor", "HGNetV2ImageProcessorFast"),
    "stochastic_depth": ("set_drop_path_rate",),
    "loading": ("load_backbone",),
    "conversion": ("ConversionError", "ConversionReport", "convert_checkpoint"),
}
_MODULE_OF = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = ["register", "unregister", *_MODULE_OF]


def __getattr__(name):
    # The models cost two seconds of imports inside Transformers; only those who use them pay.
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)


def __dir__():
    return sorted({*globals(), *_MODULE_OF})


register()
