"""Multi-label classifiers with PaddleClas's ML-Decoder: the original's logits, and what users do with them."""

import importlib.util
import json

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import GOLDENS, TINY_FIELDS, golden_input, randomize, relative_difference, write_pictures
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import hgnetv2_hf
from hgnetv2_hf import ConversionError, convert_checkpoint, export_weights
from hgnetv2_hf.cli import main
from hgnetv2_hf.conversion.paddle_file import read_paddle_file, write_paddle_file
from hgnetv2_hf.hub.published import PUBLISHED
from hgnetv2_hf.inference.classify import classify
from hgnetv2_hf.model.remote_code import AUTO_MAPS, ML_DECODER_CODE_FILES


SETTINGS = {"num_labels": 10, "num_heads": 4}  # what the golden's tensors leave open
DECODER = {"decoder_hidden_size": 16, "decoder_ffn_dim": 12, "decoder_attention_heads": 4, "class_expand": 24}


@pytest.fixture(scope="session")
def checkpoint(golden_checkpoint):
    return golden_checkpoint("paddleclas_ml")


@pytest.fixture(scope="session")
def folder(converted_golden):
    """A multi-label classifier of 10 labels; everybody's, to read."""
    return converted_golden("paddleclas_ml", **SETTINGS, image_size=64)


@pytest.fixture
def pictures(tmp_path):
    write_pictures(tmp_path / "pictures", 3, broken=2)
    return tmp_path / "pictures"


def tiny(**options):
    config = hgnetv2_hf.PPHGNetV2MLConfig(**TINY_FIELDS, **{**DECODER, "num_labels": 3, **options})
    return randomize(hgnetv2_hf.PPHGNetV2MLForImageClassification(config).eval())


def test_the_logits_are_those_of_paddleclass_golden(folder):
    golden = np.load(GOLDENS / "paddleclas_ml.npz")
    model = AutoModelForImageClassification.from_pretrained(folder).double().eval()
    assert type(model) is hgnetv2_hf.PPHGNetV2MLForImageClassification
    with torch.inference_mode():
        logits = model(golden_input(golden, torch.float64)).logits
    assert relative_difference(logits, golden["logits"]) < 1e-9


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.paddle
@pytest.mark.parametrize(
    "variant, options",
    [
        ("b0", {"num_labels": 80}),
        slow("b4", {"num_labels": 80}),
        pytest.param("b6", {"num_labels": 80}, marks=pytest.mark.long),
        slow("b1", {"num_labels": 33, "decoder_layers": 3}),
        slow("b4", {"num_labels": 7, "decoder_queries": 2, "use_last_conv": False}),
        slow("b0", {"num_labels": 5, "decoder_self_attention": True, "dropout_prob": 0.2}),
    ],
)
def test_exported_weights_give_the_same_logits_in_the_real_paddleclas(paddle, tmp_path, variant, options):
    config = hgnetv2_hf.PPHGNetV2MLConfig.from_variant(variant, **options)
    randomize(hgnetv2_hf.PPHGNetV2MLForImageClassification(config)).save_pretrained(tmp_path / "ours")
    export_weights(tmp_path / "ours", tmp_path / "w.pdparams")
    told = {"num_labels": options["num_labels"], "dropout": options.get("dropout_prob")}
    report = convert_checkpoint(tmp_path / "w.pdparams", tmp_path / "out", verify=True, **told)
    assert report.variant == variant and report.parity[0].program.startswith("PaddleClas")
    assert report.parity[0].difference < 1e-9 and "logits" in report.parity[0].compared


def test_the_report_and_the_card_list_what_no_tensor_shows(checkpoint, tmp_path):
    report = convert_checkpoint(checkpoint, tmp_path / "out", **SETTINGS)
    assert (report.model_type, report.task, report.num_labels) == ("pp_hgnet_v2_ml", "classification", 10)
    card = (tmp_path / "out" / "README.md").read_text()
    for field, value, reason in (
        ("num_labels", 10, "option"),
        ("decoder_attention_heads", 4, "option"),
        ("decoder_activation_function", "relu", "PaddleClas"),
        ("decoder_dropout", 0.1, "PaddleClas"),
        ("problem_type", "multi_label_classification", "PaddleX"),
        ("image_size", [448, 448], "PaddleX"),
        ("resample", 2, "bilinear"),
    ):
        assert report.assumed[field][0] == value and reason in report.assumed[field][1]
        assert f"| `{field}` | `{value}` | {report.assumed[field][1]} |" in card
    assert "resized to 448×448 pixels" in card and "sigmoid" in card
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    shown = {"decoder_queries": 4, "decoder_layers": 2, "decoder_hidden_size": 16, "decoder_self_attention": True}
    assert {name: config[name] for name in shown} == shown and config["decoder_ffn_dim"] == 12


