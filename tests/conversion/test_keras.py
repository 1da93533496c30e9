"""Presets of KerasHub: read without Keras, computed as KerasHub computes them, written back so that it loads them."""

import json
import shutil
import sys
import tarfile

import numpy as np
import pytest
import torch
from conftest import GOLDENS, TINY_FIELDS, randomize, relative_difference
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

import hgnetv2_hf
from hgnetv2_hf import ConversionError, convert_checkpoint, export_weights, load_backbone
from hgnetv2_hf.cli import main
from hgnetv2_hf.conversion.weight_file import read_weights
from hgnetv2_hf.model.remote_code import KERAS_CODE_FILES


h5py = pytest.importorskip("h5py", reason="h5py comes with the extra [keras]")


@pytest.fixture(scope="session")
def golden(make_once):
    """A folder with a preset that KerasHub saved, and what it computed; everybody's, to read."""

    def unpack(path):
        with tarfile.open(GOLDENS / "kerashub.tar.xz") as archive:
            archive.extractall(path, filter="data")

    return make_once("kerashub", unpack)


@pytest.fixture(scope="session")
def converted(golden, make_once):
    return make_once("kerashub-converted", lambda path: convert_checkpoint(golden / "preset", path))


@pytest.fixture
def preset(golden, tmp_path):
    """A copy to change."""
    return shutil.copytree(golden / "preset", tmp_path / "preset")


def change(path, *keys, value):
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("value, words", [(-0.5, "negative variance"), (float("nan"), "not finite")])
def test_values_that_would_compute_nan_are_refused(preset, tmp_path, value, words):
    def spoil(name, node):
        if isinstance(node, h5py.Dataset) and name.startswith("layers/") and name.endswith("vars/3") and not spoiled:
            node[0] = value
            spoiled.append(name)

    spoiled = []
    with h5py.File(preset / "model.weights.h5", "r+") as file:
        file.visititems(spoil)
    assert spoiled
    with pytest.raises(ConversionError, match=words):
        convert_checkpoint(preset, tmp_path / "out")


def test_a_classifier_without_its_head_is_refused(preset, tmp_path):
    (preset / "task.weights.h5").unlink()
    with pytest.raises(ConversionError, match="are not there"):
        convert_checkpoint(preset, tmp_path / "out")


def small(**options):
    config = hgnetv2_hf.HGNetV2KerasConfig(**{**TINY_FIELDS, "class_expand": 24, "num_labels": 3, **options})
    return randomize(hgnetv2_hf.HGNetV2KerasForImageClassification(config).eval())


def test_logits_and_maps_are_those_of_kerashubs_golden(golden, converted):
    answer = np.load(golden / "answer.npz")
    model = AutoModelForImageClassification.from_pretrained(converted).double().eval()
    assert type(model) is hgnetv2_hf.HGNetV2KerasForImageClassification
    pixel_values = np.random.RandomState(1).normal(size=(1, 3, 33, 48)).astype("float32")
    with torch.inference_mode():
        output = model(torch.from_numpy(pixel_values).double(), output_hidden_states=True)
    assert relative_difference(output.logits, answer["logits"]) < 1e-9
    for index, feature in enumerate(output.hidden_states):
        assert relative_difference(feature, answer[f"feature_{index}"]) < 1e-9
    with torch.inference_mode():  # pooled first, as other programs do, it would be something else
        pooled = model.fc(model.flatten(model.last_conv(model.avg_pool(output.hidden_states[-1]))))
    assert relative_difference(pooled, answer["logits"]) > 1e-3


def test_the_preprocessing_is_that_of_the_image_converter(converted):
    processor = AutoImageProcessor.from_pretrained(converted)
    assert processor.size["shortest_edge"] == processor.crop_size["height"] == 64 and processor.resample == 3
    levels = np.array([3.0, 100.0, 250.0])
    ours = (levels / 255 - processor.image_mean) / processor.image_std
    assert np.abs(ours - (levels * [0.017, 0.0175, 0.0174] + [-2.1, -2.0, -1.8])).max() < 1e-12
    assert len(pipeline("image-classification", model=str(converted))(_picture())) == 5


def _picture():
    import PIL.Image

    return PIL.Image.fromarray(np.random.RandomState(0).randint(0, 256, (70, 90, 3), dtype="uint8"))


