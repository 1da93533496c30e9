"""Configuration: names, defaults, variants, and refusals that name the field."""

import inspect
import json

import pytest
import transformers
from transformers.models.hgnet_v2.configuration_hgnet_v2 import HGNetV2Config as StockConfig

from hgnetv2_hf import (
    HGNetV2Backbone,
    HGNetV2Config,
    HGNetV2ForImageClassification,
    PPHGNetV2Config,
    PPHGNetV2ForImageClassification,
)
from hgnetv2_hf.model.variants import ALIASES, VARIANTS


DOCUMENTED = {
    "num_channels": 3,
    "embedding_size": 64,
    "depths": [3, 4, 6, 3],
    "hidden_sizes": [256, 512, 1024, 2048],
    "hidden_act": "relu",
    "stem_channels": [3, 32, 48],
    "stage_in_channels": [48, 128, 512, 1024],
    "stage_mid_channels": [48, 96, 192, 384],
    "stage_out_channels": [128, 512, 1024, 2048],
    "stage_num_blocks": [1, 1, 3, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [6, 6, 6, 6],
    "use_learnable_affine_block": False,
    "initializer_range": 0.02,
    "stem_strides": [2, 1, 1, 2, 1],
    "stage_downsample_strides": [2, 2, 2, 2],
    "out_features": ["stage4"],
    "out_indices": [4],
    "num_labels": 2,
    "stage_names": ["stem", "stage1", "stage2", "stage3", "stage4"],
}


@pytest.mark.parametrize("field", DOCUMENTED)
def test_defaults_are_those_of_transformers_documentation(field):
    assert getattr(HGNetV2Config(), field) == DOCUMENTED[field]
    stock_value = getattr(StockConfig(), field, DOCUMENTED[field])
    assert json.loads(json.dumps(stock_value)) == DOCUMENTED[field]


def test_takes_every_argument_of_stock():
    stock = set(inspect.signature(StockConfig.__init__).parameters) - {"self", "args", "kwargs"}
    own = set(inspect.signature(HGNetV2Config.__init__).parameters)
    common = set(inspect.signature(transformers.PretrainedConfig.__init__).parameters)
    private = {name for name in stock if name.startswith("_")}
    assert stock - common - private <= own


@pytest.mark.parametrize("name", [*VARIANTS, *ALIASES])
def test_from_variant_builds_from_the_table_and_derives_what_stock_reads_channels_from(name):
    variant = VARIANTS[ALIASES.get(name, name)]
    config = HGNetV2Config.from_variant(name.upper())
    assert config.num_labels == 2
    assert config.out_features == [f"stage{len(variant.stages)}"]
    assert config.use_learnable_affine_block == variant.use_learnable_affine_block
    assert config.embedding_size == variant.stem_channels[2]
    assert config.hidden_sizes == [stage.out_channels for stage in variant.stages]
    assert config.depths == [stage.num_blocks for stage in variant.stages]
    if len(variant.stages) == 4:
        assert PPHGNetV2Config.from_variant(name).num_labels == 1000
        assert PPHGNetV2Config.from_variant(name, num_labels=10).num_labels == 10
    else:
        with pytest.raises(ValueError, match="three stages"):
            PPHGNetV2Config.from_variant(name)


def test_from_variant_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="b0, b1"):
        HGNetV2Config.from_variant("b9")


CANNOT_BUILD = [
    ("stage_mid_channels", [48, 96, 192]),
    ("stage_num_blocks", [1, 1, 3, 1, 1]),
    ("stage_in_channels", [48, 128, 512, 999]),
    ("stage_in_channels", [64, 128, 512, 1024]),
    ("stage_in_channels", []),
    ("stage_in_channels", None),
    ("stage_out_channels", [128, 512, 1024, "wide"]),
    ("stage_out_channels", [128, 512, 1024, -1]),
    ("stage_downsample", [0, 1, 1, 1]),
    ("stage_light_block", "yes"),
    ("stage_kernel_size", [3, 3, 4, 5]),
    ("stage_kernel_size", [3, 3, 5.5, 5]),
    ("stage_numb_of_layers", [6, 6, 6, True]),
    ("stem_channels", [3, 32]),
    ("stem_channels", [4, 32, 48]),
    ("stem_channels", [3, 1, 48]),
    ("num_channels", 0),
    ("num_channels", "3"),
    ("hidden_act", "no_such_activation"),
    ("hidden_act", None),
    ("stem_strides", [2, 1, 1, 2]),
    ("stem_strides", [2, 2, 1, 2, 1]),
    ("stem_strides", [2, 1, 1, 0, 1]),
    ("stem_strides", [2, 1, 1, [2, 2, 2], 1]),
    ("stage_downsample_strides", [2, 2]),
    ("stage_downsample_strides", [2, 2, 2, "2"]),
    ("use_learnable_affine_block", "true"),
    ("initializer_range", -1.0),
    ("initializer_range", "small"),
]