@pytest.mark.parametrize(
    "options, words",
    [
        ({"num_heads": 4}, "4 queries and 12 logits.* --num-labels .*, 9 to 12"),
        ({"num_heads": 4, "num_labels": 13}, "13 labels are asked for.* 9 to 12"),
        ({"num_heads": 3, "num_labels": 10}, "width 16 cannot have 3 attention heads.* --num-heads"),
        ({**SETTINGS, "image_size": 64, "crop_size": 64}, "not both"),
    ],
)
def test_what_the_tensors_leave_open_is_asked_for_and_not_guessed(checkpoint, tmp_path, options, words):
    with pytest.raises(ConversionError, match=words):
        convert_checkpoint(checkpoint, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_options_of_a_decoder_are_refused_for_other_classifiers(tmp_path):
    with pytest.raises(ConversionError, match="num_heads is for ML-Decoders"):
        convert_checkpoint("digits", tmp_path / "out", num_heads=4)
    with pytest.raises(ConversionError, match="11 labels are asked for.* show 10"):
        convert_checkpoint("digits", tmp_path / "out", num_labels=11)


@pytest.mark.parametrize("options", [{}, {"num_labels": 7, "decoder_queries": 3, "decoder_layers": 2}])
def test_weights_go_back_to_paddleclas_bit_for_bit(tmp_path, options):
    model = tiny(**options)
    model.save_pretrained(tmp_path / "ours")
    report = export_weights(tmp_path / "ours", tmp_path / "w.pdparams")
    assert "use_ml_decoder" in str(report)
    read = read_paddle_file(tmp_path / "w.pdparams")
    assert read["fc.decoder.layers.0.linear1.weight"].shape == (16, 12)  # Paddle's is (in, out)
    told = {"num_labels": model.config.num_labels, "num_heads": 4}
    convert_checkpoint(tmp_path / "w.pdparams", tmp_path / "again", **told)
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())
    with pytest.raises(ConversionError, match="ML-Decoder; timm cannot express"):
        export_weights(tmp_path / "ours", tmp_path / "w.pth", "timm")


def test_what_paddleclas_wrote_goes_back_bit_for_bit(checkpoint, folder, tmp_path):
    report = export_weights(folder, tmp_path / "w.pdparams")
    source, back = read_paddle_file(checkpoint), read_paddle_file(tmp_path / "w.pdparams")
    assert list(sorted(source)) == list(sorted(back)) and "--image-size 64" in str(report)
    assert all(torch.equal(back[name], tensor) for name, tensor in source.items())


def test_a_backbone_of_it_is_an_ordinary_one(checkpoint, folder, tmp_path):
    report = convert_checkpoint(checkpoint, tmp_path / "out", task="backbone")
    assert report.model_type == "pp_hgnet_v2" and any(name.startswith("fc.") for name in report.left_out)
    pixel_values = torch.randn(1, 3, 64, 96)
    own, other = hgnetv2_hf.load_backbone(folder).eval(), hgnetv2_hf.load_backbone(tmp_path / "out").eval()
    assert type(own) is hgnetv2_hf.PPHGNetV2MLBackbone
    assert torch.equal(own(pixel_values).feature_maps[0], other(pixel_values).feature_maps[0])


def test_pixels_are_paddlexs_square_with_the_bilinear_filter(checkpoint, tmp_path):
    convert_checkpoint(checkpoint, tmp_path / "out", **SETTINGS)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    pixels = np.random.RandomState(0).randint(0, 256, (90, 160, 3), dtype="uint8")
    resized = np.asarray(PIL.Image.fromarray(pixels).resize((448, 448), PIL.Image.Resampling.BILINEAR))
    expected = (resized.astype("float32") * np.float32(1 / 255) - np.float32(processor.image_mean)) / np.float32(
        processor.image_std
    )
    given = processor(PIL.Image.fromarray(pixels), return_tensors="np")["pixel_values"][0]
    assert np.array_equal(given, expected.transpose(2, 0, 1))
    told = {"resize_short": 256, "crop_size": 224}  # as PaddleClas's own multi-label example has it
    report = convert_checkpoint(checkpoint, tmp_path / "short", **SETTINGS, **told)
    assert report.assumed["resize_short"] == (256, "option") and "image_size" not in report.assumed


