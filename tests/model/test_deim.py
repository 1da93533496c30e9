"""The detectors' own model types: what stock does with them, what they refuse, what reaches their heads."""

import json

import numpy as np
import pytest
import torch
import transformers
from conftest import GOLDENS, golden_input, slow_except

import hgnetv2_hf
from hgnetv2_hf.model.remote_code import AUTO_MAPS, DETECTOR_CODE_FILES


SMALL = {"num_labels": 2, "num_queries": 20, "decoder_layers": 2}


def small(model_type, **fields):
    """A fresh detector on a B0 or, of DEIMv2, with the lite encoder on an Atto."""
    if model_type == "deim":
        backbone = hgnetv2_hf.HGNetV2Config.from_variant("b0", out_features=["stage3", "stage4"])
        config = hgnetv2_hf.DEIMConfig(
            backbone_config=backbone, encoder_in_channels=[512, 1024], encoder_hidden_dim=64, d_model=64,
            decoder_in_channels=[64, 64], num_feature_levels=2, feat_strides=[16, 32], encode_proj_layers=[1],
            **{**SMALL, **fields},
        )  # fmt: skip
        return hgnetv2_hf.DEIMForObjectDetection(config)
    backbone = hgnetv2_hf.HGNetV2Config.from_variant("atto")
    config = hgnetv2_hf.DEIMv2Config(
        backbone_config=backbone, encoder_type="lite", encoder_in_channels=[256], encoder_hidden_dim=64, d_model=64,
        decoder_in_channels=[64, 64], num_feature_levels=2, feat_strides=[16, 32], decoder_n_points=[4, 2],
        decoder_ffn_dim=160, **{**SMALL, **fields},
    )  # fmt: skip
    return hgnetv2_hf.DEIMv2ForObjectDetection(config)


REMOTE = """
import torch, transformers
try:
    transformers.AutoModelForObjectDetection.from_pretrained(sys.argv[1])
except ValueError as error:
    assert "trust_remote_code" in str(error) or "deim" in str(error), error
else:
    raise SystemExit("stock took it")
model = transformers.AutoModelForObjectDetection.from_pretrained(sys.argv[1], trust_remote_code=True).double().eval()
inner = transformers.AutoModel.from_pretrained(sys.argv[1], trust_remote_code=True)
assert type(inner).__module__.startswith("transformers_modules"), type(inner)
with torch.inference_mode():
    output = model(torch.load(sys.argv[2]))
torch.save([output.logits, output.pred_boxes], sys.argv[3])
model.float().save_pretrained(sys.argv[4])
detect = transformers.pipeline("object-detection", model=sys.argv[1], trust_remote_code=True, threshold=0.0)
import PIL.Image
assert len(detect(PIL.Image.new("RGB", (64, 48)))) > 0
"""


@pytest.mark.parametrize("name", slow_except(["deim_dfine_n", "deimv2_atto"], "deimv2_atto"))
def test_stock_refuses_the_folder_and_its_code_computes_the_same(converted_golden, without_package, tmp_path, name):
    folder = converted_golden(name)
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == AUTO_MAPS[config["model_type"]]
    assert {path.name for path in folder.glob("*.py")} == set(DETECTOR_CODE_FILES)
    assert config["backbone_config"]["model_type"] == "hgnet_v2"
    pixel_values = golden_input(np.load(GOLDENS / f"{name}.npz"), torch.float64)
    torch.save(pixel_values, tmp_path / "input.pt")
    places = [tmp_path / "input.pt", tmp_path / "answer.pt", tmp_path / "saved"]
    returncode, _, error = without_package(REMOTE, folder, *places)
    assert returncode == 0, error
    logits, boxes = torch.load(tmp_path / "answer.pt")
    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).double().eval()
    assert type(model).__module__.startswith("hgnetv2_hf")
    with torch.inference_mode():
        output = model(pixel_values)
    # Stock's backbone adds in another order of rounding than none: the same bits.
    assert torch.equal(output.logits, logits) and torch.equal(output.pred_boxes, boxes)
    for file in DETECTOR_CODE_FILES:  # saved again by code that was loaded from the folder
        assert (tmp_path / "saved" / file).read_text() == (folder / file).read_text()
    again = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "saved").double().eval()
    with torch.inference_mode():
        assert torch.equal(again(pixel_values).logits, logits)