@pytest.mark.parametrize("field, value", CANNOT_BUILD)
def test_a_field_that_cannot_build_a_network_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        HGNetV2Config(**{field: value})
    config = HGNetV2Config()
    setattr(config, field, value)
    with pytest.raises(ValueError, match=field):
        HGNetV2Backbone(config)


@pytest.mark.parametrize(
    "field, value",
    [
        ("dropout_prob", 1.0),
        ("dropout_prob", "0.1"),
        ("class_expand", 0),
        ("use_last_conv", 1),
        ("pool_padding", "reflect"),
    ],
)
def test_a_head_that_cannot_be_built_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field):
        PPHGNetV2Config(**{field: value})


@pytest.mark.parametrize(
    "arguments",
    [
        {"out_features": ["stage9"]},
        {"out_features": ["stage4", "stage1"]},
        {"out_features": "stage4"},
        {"out_indices": [7]},
        {"out_indices": ["stage4"]},
        {"out_indices": [None]},
    ],
)
def test_stages_that_do_not_exist_are_refused(arguments):
    with pytest.raises(ValueError, match="out_"):
        HGNetV2Config(**arguments)


@pytest.mark.parametrize("config_class", [HGNetV2Config, PPHGNetV2Config])
@pytest.mark.parametrize("value", ["x", None, 1.5, [2], -1])
def test_a_number_of_labels_that_is_none_is_refused_by_name(config_class, value):
    with pytest.raises(ValueError, match="`num_labels` cannot build"):
        config_class(num_labels=value)


def test_fields_that_build_nothing_are_no_reason_to_refuse():
    config = HGNetV2Config(depths=[9], hidden_sizes=[1, 2], embedding_size="anything")
    assert HGNetV2Backbone(config).channels == [2048]
    with pytest.raises(ValueError, match="hidden_sizes"):
        HGNetV2ForImageClassification(config)


def test_saving_sets_the_fields_that_stock_reads_channels_from(tmp_path):
    HGNetV2Config(depths=[9], hidden_sizes=[1, 2], embedding_size=7).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["embedding_size"] == 48
    assert saved["hidden_sizes"] == [128, 512, 1024, 2048]
    assert saved["depths"] == [1, 1, 3, 1]


def test_unknown_keys_are_kept_and_ignored(tmp_path):
    extra = {"arch": "L", "return_idx": [1, 2, 3], "freeze_at": 0, "freeze_norm": True, "lr_mult_list": [0, 0.05]}
    HGNetV2Config(**extra).save_pretrained(tmp_path)
    reloaded = HGNetV2Config.from_pretrained(tmp_path)
    assert {key: getattr(reloaded, key) for key in extra} == extra


def test_the_number_of_stages_is_that_of_the_widths():
    config = HGNetV2Config.from_variant("pico")
    assert config.stage_names == ["stem", "stage1", "stage2", "stage3"]
    five = HGNetV2Config(
        stage_in_channels=[48, 64, 64, 64, 64],
        stage_mid_channels=[8] * 5,
        stage_out_channels=[64] * 5,
        stage_num_blocks=[1] * 5,
        stage_downsample=[True] * 5,
        stage_light_block=[True] * 5,
        stage_kernel_size=[3] * 5,
        stage_numb_of_layers=[1] * 5,
    )
    assert HGNetV2Backbone(five).channels == [64]
    assert five.out_features == ["stage5"]


@pytest.mark.parametrize("config_class", [HGNetV2Config, PPHGNetV2Config])
def test_a_configuration_survives_save_load_and_dictionaries(tmp_path, config_class):
    config = config_class.from_variant("b2", num_labels=3, out_features=["stage2", "stage4"])
    config.save_pretrained(tmp_path)
    for reloaded in (config_class.from_pretrained(tmp_path), config_class.from_dict(config.to_dict())):
        assert reloaded.to_dict() == config.to_dict()
        assert (reloaded.num_labels, reloaded.out_indices) == (3, [2, 4])


@pytest.mark.parametrize("name, millions", [("b0", 6.00), ("b4", 19.80), ("b6", 75.26)])
def test_parameter_counts_are_those_of_paddleclas(name, millions):
    """PaddleClas's documentation: B0 6.0 M, B4 19.8 M, B6 75.3 M."""
    import torch

    with torch.device("meta"):
        model = PPHGNetV2ForImageClassification(PPHGNetV2Config.from_variant(name))
    assert sum(parameter.numel() for parameter in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)
