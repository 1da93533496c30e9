"""Where this package takes its place in Transformers' Auto classes.

The Auto modules take seconds to import, so registration waits for whoever imports them. Model classes are entered the
way Transformers enters its own: by name, with the module to find them in, so that they too are imported only when
used.
"""

import sys

import wrapt


PACKAGE = __name__.partition(".")[0]
CONFIGURATIONS = {
    "hgnet_v2": "HGNetV2Config",
    "pp_hgnet_v2": "PPHGNetV2Config",
    "pp_hgnet": "PPHGNetConfig",
    "pp_hgnet_v2_ml": "PPHGNetV2MLConfig",
    "hgnet_v2_keras": "HGNetV2KerasConfig",
    "deim": "DEIMConfig",
    "deim_v2": "DEIMv2Config",
}
TITLES = {
    "pp_hgnet_v2": "PP-HGNetV2",
    "pp_hgnet_v2_ml": "PP-HGNetV2 with ML-Decoder",
    "pp_hgnet": "PP-HGNet",
    "hgnet_v2_keras": "HGNetV2 of KerasHub",
    "deim": "DEIM",
    "deim_v2": "DEIMv2",
}  # stock has one for hgnet_v2
MODELS = {
    "MODEL_MAPPING": {
        "hgnet_v2": "HGNetV2Model",
        "pp_hgnet_v2": "PPHGNetV2Model",
        "pp_hgnet": "PPHGNetModel",
        "pp_hgnet_v2_ml": "PPHGNetV2MLModel",
        "hgnet_v2_keras": "HGNetV2KerasModel",
        "deim": "DEIMModel",
        "deim_v2": "DEIMv2Model",
    },
    "MODEL_FOR_BACKBONE_MAPPING": {
        "hgnet_v2": "HGNetV2Backbone",
        "pp_hgnet_v2": "PPHGNetV2Backbone",
        "pp_hgnet": "PPHGNetBackbone",
        "pp_hgnet_v2_ml": "PPHGNetV2MLBackbone",
        "hgnet_v2_keras": "HGNetV2KerasBackbone",
    },
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING": {
        "hgnet_v2": "HGNetV2ForImageClassification",
        "pp_hgnet_v2": "PPHGNetV2ForImageClassification",
        "pp_hgnet": "PPHGNetForImageClassification",
        "pp_hgnet_v2_ml": "PPHGNetV2MLForImageClassification",
        "hgnet_v2_keras": "HGNetV2KerasForImageClassification",
    },
    "MODEL_FOR_OBJECT_DETECTION_MAPPING": {
        "deim": "DEIMForObjectDetection",
        "deim_v2": "DEIMv2ForObjectDetection",
    },
}

_active = False
_hooked = False
_registered = set()  # Auto modules that hold our entries
_undo = []  # what puts back the entries that were found


def register() -> None:
    """Registers with AutoConfig, AutoModel, AutoBackbone, AutoModelForImageClassification, AutoModelForObjectDetection
    and AutoImageProcessor.

    Stock's own ``transformers.HGNetV2Config`` then builds this package's models too. Calling it twice does no harm.

    Example:

        >>> import transformers
        >>> import hgnetv2_hf
        >>> hgnetv2_hf.register()
        >>> model = transformers.AutoModel.from_config(hgnetv2_hf.PPHGNetV2Config.from_variant("b0"))
        >>> type(model).__name__
        'PPHGNetV2Model'
    """
    global _active, _hooked
    _active = True
    for name in _REGISTER_IN:
        if _hooked and name in sys.modules:
            _on_import(sys.modules[name])
        elif not _hooked:
            wrapt.register_post_import_hook(_on_import, name)
    _hooked = True


def unregister() -> None:
    """Puts back exactly the entries that ``register`` found. Twice does no harm; existing objects keep working.

    Example:

        >>> import transformers
        >>> import hgnetv2_hf
        >>> hgnetv2_hf.unregister()
        >>> "pp_hgnet_v2" in transformers.CONFIG_MAPPING
        False
        >>> hgnetv2_hf.register()
        >>> "pp_hgnet_v2" in transformers.CONFIG_MAPPING
        True
    """
    global _active
    _active = False
    while _undo:
        _undo.pop()()
    _registered.clear()