def test_published_names_bring_cocos_labels_and_their_size(tmp_path):
    model = tiny(num_labels=80, decoder_attention_heads=8)
    model.save_pretrained(tmp_path / "ours")
    path = tmp_path / PUBLISHED["PP-HGNetV2-B0_ML"].file_name
    export_weights(tmp_path / "ours", path)
    report = convert_checkpoint(path, tmp_path / "out")
    assert report.published == "PP-HGNetV2-B0_ML" and report.assumed["labels"][0] == "coco"
    assert report.assumed["image_size"] == ([448, 448], "published with PP-HGNetV2-B0_ML")
    assert AutoModelForImageClassification.from_pretrained(tmp_path / "out").config.id2label[79] == "toothbrush"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "80.98" in card and "Mean AP of the labels" in card and "Several labels may fit" in card


def test_a_card_speaks_of_several_labels_only_where_there_are(tmp_path, tiny_fields):
    config = hgnetv2_hf.PPHGNetV2Config(**tiny_fields, num_labels=3, problem_type="single_label_classification")
    randomize(hgnetv2_hf.PPHGNetV2ForImageClassification(config)).save_pretrained(tmp_path / "trained")
    convert_checkpoint(tmp_path / "trained", tmp_path / "out")
    assert "Several labels" not in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("option", [{"image_size": 64}, {"num_labels": 5}, {"num_heads": 4}, {"dropout": 0.1}])
def test_a_backbone_takes_no_option_of_a_classifier(golden_checkpoint, tmp_path, option):
    with pytest.raises(ConversionError, match="leave them out for a backbone"):
        convert_checkpoint(golden_checkpoint("paddleclas_ml"), tmp_path / "out", task="backbone", **option)


def test_scores_are_sigmoids_and_a_threshold_keeps_what_reaches_it(folder, pictures, capsys):
    best = pipeline("image-classification", model=str(folder), top_k=10)(str(pictures / "00.png"))
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    pixel_values = AutoImageProcessor.from_pretrained(folder)(str(pictures / "00.png"), return_tensors="pt")
    with torch.inference_mode():
        scores = model(**pixel_values).logits[0].sigmoid()
    assert np.allclose([each["score"] for each in best], scores.sort(descending=True)[0], atol=1e-6)
    threshold = (best[2]["score"] + best[3]["score"]) / 2
    classify([str(pictures)], folder, top_k=10, threshold=threshold)
    line = capsys.readouterr().out.splitlines()[0]
    assert line.endswith(", ".join(f"{each['label']} {each['score']:.4f}" for each in best[:3]))


@pytest.mark.parametrize("command", [["evaluate", "MODEL", "digits"], ["train", "digits", "--model", "MODEL"]])
def test_accuracy_and_its_training_are_refused_in_a_sentence(folder, tmp_path, command, capsys):
    command = [str(folder) if word == "MODEL" else word for word in command]
    command += ["--output", str(tmp_path / "out")]
    assert main(command) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "multi_label_classification" in error and "one class" in error
    assert not (tmp_path / "out").exists()


def test_heat_maps_and_features_are_made_of_it_too(folder, pictures, tmp_path):
    assert main(["explain", str(pictures), "--model", str(folder), "--output", str(tmp_path / "maps")]) == 0
    assert len(list((tmp_path / "maps").glob("*.png"))) == 2
    if importlib.util.find_spec("pyarrow"):
        assert main(["embed", str(pictures), "--model", str(folder), "--output", str(tmp_path / "features")]) == 0


def test_optimised_it_computes_the_same(folder):
    model = AutoModelForImageClassification.from_pretrained(folder).double().eval()
    pixel_values = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    with torch.inference_mode():
        optimised = hgnetv2_hf.optimize_for_inference(model)(pixel_values).logits
        assert relative_difference(optimised, model(pixel_values).logits) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "openvino", "executorch", "litert", "ncnn"])
