"""Registration: takes its place on import, gives it back, costs nothing until it is used."""

import importlib
import statistics
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    DFineConfig,
)
from transformers.models.auto import configuration_auto, modeling_auto
from transformers.models.hgnet_v2 import modeling_hgnet_v2 as stock
from transformers.models.hgnet_v2.configuration_hgnet_v2 import HGNetV2Config as StockConfig

import hgnetv2_hf


# 5.8 and 5.16 put a placeholder in its place on the package when torchvision is missing.
image_processing_auto = importlib.import_module("transformers.models.auto.image_processing_auto")


def entries():
    """Everything in the Auto mappings that registration may touch."""
    mappings = [
        configuration_auto.CONFIG_MAPPING,
        image_processing_auto.IMAGE_PROCESSOR_MAPPING,
        modeling_auto.MODEL_MAPPING,
        modeling_auto.MODEL_FOR_BACKBONE_MAPPING,
        modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    ]
    kinds = ("_extra_content", "_mapping", "_modules", "_config_mapping", "_reverse_config_mapping", "_model_mapping")
    found = [dict(getattr(mapping, kind)) for mapping in mappings for kind in kinds if hasattr(mapping, kind)]
    names = [name for name in vars(image_processing_auto) if name.startswith("DEFAULT_TO_")]
    return found + [list(getattr(image_processing_auto, name)) for name in names]


def test_registers_every_auto_class_for_each_model_type():
    prefixes = {
        "hgnet_v2": "HGNetV2",
        "pp_hgnet_v2": "PPHGNetV2",
        "pp_hgnet_v2_ml": "PPHGNetV2ML",
        "pp_hgnet": "PPHGNet",
    }
    for name, prefix in prefixes.items():
        config = AutoConfig.for_model(name)
        assert type(config) is getattr(hgnetv2_hf, f"{prefix}Config")
        with torch.device("meta"):
            assert type(AutoModel.from_config(config)) is getattr(hgnetv2_hf, f"{prefix}Model")
            assert type(AutoBackbone.from_config(config)) is getattr(hgnetv2_hf, f"{prefix}Backbone")
            if name != "pp_hgnet":
                config.set_compatibility_fields()
            classifier = AutoModelForImageClassification.from_config(config)
            assert type(classifier) is getattr(hgnetv2_hf, f"{prefix}ForImageClassification")
        assert type(config) in image_processing_auto.IMAGE_PROCESSOR_MAPPING


def test_unregister_puts_back_exactly_what_it_found_and_twice_does_no_harm():
    hgnetv2_hf.unregister()
    before = entries()
    hgnetv2_hf.register()
    registered = entries()
    hgnetv2_hf.register()
    assert entries() == registered != before
    hgnetv2_hf.unregister()
    hgnetv2_hf.unregister()
    assert entries() == before


def test_unregister_puts_back_what_somebody_else_had_registered():
    class Theirs(stock.HGNetV2Backbone):
        config_class = StockConfig

    hgnetv2_hf.unregister()
    # What AutoBackbone.register(StockConfig, Theirs, exist_ok=True) does, except in 5.16, which ignores it.
    modeling_auto.MODEL_FOR_BACKBONE_MAPPING._extra_content[StockConfig] = Theirs
    try:
        hgnetv2_hf.register()
        assert type(AutoBackbone.from_config(StockConfig())) is hgnetv2_hf.HGNetV2Backbone
        hgnetv2_hf.unregister()
        assert type(AutoBackbone.from_config(StockConfig())) is Theirs
    finally:
        modeling_auto.MODEL_FOR_BACKBONE_MAPPING._extra_content.pop(StockConfig, None)


def test_after_unregister_stock_is_back_and_existing_objects_keep_working():
    config = hgnetv2_hf.HGNetV2Config.from_variant("pico")
    backbone = AutoBackbone.from_config(config)
    detector_config = DFineConfig()
    hgnetv2_hf.unregister()
    assert type(AutoConfig.for_model("hgnet_v2")) is StockConfig
    assert type(AutoBackbone.from_config(StockConfig())) is stock.HGNetV2Backbone
    assert type(DFineConfig().backbone_config) is StockConfig
    assert backbone.eval()(torch.randn(1, 3, 32, 32)).feature_maps[0].shape == (1, 512, 2, 2)
    assert DFineConfig.from_dict(detector_config.to_dict()).backbone_config.out_indices == [2, 3, 4]


def test_importing_after_stock_classes_were_used_is_harmless():
    code = """
import torch, transformers
from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel, DFineConfig
config = transformers.HGNetV2Config()
before = AutoBackbone.from_config(config)
import hgnetv2_hf
after = AutoBackbone.from_config(config)
assert type(before).__module__.startswith("transformers.") and type(after) is hgnetv2_hf.HGNetV2Backbone
assert type(DFineConfig().backbone_config) is hgnetv2_hf.HGNetV2Config
assert type(AutoConfig.for_model("pp_hgnet_v2")) is hgnetv2_hf.PPHGNetV2Config
before(torch.randn(2, 3, 64, 64))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


_IMPORT = """
import sys, time
import torch, transformers
loaded, start = set(sys.modules), time.perf_counter()
import hgnetv2_hf
elapsed = time.perf_counter() - start
new = {name.partition(".")[0] for name in set(sys.modules) - loaded}
print(elapsed, *sorted(new))
"""


def import_in_a_process():
    """(seconds, top-level names) that importing adds where torch and Transformers are imported already."""
    run = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True, timeout=300)
    elapsed, *names = run.stdout.split()
    return float(elapsed), set(names)


def test_importing_pulls_in_nothing_but_wrapt():
    """Neither an optional library nor more of Transformers, whose Auto modules and models take seconds."""
    assert import_in_a_process()[1] <= {"hgnetv2_hf", "wrapt"}


@pytest.mark.slow
def test_importing_takes_a_twentieth_of_a_second_at_most():
    seconds = [import_in_a_process()[0] for _ in range(5)]
    print("seconds that importing adds:", *sorted(seconds))
    assert statistics.median(seconds) < 0.05