def _on_import(module):
    if _active and module.__name__ not in _registered:
        _registered.add(module.__name__)
        _REGISTER_IN[module.__name__](module)


def _register_configurations(module):
    from .model import compat

    mapping = module.CONFIG_MAPPING
    for model_type, name in CONFIGURATIONS.items():
        _put(mapping._mapping, model_type, name)
        _put(mapping._modules, model_type, sys.modules[PACKAGE])
        _remove(mapping._extra_content, model_type)
    for model_type, title in TITLES.items():
        _put(compat.display_names(module), model_type, title)


def _register_models(module):
    for mapping_name, classes in MODELS.items():
        mapping = getattr(module, mapping_name)
        for model_type, name in classes.items():
            _put(mapping._config_mapping, model_type, CONFIGURATIONS[model_type])
            _put(mapping._reverse_config_mapping, CONFIGURATIONS[model_type], model_type)
            _put(mapping._model_mapping, model_type, name)
            _put(mapping._modules, model_type, sys.modules[PACKAGE])
        for config_class in list(mapping._extra_content):
            if config_class.__name__ in CONFIGURATIONS.values():
                _remove(mapping._extra_content, config_class)


def _register_image_processors(module):
    from .model import compat
    from .model.configuration_hgnetv2 import HGNetV2Config, PPHGNetV2Config
    from .model.configuration_keras import HGNetV2KerasConfig
    from .model.configuration_ml_decoder import PPHGNetV2MLConfig
    from .model.configuration_pp_hgnet import PPHGNetConfig
    from .model.image_processing_hgnetv2 import HGNetV2ImageProcessor, HGNetV2ImageProcessorFast

    torchvision_form = HGNetV2ImageProcessorFast if compat.torchvision_image_processor_base() else None
    entry = compat.image_processor_entry(module, HGNetV2ImageProcessor, torchvision_form)
    for config_class in (HGNetV2Config, PPHGNetV2Config, PPHGNetV2MLConfig, PPHGNetConfig, HGNetV2KerasConfig):
        _put(module.IMAGE_PROCESSOR_MAPPING._extra_content, config_class, entry)
    kept_on_pil = compat.image_processors_kept_on_pil(module)
    if kept_on_pil is not None:
        kept_on_pil.append(HGNetV2ImageProcessor.__name__)
        _undo.append(lambda: kept_on_pil.remove(HGNetV2ImageProcessor.__name__))


def _register_absence_of_video(module):
    # `pipeline` of 5.x looks for a video processor in every folder, and stops to ask whether it may run the folder's
    # code unless the configuration is known here.
    from .model.configuration_deim import DEIMConfig, DEIMv2Config
    from .model.configuration_hgnetv2 import HGNetV2Config, PPHGNetV2Config
    from .model.configuration_keras import HGNetV2KerasConfig
    from .model.configuration_ml_decoder import PPHGNetV2MLConfig
    from .model.configuration_pp_hgnet import PPHGNetConfig

    networks = (HGNetV2Config, PPHGNetV2Config, PPHGNetV2MLConfig, PPHGNetConfig, HGNetV2KerasConfig)
    for config_class in (*networks, DEIMConfig, DEIMv2Config):
        _put(module.VIDEO_PROCESSOR_MAPPING._extra_content, config_class, {})


_REGISTER_IN = {
    "transformers.models.auto.configuration_auto": _register_configurations,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processors,
    "transformers.models.auto.video_processing_auto": _register_absence_of_video,
}


def _put(mapping, key, value):
    if key in mapping:
        found = mapping[key]
        _undo.append(lambda: mapping.__setitem__(key, found))
    else:
        _undo.append(lambda: mapping.pop(key, None))
    mapping[key] = value


def _remove(mapping, key):
    if key in mapping:
        found = mapping.pop(key)
        _undo.append(lambda: mapping.__setitem__(key, found))
