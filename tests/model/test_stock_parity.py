"""hgnet_v2 is exactly what stock Transformers computes, both ways, or stock refuses what is saved."""

import copy
import json

import pytest
import torch
import transformers
from conftest import randomize, relative_difference, slow_except
from transformers import AutoBackbone, AutoConfig, AutoModelForImageClassification
from transformers.models.hgnet_v2 import modeling_hgnet_v2 as stock
from transformers.models.hgnet_v2.configuration_hgnet_v2 import HGNetV2Config as StockConfig

import hgnetv2_hf
from hgnetv2_hf.model.variants import VARIANTS


KNOWS_STRIDES = hasattr(StockConfig(), "stem_strides")
BOTH_FORMATS = [torch.contiguous_format, torch.channels_last]


def stock_config(config):
    return StockConfig.from_dict(json.loads(config.to_json_string()))


def same_bits(ours, theirs):
    return len(ours) == len(theirs) and all(torch.equal(a, b) for a, b in zip(ours, theirs))


def built_from_the_same_seed(config, name):
    torch.manual_seed(0)
    ours = getattr(hgnetv2_hf, name)(config)
    torch.manual_seed(0)
    theirs = getattr(stock, name)(stock_config(config))
    return ours, theirs


@pytest.mark.parametrize("variant", slow_except(VARIANTS, "b0", "b4", "atto"))
def test_same_seed_gives_the_same_weights_names_and_channels_as_stock(variant):
    config = hgnetv2_hf.HGNetV2Config.from_variant(variant, out_features=["stage1", "stage3"])
    for name in ("HGNetV2Backbone", "HGNetV2ForImageClassification"):
        ours, theirs = built_from_the_same_seed(config, name)
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert same_bits(list(ours.state_dict().values()), list(theirs.state_dict().values()))
    ours, theirs = built_from_the_same_seed(config, "HGNetV2Backbone")
    assert ours.channels == theirs.channels == [VARIANTS[variant].stages[i].out_channels for i in (0, 2)]


@pytest.mark.parametrize("variant", slow_except(VARIANTS, "b0", "b4", "atto"))
@pytest.mark.parametrize("memory_format", BOTH_FORMATS)
def test_same_weights_give_the_same_bits_as_stock_in_evaluation_and_training(variant, memory_format):
    config = hgnetv2_hf.HGNetV2Config.from_variant(variant, num_labels=5)
    ours, theirs = built_from_the_same_seed(config, "HGNetV2ForImageClassification")
    randomize(ours)
    theirs.load_state_dict(ours.state_dict())
    ours, theirs = ours.to(memory_format=memory_format), theirs.to(memory_format=memory_format)
    pixel_values = torch.randn(2, 3, 64, 80).to(memory_format=memory_format)
    labels = torch.tensor([1, 4])
    for training in (False, True):
        outputs, states = [], []
        for model in (ours, theirs):
            torch.manual_seed(3)
            outputs.append(model.train(training)(pixel_values, labels=labels, output_hidden_states=True))
            states.append(torch.get_rng_state())
        assert torch.equal(outputs[0].logits, outputs[1].logits)
        assert torch.equal(outputs[0].loss, outputs[1].loss)
        assert same_bits(outputs[0].hidden_states, outputs[1].hidden_states)
        assert torch.equal(*states), "the forward drew a random number that stock does not draw"
    for output in outputs:
        output.loss.backward()
    assert same_bits([p.grad for p in ours.parameters()], [p.grad for p in theirs.parameters()])
    assert same_bits(list(ours.buffers()), list(theirs.buffers()))