@pytest.mark.parametrize("source", ["model.weights.h5", "task.weights.h5"])
def test_a_weight_file_stands_for_the_preset_around_it(golden, converted, tmp_path, source):
    report = convert_checkpoint(golden / "preset" / source, tmp_path / "out")
    assert report.model_type == "hgnet_v2_keras" and report.assumed["dropout_prob"][0] == 0.1
    assert (tmp_path / "out/config.json").read_text() == (converted / "config.json").read_text()


def test_a_backbone_of_kerashub_loads_in_stock_transformers(golden, preset, tmp_path):
    from transformers.models.hgnet_v2.modeling_hgnet_v2 import HGNetV2Backbone

    for file in ("task.json", "task.weights.h5"):
        (preset / file).unlink()
    assert convert_checkpoint(preset, tmp_path / "out").model_type == "hgnet_v2"
    stock = HGNetV2Backbone.from_pretrained(tmp_path / "out", out_features=["stage2"]).double().eval()
    pixel_values = np.random.RandomState(1).normal(size=(1, 3, 33, 48)).astype("float32")
    with torch.inference_mode():
        feature = stock(torch.from_numpy(pixel_values).double()).feature_maps[0]
    assert relative_difference(feature, np.load(golden / "answer.npz")["feature_2"]) < 1e-9


def test_a_preset_goes_back_bit_for_bit(golden, converted, tmp_path):
    report = export_weights(converted, tmp_path / "back", layout="keras")
    assert report.num_tensors == sum(len(read_weights(path)[0]) for path in (golden / "preset").glob("*.h5"))
    for name in ("model.weights.h5", "task.weights.h5"):
        theirs, ours = (read_weights(folder / name)[0] for folder in (golden / "preset", tmp_path / "back"))
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[place], ours[place]) for place in theirs)
    assert json.loads((tmp_path / "back/task.json").read_text())["config"]["dropout"] == 0.1
    convert_checkpoint(tmp_path / "back", tmp_path / "again")
    again, before = (json.loads((each / "config.json").read_text()) for each in (tmp_path / "again", converted))
    assert again == before
    with pytest.raises(ConversionError, match="exists already"):
        export_weights(converted, tmp_path / "back", layout="keras")


def test_what_kerashub_cannot_express_is_said_or_refused(tiny, converted, tmp_path):
    report = export_weights(tiny, tmp_path / "out", layout="keras")
    assert any("classifier is left out" in note for note in report.notes)
    assert any("pads the stem's max-pool" in note for note in report.notes)
    assert not (tmp_path / "out/task.json").exists()
    with pytest.raises(ConversionError, match="before the pooling"):
        export_weights(converted, tmp_path / "w.pdparams", layout="paddleclas")


def test_shipped_files_import_each_other_as_the_loader_follows():
    import re
    from pathlib import Path

    package = Path(hgnetv2_hf.__file__).parent / "model"
    names = {each.removesuffix(".py") for each in KERAS_CODE_FILES}
    for name in ("configuration_keras.py", "modeling_keras.py"):
        imported = set(re.findall(r"^\s*from \.(\S+) import", (package / name).read_text(), flags=re.MULTILINE))
        assert imported | {name.removesuffix(".py")} == names, name


@pytest.mark.slow
def test_a_folder_of_kerashub_loads_without_the_package(converted, without_package):
    code = (
        "import sys, torch\nfrom transformers import AutoModelForImageClassification as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True).double().eval()\n"
        "print(model(torch.ones(1, 3, 64, 64).double()).logits.tolist())\n"
    )
    status, printed, errors = without_package(code, converted)
    assert status == 0, errors
    ours = AutoModelForImageClassification.from_pretrained(converted).double().eval()
    expected = ours(torch.ones(1, 3, 64, 64).double()).logits
    assert relative_difference(json.loads(printed.splitlines()[-1]), expected.detach()) < 1e-12


def test_optimized_it_computes_the_same(converted):
    model = AutoModelForImageClassification.from_pretrained(converted).double().eval()
    pixel_values = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(pixel_values).logits
        assert relative_difference(hgnetv2_hf.optimize_for_inference(model)(pixel_values).logits, expected) < 1e-9


