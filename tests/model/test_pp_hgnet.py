"""PP-HGNet where it is not as PP-HGNetV2: its table, its configuration, its fresh weights, and detectors around it.

What both share is tested together, in the files beside this one.
"""

import json
import statistics

import pytest
import torch
import transformers
from conftest import TINY_PP_HGNET_FIELDS, randomize, relative_difference

import hgnetv2_hf
from hgnetv2_hf.model.variants import PP_HGNET_VARIANTS


@pytest.mark.parametrize("variant", PP_HGNET_VARIANTS)
def test_the_table_of_variants_is_timms(timm, variant):
    config = hgnetv2_hf.PPHGNetConfig.from_variant(variant.upper())
    theirs = timm.models.hgnet.model_cfgs[f"hgnet_{variant}"]
    assert config.stem_channels == [3, *theirs["stem_chs"]]
    rows = list(
        zip(
            config.stage_in_channels,
            config.stage_mid_channels,
            config.stage_out_channels,
            config.stage_num_blocks,
            config.stage_downsample,
            config.stage_light_block,
            config.stage_kernel_size,
            config.stage_numb_of_layers,
        )
    )
    assert rows == [tuple(theirs[f"stage{number}"]) for number in (1, 2, 3, 4)]
    assert config.num_labels == 1000 and config.dropout_prob == (0.2 if variant == "base" else 0.0)


def test_variants_belong_to_one_network():
    with pytest.raises(ValueError, match="no PP-HGNet variant 'b0'; choose one of tiny, small, base"):
        hgnetv2_hf.PPHGNetConfig.from_variant("b0")
    for config_class in (hgnetv2_hf.HGNetV2Config, hgnetv2_hf.PPHGNetV2Config):
        with pytest.raises(ValueError, match="no PP-HGNetV2 variant 'tiny'"):
            config_class.from_variant("tiny")


@pytest.mark.parametrize(
    "field, value",
    [
        ("stem_channels", [3]),
        ("stem_channels", [4, 8, 8]),
        ("stem_channels", "wide"),
        ("stage_in_channels", [9, 16, 24, 32]),
        ("stage_numb_of_layers", [2, 2, 2]),
        ("stage_downsample", [0, 1, 1, 1]),
        ("hidden_act", "no_such_activation"),
        ("class_expand", 0),
        ("dropout_prob", 1.0),
        ("use_last_conv", "yes"),
        ("batch_norm_eps", 0.0),
        ("initializer_range", -1.0),
        ("num_labels", -1),
    ],
)
def test_a_field_that_cannot_build_a_network_is_named(field, value):
    with pytest.raises(ValueError, match=field):
        hgnetv2_hf.PPHGNetConfig(**{**TINY_PP_HGNET_FIELDS, field: value})


def test_a_model_refuses_the_configuration_of_the_other_network(tiny_fields):
    for config in (hgnetv2_hf.PPHGNetV2Config(**tiny_fields), transformers.ResNetConfig()):
        with pytest.raises(ValueError, match=f"takes a PPHGNetConfig; got one of the type {config.model_type}"):
            hgnetv2_hf.PPHGNetModel(config)


def test_a_saved_configuration_holds_its_own_fields_and_comes_back(tmp_path):
    config = hgnetv2_hf.PPHGNetConfig.from_variant("base", num_labels=3, out_features=["stem", "stage3"])
    config.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["model_type"] == "pp_hgnet" and content["dropout_prob"] == 0.2
    assert not {"stem_strides", "hidden_sizes", "stage_light_block", "pool_padding"} & set(content)
    again = transformers.AutoConfig.from_pretrained(tmp_path)
    assert type(again) is hgnetv2_hf.PPHGNetConfig
    assert {**again.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    assert again.out_indices == [0, 3] and "auto_map" not in again.to_dict()


def test_fresh_weights_start_as_paddleclas_draws_them():
    torch.manual_seed(0)
    model = hgnetv2_hf.PPHGNetForImageClassification(hgnetv2_hf.PPHGNetConfig.from_variant("tiny", num_labels=9))
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    ratios = [each.weight.std().item() * (each.weight[0].numel() / 2) ** 0.5 for each in convolutions]
    plain = [ratio for each, ratio in zip(convolutions, ratios) if each.groups == 1]  # 1 is Kaiming's
    assert statistics.mean(plain) == pytest.approx(1.0, abs=0.01) and max(abs(r - 1) for r in plain) < 0.1
    assert all((each.bias == 0).all() for each in convolutions if each.bias is not None)
    with torch.no_grad():
        output = model(torch.randn(2, 3, 96, 96), output_hidden_states=True)
    assert all(0.1 < feature.std() < 3 for feature in output.hidden_states) and output.logits.isfinite().all()


def test_the_running_statistics_count_a_checkpointed_batch_once():
    torch.manual_seed(0)
    config = hgnetv2_hf.PPHGNetConfig(**TINY_PP_HGNET_FIELDS, class_expand=24, num_labels=3)
    model = randomize(hgnetv2_hf.PPHGNetForImageClassification(config))
    twin = hgnetv2_hf.PPHGNetForImageClassification(config)
    twin.load_state_dict(model.state_dict())
    twin.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
    pixel_values, labels = torch.randn(4, 3, 64, 64), torch.tensor([0, 1, 2, 0])
    for each in (model, twin):
        each.train()(pixel_values, labels=labels).loss.backward()
    for (name, one), other in zip(model.state_dict().items(), twin.state_dict().values()):
        assert torch.equal(one, other), name
    assert torch.equal(model.embedder.stem[0].convolution.weight.grad, twin.embedder.stem[0].convolution.weight.grad)


def small_detector():
    config = transformers.RTDetrConfig(
        backbone_config=hgnetv2_hf.PPHGNetConfig(**TINY_PP_HGNET_FIELDS, out_features=["stage2", "stage3", "stage4"]),
        encoder_in_channels=[24, 32, 40], encoder_hidden_dim=32, d_model=32, decoder_in_channels=[32, 32, 32],
        encoder_ffn_dim=32, decoder_ffn_dim=32, decoder_layers=2, num_queries=20, num_labels=3,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config)


def test_a_detector_takes_it_as_its_backbone_saves_and_loads_it(tmp_path):
    torch.manual_seed(0)
    model = small_detector().eval()
    assert type(model.model.backbone.model) is hgnetv2_hf.PPHGNetBackbone
    model.save_pretrained(tmp_path)
    again = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        logits = model(pixel_values).logits
        assert relative_difference(again(pixel_values).logits, logits) < 1e-6
    loaded = hgnetv2_hf.load_backbone_into(small_detector(), _classifier(tmp_path / "classifier"))
    assert loaded.place == "model.backbone.model" and loaded.notes == []


def _classifier(folder):
    config = hgnetv2_hf.PPHGNetConfig(**TINY_PP_HGNET_FIELDS, class_expand=24, num_labels=3)
    randomize(hgnetv2_hf.PPHGNetForImageClassification(config)).save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_stock_transformers_refuses_a_detector_around_it(tmp_path, without_package):
    small_detector().save_pretrained(tmp_path)
    code = "import transformers; transformers.AutoModelForObjectDetection.from_pretrained(sys.argv[1])"
    returncode, _, error = without_package(code, tmp_path)
    assert returncode != 0 and "pp_hgnet" in error