@pytest.mark.parametrize("variant", slow_except(["b0", "b4", "pico"], "b0"))
def test_saved_folders_move_both_ways_between_stock_and_this_package(tmp_path, without_package, variant):
    config = hgnetv2_hf.HGNetV2Config.from_variant(variant, num_labels=5)
    ours = randomize(hgnetv2_hf.HGNetV2ForImageClassification(config).eval())
    ours.save_pretrained(tmp_path / "ours")
    pixel_values = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    torch.save(pixel_values, tmp_path / "pixel_values.pt")
    code = """
import torch, transformers
folder = sys.argv[1]
model = transformers.AutoModelForImageClassification.from_pretrained(folder + "/ours").eval()
assert type(model).__module__.startswith("transformers.")
model.save_pretrained(folder + "/theirs")
with torch.no_grad():
    output = model.double()(torch.load(folder + "/pixel_values.pt"), output_hidden_states=True)
torch.save([output.logits, *output.hidden_states], folder + "/outputs.pt")
"""
    returncode, _, error = without_package(code, tmp_path)
    assert returncode == 0, error
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path / "theirs").eval()
    assert isinstance(reloaded, hgnetv2_hf.HGNetV2ForImageClassification)
    assert same_bits(list(ours.state_dict().values()), list(reloaded.state_dict().values()))
    # In float64: float32 bits depend on how a loaded tensor happens to be aligned in memory.
    with torch.no_grad():
        output = reloaded.double()(pixel_values, output_hidden_states=True)
    for mine, stocks in zip([output.logits, *output.hidden_states], torch.load(tmp_path / "outputs.pt")):
        assert relative_difference(mine, stocks) < 1e-9


def test_stock_without_the_package_refuses_a_converted_classifier(converted_golden, without_package):
    code = "import transformers; transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1])"
    returncode, _, error = without_package(code, converted_golden("paddleclas_b4"))
    assert returncode != 0
    assert "pp_hgnet_v2" in error or "custom code" in error


def test_a_converted_backbone_without_lab_gives_the_same_maps_in_stock(converted_golden, without_package, tmp_path):
    folder = converted_golden("paddleclas_b4", task="backbone")
    assert json.loads((folder / "config.json").read_text())["model_type"] == "hgnet_v2"
    stages = ["stage1", "stage2", "stage3", "stage4"]
    pixel_values = torch.randn(1, 3, 64, 96)
    torch.save(pixel_values, tmp_path / "pixel_values.pt")
    code = f"""
import torch, transformers
model = transformers.HGNetV2Backbone.from_pretrained(sys.argv[1], out_features={stages}).eval()
assert type(model).__module__.startswith("transformers.")
with torch.no_grad():
    maps = model(torch.load(sys.argv[2] + "/pixel_values.pt")).feature_maps
torch.save([model.channels, maps], sys.argv[2] + "/maps.pt")
"""
    returncode, _, error = without_package(code, folder, tmp_path)
    assert returncode == 0, error
    backbone = hgnetv2_hf.load_backbone(folder, out_features=stages).eval()
    channels, maps = torch.load(tmp_path / "maps.pt")
    assert backbone.channels == channels
    with torch.no_grad():
        assert same_bits(backbone(pixel_values).feature_maps, maps)


def test_a_backbone_with_lab_is_written_so_that_stock_refuses_it_unless_it_pads_zeros(converted_golden):
    faithful = converted_golden("paddleclas_b0", task="backbone")
    zero = converted_golden("paddleclas_b0", task="backbone", pool_padding="zero")
    assert json.loads((faithful / "config.json").read_text())["model_type"] == "pp_hgnet_v2"
    assert json.loads((zero / "config.json").read_text())["model_type"] == "hgnet_v2"


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_act": "gelu"},
        {"stem_strides": [2, 1, 1, 1, 1]},
        {"stage_downsample_strides": [2, 2, 2, 1]},
        {"stage_downsample_strides": [2, [2, 1], 2, 2]},
    ],
)
def test_what_some_stock_version_computes_differently_is_saved_as_pp_hgnet_v2(tmp_path, tiny_fields, change):
    model = randomize(
        hgnetv2_hf.HGNetV2ForImageClassification(
            hgnetv2_hf.HGNetV2Config(**tiny_fields, num_labels=3, **change)
        ).eval()
    )
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "pp_hgnet_v2"
    assert saved["architectures"] == ["PPHGNetV2ForImageClassification"]
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(pixel_values).logits, reloaded(pixel_values).logits)
    reloaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["model_type"] == "pp_hgnet_v2"


@pytest.mark.parametrize("change", [{"hidden_act": "gelu"}, {"stem_strides": [2, 1, 1, 1, 1]}])
def test_inside_a_detector_that_old_stock_versions_know_it_is_saved_as_pp_hgnet_v2(tmp_path, tiny_fields, change):
    backbone_config = hgnetv2_hf.HGNetV2Config(**tiny_fields, out_features=["stage2", "stage3", "stage4"], **change)
    config = transformers.DFineConfig(backbone_config=backbone_config)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["backbone_config"]["model_type"] == "pp_hgnet_v2"
    assert "auto_map" not in saved and "auto_map" not in saved["backbone_config"]
    reloaded = AutoConfig.from_pretrained(tmp_path).backbone_config
    for field, value in change.items():
        assert getattr(reloaded, field) == value