@pytest.mark.parametrize(
    "file, keys, value, message",
    [
        ("config.json", ("config", "hidden_act"), "gelu", "reaches the stem only"),
        ("config.json", ("config", "stackwise_stage_filters", 1, 5), 3, "its tensors show"),
        ("config.json", ("config", "stackwise_stage_filters"), [[]], "does not write"),
        ("task.json", ("config", "activation"), "softmax", "activation=None"),
        ("task.json", ("config", "head_filters"), 13, "head_filters 13"),
        ("task.json", ("registered_name",), "builtins>eval", "expected keras_hub>HGNetV2ImageClassifier"),
        ("image_converter.json", ("config", "pad_to_aspect_ratio"), True, "pads images"),
        ("image_converter.json", ("config", "scale"), 0, "does not write"),
    ],
)
def test_a_configuration_that_says_something_else_is_refused(preset, tmp_path, file, keys, value, message):
    for name, place in ((file, ()), *COPIES.get(file, ())):
        change(preset / name, *place, *keys, value=value)
    with pytest.raises(ConversionError, match=message):
        convert_checkpoint(preset, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# KerasHub writes a configuration into several files: the other places, by the one that is read.
COPIES = {
    "config.json": [("task.json", ("config", "backbone"))],
    "image_converter.json": [
        ("task.json", ("config", "preprocessor", "config", "image_converter")),
        ("preprocessor.json", ("config", "image_converter")),
    ],
}


@pytest.mark.parametrize("file, place", [copy for copies in COPIES.values() for copy in copies])
def test_copies_of_a_configuration_that_differ_are_refused(preset, tmp_path, file, place):
    field, value = ("hidden_act", "gelu") if "backbone" in place else ("scale", [1.0, 1.0, 1.0])
    change(preset / file, *place, "config", field, value=value)
    with pytest.raises(ConversionError, match=f"says {field} .* in {file}; correct the one"):
        convert_checkpoint(preset, tmp_path / "out")


def test_head_weights_stand_in_one_file_and_are_there(preset, tmp_path):
    with h5py.File(preset / "task.weights.h5", "r") as file:
        shape = file["layers/dense/vars/0"].shape
    with h5py.File(preset / "model.weights.h5", "a") as file:
        file["layers/dense/vars/0"] = np.ones(shape, "float32")
    with pytest.raises(ConversionError, match="both hold layers/dense/vars/0"):
        convert_checkpoint(preset, tmp_path / "out")
    for name in ("model.weights.h5", "task.weights.h5"):
        with h5py.File(preset / name, "a") as file:
            del file["layers/dense"]
    with pytest.raises(ConversionError, match="lacks the classifier"):
        convert_checkpoint(preset, tmp_path / "out")
    convert_checkpoint(preset, tmp_path / "out", task="backbone")


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("do_normalize", False, "do_normalize is false"),
        ("rescale_factor", 1 / 127.5, "rescale_factor is 0.0078"),
        ("crop_size", {"height": 64, "width": 32}, "no square"),
        ("do_center_crop", False, "a short side and a crop"),
        ("size", {"height": 64, "width": 64}, "a short side and a crop"),
        ("size", [64], "size is \\[64"),
        ("resample", 4, "no filter"),
    ],
)
def test_preprocessing_that_would_be_lost_is_refused(converted, tmp_path, field, value, words):
    folder = shutil.copytree(converted, tmp_path / "folder")
    change(folder / "preprocessor_config.json", field, value=value)
    with pytest.raises(ConversionError, match=words):
        export_weights(folder, tmp_path / "preset", layout="keras")
    if field != "resample":  # a folder can say this filter
        with pytest.raises(ConversionError, match=words):
            convert_checkpoint(folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == ["folder"]


def test_a_full_disk_is_one_sentence(converted, tmp_path, monkeypatch):
    def full(*arguments):
        raise RuntimeError("Unable to synchronously write (No space left on device)")  # h5py's

    monkeypatch.setattr("hgnetv2_hf.conversion.keras_preset.write_keras_weights", full)
    with pytest.raises(ConversionError, match="Cannot write .*No space left"):
        export_weights(converted, tmp_path / "preset", layout="keras")
    assert not (tmp_path / "preset").exists()


def test_one_mean_for_all_channels_is_written_for_each(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "folder")
    for field in ("image_mean", "image_std"):
        change(folder / "preprocessor_config.json", field, value=0.5)
    export_weights(folder, tmp_path / "preset", layout="keras")
    config = json.loads((tmp_path / "preset" / "image_converter.json").read_text())["config"]
    assert config["offset"] == [-1.0] * 3 and config["scale"] == pytest.approx([2 / 255] * 3)


PLACE = "layers/hg_net_v2_embeddings/stem1_layer/convolution/vars"
SHAPE = (3, 3, 3, 4)


def hostile(secret):
    values = np.ones(SHAPE, "float32")
    source = h5py.VirtualSource(str(secret), "secret", shape=SHAPE)
    virtual = h5py.VirtualLayout(shape=SHAPE, dtype="float32")
    virtual[:] = source

    def sparse(group):
        group.create_dataset("0", shape=(2**40,), dtype="float32", chunks=(1024,))

    def cycle(group):
        group["again"] = group

    return {
        "external_link": lambda group: group.__setitem__("0", h5py.ExternalLink(str(secret), "/secret")),
        "soft_link": lambda group: group.__setitem__("0", h5py.SoftLink("/layers")),
        "virtual": lambda group: group.create_virtual_dataset("0", virtual),
        "external_storage": lambda group: group.create_dataset(
            "0", SHAPE, "float32", external=[(str(secret), 0, 432)]
        ),
        "claims_terabytes": sparse,
        "bomb": lambda group: group.create_dataset("0", data=np.zeros(2**24, "float32"), compression="gzip"),
        "text": lambda group: group.create_dataset("0", data="text"),
        "group_inside_itself": cycle,
        "other_shape": lambda group: group.create_dataset("0", data=values[:1]),
    }


@pytest.mark.parametrize("kind", hostile("secret.h5"))
def test_a_hostile_hdf5_file_is_refused_in_a_sentence(preset, tmp_path, kind, capsys):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["secret"] = np.ones(SHAPE, "float32")
    with h5py.File(preset / "model.weights.h5", "a") as file:
        del file[PLACE]["0"]
        hostile(tmp_path / "secret.h5")[kind](file[PLACE])
    assert main(["convert", str(preset), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("hgnetv2-hf: ") and error[0].endswith(".")
    assert not (tmp_path / "out").exists()


def test_damaged_files_and_a_missing_h5py_are_one_sentence(preset, tmp_path, monkeypatch):
    data = (preset / "model.weights.h5").read_bytes()
    (preset / "model.weights.h5").write_bytes(data[: len(data) // 2])
    with pytest.raises(ConversionError, match="damaged HDF5"):
        convert_checkpoint(preset, tmp_path / "out")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ConversionError, match=r"pip install 'hgnetv2-hf\[keras\]'"):
        convert_checkpoint(preset, tmp_path / "out")


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"head_pooling": "max", "use_learnable_affine_block": False}])
def test_the_real_kerashub_loads_what_is_written_and_computes_the_same(keras, tmp_path, options):
    model = small(**options)
    model.save_pretrained(tmp_path / "ours")
    hgnetv2_hf.HGNetV2ImageProcessor(size={"shortest_edge": 64}, crop_size=64).save_pretrained(tmp_path / "ours")
    export_weights(tmp_path / "ours", tmp_path / "preset", layout="keras")
    pixel_values = np.random.RandomState(0).normal(size=(2, 3, 96, 113)).astype("float32")
    for backend, dtype, bound in (("tensorflow", "float64", 1e-9), ("torch", "float32", 5e-6)):  # rounding
        if not keras.has(backend):
            continue
        answer = keras.ask(backend, tmp_path / "preset", pixel_values=pixel_values, dtype=dtype)
        ours = model.to(getattr(torch, dtype))
        with torch.inference_mode():
            output = ours(torch.from_numpy(pixel_values).to(getattr(torch, dtype)), output_hidden_states=True)
        assert relative_difference(output.logits, answer["logits"]) < bound
        for index, feature in enumerate(output.hidden_states):
            assert relative_difference(feature, answer[f"feature_{index}"]) < bound


@pytest.mark.keras
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["b0", "b4"])
def test_verify_runs_kerashub(keras, tmp_path, variant):
    config = hgnetv2_hf.HGNetV2Config.from_variant(variant)
    randomize(hgnetv2_hf.HGNetV2Backbone(config)).save_pretrained(tmp_path / "ours")
    export_weights(tmp_path / "ours", tmp_path / "preset", layout="keras")
    report = convert_checkpoint(tmp_path / "preset", tmp_path / "out", verify=True)
    assert report.variant == variant and report.parity[0].program.startswith("KerasHub")
    assert report.parity[0].difference < 1e-9 and "5 feature maps" in report.parity[0].compared
    assert load_backbone(tmp_path / "out").config.model_type == "hgnet_v2"