def test_the_code_of_a_detector_is_flat_and_each_entry_names_all_the_others():
    import re
    from pathlib import Path

    package = Path(hgnetv2_hf.__file__).parent / "model"
    names = {name.removesuffix(".py") for name in DETECTOR_CODE_FILES}
    for name in DETECTOR_CODE_FILES:
        imported = set(re.findall(r"^\s*from \.(\S+) import", (package / name).read_text(), flags=re.MULTILINE))
        assert imported <= names, name
        if name.startswith(("configuration", "modeling")):
            assert imported | {name.removesuffix(".py")} == names, name


@pytest.mark.parametrize("model_type", ["deim", "deim_v2"])
def test_saved_and_loaded_it_is_the_same_and_of_the_same_type(tmp_path, model_type):
    model = small(model_type).eval()
    model.save_pretrained(tmp_path / "first")
    again = transformers.AutoModelForObjectDetection.from_pretrained(tmp_path / "first").eval()
    again.save_pretrained(tmp_path / "second")
    first, second = (json.loads((tmp_path / each / "config.json").read_text()) for each in ("first", "second"))
    for config in (first, second):  # Transformers fills it in when it loads
        config["backbone_config"].pop("dtype", None)
    assert first == second and type(again) is type(model)
    pixel_values = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = model(pixel_values), again(pixel_values)
    assert torch.equal(first.logits, second.logits) and first.pred_boxes.shape == (2, 20, 4)
    inner = transformers.AutoModel.from_pretrained(tmp_path / "first")
    assert type(inner).__name__ == {"deim": "DEIMModel", "deim_v2": "DEIMv2Model"}[model_type]
    heads = (inner.enc_bbox_head, inner.decoder.query_pos_head, inner.decoder.lqe_layers[0].reg_conf)
    assert {type(head.act).__name__ for head in heads} <= {"SiLU", "SiLUActivation"}


@pytest.mark.parametrize("model_type", ["deim", "deim_v2"])
def test_the_activation_of_the_heads_is_a_field_and_reaches_them(model_type):
    torch.manual_seed(0)
    silu = small(model_type).eval()
    relu = small(model_type, head_activation_function="relu").eval()
    relu.load_state_dict(silu.state_dict())
    for parameter in silu.model.decoder.bbox_embed.parameters():  # heads begin with zeros, which hide the activation
        torch.nn.init.normal_(parameter, std=0.3)
    relu.load_state_dict(silu.state_dict())
    pixel_values = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert not torch.allclose(silu(pixel_values).pred_boxes, relu(pixel_values).pred_boxes)
    for field in ("head_activation_function", "decoder_activation_function"):
        with pytest.raises(ValueError, match=f"`{field}` is 'nosuch'"):
            small(model_type, **{field: "nosuch"})


@pytest.mark.parametrize("model_type", ["deim", "deim_v2"])
def test_labels_are_refused_with_the_functions_that_know_the_loss(model_type):
    model = small(model_type).train()
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])}] * 2
    with pytest.raises(ValueError, match="hgnetv2_hf.training.detection_losses"):
        model(torch.rand(2, 3, 64, 64), labels=labels)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"encoder_type": "heavy"}, "`encoder_type` is 'heavy', expected hybrid or lite"),
        ({"encoder_block": "elan6"}, "`encoder_block` is 'elan6', expected elan4 or elan5"),
        ({"eval_idx": 0}, "`eval_idx` is 0, expected -1"),
    ],
)
def test_fields_of_deimv2_that_build_nothing_are_named(fields, words):
    with pytest.raises(ValueError, match=words):
        hgnetv2_hf.DEIMv2Config(**fields)


def test_stocks_deimv2_stays_stocks():
    """What Transformers' own `deimv2` saved keeps computing what it computed."""
    if "deimv2" not in transformers.CONFIG_MAPPING:
        pytest.skip("this Transformers has no deimv2")
    model_class = transformers.AutoModelForObjectDetection._model_mapping[
        type(transformers.CONFIG_MAPPING["deimv2"]())
    ]
    assert model_class.__module__.startswith("transformers.models.deimv2")