def test_an_export_answers_like_the_pipeline_or_is_refused(folder, pictures, tmp_path, format):
    try:
        hgnetv2_hf.export_model(folder, tmp_path / "out", format)
    except hgnetv2_hf.HGNetV2Error as error:
        if "not installed" in str(error):
            pytest.skip(str(error))
        assert format in ("executorch", "litert", "ncnn") and not (tmp_path / "out").exists()
        return
    exported = hgnetv2_hf.load_exported(tmp_path / "out")(str(pictures / "00.png"), top_k=3)
    expected = pipeline("image-classification", model=str(folder), top_k=3)(str(pictures / "00.png"))
    assert [each["label"] for each in exported] == [each["label"] for each in expected]
    assert np.allclose([each["score"] for each in exported], [each["score"] for each in expected], atol=1e-5)


@pytest.mark.slow
def test_transformers_js_would_take_a_softmax_and_is_refused(folder, tmp_path):
    pytest.importorskip("onnxscript", reason="comes with the extra [onnx]")
    with pytest.raises(hgnetv2_hf.HGNetV2Error, match="softmax"):
        hgnetv2_hf.export_model(folder, tmp_path / "out", "transformers-js")


REMOTE = """
import torch, transformers
from transformers import AutoModel, AutoModelForImageClassification
folder, out = sys.argv[1:]
try:
    AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=False)
    raise SystemExit("loaded without its code")
except ValueError as error:
    assert "custom code" in str(error) or "pp_hgnet_v2_ml" in str(error), error
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True).eval()
model.save_pretrained(out + "/again")
again = AutoModelForImageClassification.from_pretrained(out + "/again", trust_remote_code=True).eval()
assert "Model" in type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__
pixel_values = torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96)
with torch.inference_mode():
    torch.save([model(pixel_values).logits, again(pixel_values).logits], out + "/logits.pt")
"""


@pytest.mark.slow
@pytest.mark.stock
def test_stock_transformers_gives_the_same_logits_with_its_code_or_refuses(folder, tmp_path, without_package):
    returncode, _, error = without_package(REMOTE, folder, tmp_path)
    assert returncode == 0, error[-2000:]
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    with torch.inference_mode():
        expected = model(torch.linspace(-1, 1, 3 * 64 * 96).view(1, 3, 64, 96)).logits
    for logits in torch.load(tmp_path / "logits.pt"):
        assert torch.equal(logits, expected)
    assert json.loads((folder / "config.json").read_text())["auto_map"] == AUTO_MAPS["pp_hgnet_v2_ml"]
    assert all((tmp_path / "again" / name).is_file() for name in ML_DECODER_CODE_FILES)


def test_its_loss_is_binary_cross_entropy_and_its_queries_are_not_trained(folder):
    model = AutoModelForImageClassification.from_pretrained(folder).train()
    assert "fc.query_pos_embed.weight" not in dict(model.named_parameters())
    labels = torch.eye(10)[:2]
    output = model(torch.randn(2, 3, 64, 64), labels=labels)
    assert torch.allclose(output.loss, torch.nn.functional.binary_cross_entropy_with_logits(output.logits, labels))
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_other_labels_get_a_fresh_head_and_no_more_queries_than_labels(folder):
    options = {"num_labels": 3, "ignore_mismatched_sizes": True}
    model = AutoModelForImageClassification.from_pretrained(folder, **options).eval()
    assert model.fc.query_pos_embed.weight.shape == (3, 16) and model(torch.randn(1, 3, 64, 64)).logits.shape == (1, 3)
    assert 0.5 < model.fc.query_pos_embed.weight.std() < 2


@pytest.mark.parametrize(
    "field, value", [("decoder_queries", 0), ("decoder_attention_heads", 3), ("decoder_dropout", 1), ("num_labels", 0)]
)
def test_a_field_that_cannot_build_a_decoder_is_named(field, value):
    with pytest.raises(ValueError, match=f"`{field}` cannot build"):
        tiny(**{field: value})


@pytest.mark.parametrize("damage", ["no queries", "odd logits", "layers by the thousand"])
def test_damaged_decoders_are_refused(checkpoint, tmp_path, damage):
    tensors = read_paddle_file(checkpoint)
    if damage == "no queries":
        del tensors["fc.query_pos_embed.weight"]
    elif damage == "odd logits":
        tensors["fc.group_conv.weight"] = tensors["fc.group_conv.weight"][:11].clone()
    else:
        tensors.update({f"fc.decoder.layers.{index}.norm1.bias": torch.zeros(16) for index in range(9000)})
    write_paddle_file(tensors, tmp_path / "w.pdparams")
    with pytest.raises(ConversionError, match="issing|shape"):
        convert_checkpoint(tmp_path / "w.pdparams", tmp_path / "out", **SETTINGS)