@pytest.mark.skipif(not KNOWS_STRIDES, reason="this Transformers has no model type with a strided HGNetV2")
def test_inside_a_model_type_that_came_with_strides_it_stays_hgnet_v2(tmp_path):
    config = transformers.PPOCRV5ServerRecConfig()
    assert isinstance(config.backbone_config, hgnetv2_hf.HGNetV2Config)
    assert not config.backbone_config.has_default_strides()
    config.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["backbone_config"]["model_type"] == "hgnet_v2"


@pytest.mark.skipif(not KNOWS_STRIDES, reason="stock Transformers ignores strides before 5.4")
def test_strides_are_those_of_stock(tiny_fields):
    config = hgnetv2_hf.HGNetV2Config(
        **tiny_fields,
        stem_strides=[2, 1, 1, 1, 1],
        stage_downsample_strides=[[2, 1], [1, 2], [2, 1], [2, 1]],
        out_features=["stem", "stage1", "stage2", "stage3", "stage4"],
    )
    theirs_config = StockConfig(**{key: value for key, value in config.to_dict().items() if key != "model_type"})
    torch.manual_seed(0)
    ours = hgnetv2_hf.HGNetV2Backbone(config).eval()
    torch.manual_seed(0)
    theirs = stock.HGNetV2Backbone(theirs_config).eval()
    pixel_values = torch.randn(1, 3, 48, 64)
    with torch.no_grad():
        assert same_bits(ours(pixel_values).feature_maps, theirs(pixel_values).feature_maps)


def test_a_detector_with_the_package_equals_stock(tiny_fields):
    """The wide comparison over every model type belongs to the detectors; this is D-FINE, the default one."""
    backbone_config = hgnetv2_hf.HGNetV2Config(**tiny_fields, out_features=["stage2", "stage3", "stage4"])
    config = transformers.DFineConfig(
        backbone_config=backbone_config,
        encoder_in_channels=[24, 32, 40],
        encoder_hidden_dim=32,
        decoder_in_channels=[32, 32, 32],
        d_model=32,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        decoder_layers=2,
        num_queries=20,
        num_denoising=0,
        eval_idx=-1,
    )
    models = []
    for act in (hgnetv2_hf.unregister, hgnetv2_hf.register):
        act()
        torch.manual_seed(0)
        models.append(transformers.DFineForObjectDetection(_with_stock_backbone(config, act)).eval())
    theirs, ours = models
    assert type(theirs.model.backbone.model) is stock.HGNetV2Backbone
    assert type(ours.model.backbone.model) is hgnetv2_hf.HGNetV2Backbone
    assert same_bits(list(ours.state_dict().values()), list(theirs.state_dict().values()))
    pixel_values = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(pixel_values).logits, theirs(pixel_values).logits)


def _with_stock_backbone(config, act):
    config = copy.deepcopy(config)
    if act is hgnetv2_hf.unregister:
        config.backbone_config = stock_config(config.backbone_config)
    return config


def test_stocks_own_configuration_class_builds_this_backbone_while_registered():
    config = transformers.DFineConfig(backbone_config=StockConfig(out_features=["stage2", "stage3", "stage4"]))
    assert isinstance(AutoBackbone.from_config(config.backbone_config), hgnetv2_hf.HGNetV2Backbone)
    backbone = AutoBackbone.from_config(StockConfig(out_features=["stem", "stage1", "stage4"])).eval()
    assert backbone.channels == [48, 128, 2048]
    assert [feature.shape[1] for feature in backbone(torch.randn(1, 3, 32, 32)).feature_maps] == backbone.channels


def test_a_stock_configuration_whose_field_stock_itself_ignores_is_refused():
    with pytest.raises(ValueError, match="hidden_act"):
        AutoBackbone.from_config(StockConfig(hidden_act="gelu"))
    strided = StockConfig(stem_strides=[2, 1, 1, 1, 1])
    if KNOWS_STRIDES:
        assert AutoBackbone.from_config(strided).embedder.stem3.convolution.stride == (1, 1)
    else:
        with pytest.raises(ValueError, match="stem_strides"):
            AutoBackbone.from_config(strided)
