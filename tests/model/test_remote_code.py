"""Folders load on a machine without the package, whoever wrote them, also after loading and saving again."""

import json

import pytest
import torch
from conftest import TINY_PP_HGNET_FIELDS, randomize
from transformers import AutoModelForImageClassification, Trainer, TrainingArguments
from transformers.models.auto.image_processing_auto import (
    AutoImageProcessor,
)  # 5.8 and 5.16 hide it without torchvision

import hgnetv2_hf
from hgnetv2_hf.model.remote_code import AUTO_MAPS, CODE_FILES, PP_HGNET_CODE_FILES


CODE_OF = {"hgnet_v2": CODE_FILES, "pp_hgnet_v2": CODE_FILES, "pp_hgnet": PP_HGNET_CODE_FILES}


def assert_carries_its_code(folder, model_type):
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == model_type
    assert config["auto_map"] == AUTO_MAPS[model_type]
    assert all((folder / name).is_file() for name in CODE_OF[model_type])


@pytest.fixture(params=["pp_hgnet_v2", pytest.param("pp_hgnet", marks=pytest.mark.slow)])
def model_type(request):
    return request.param


@pytest.fixture
def folder(tmp_path, tiny_fields, model_type):
    if model_type == "pp_hgnet":
        config = hgnetv2_hf.PPHGNetConfig(**TINY_PP_HGNET_FIELDS, class_expand=24, num_labels=3)
    else:
        config = hgnetv2_hf.PPHGNetV2Config(**tiny_fields, class_expand=24, num_labels=3)
    randomize(AutoModelForImageClassification.from_config(config)).save_pretrained(tmp_path / "first")
    hgnetv2_hf.HGNetV2ImageProcessor(size=64, crop_size=64).save_pretrained(tmp_path / "first")
    return tmp_path / "first"


@pytest.mark.parametrize("model_type", ["pp_hgnet_v2", "pp_hgnet"], indirect=True)
def test_save_load_save_keeps_code_and_auto_map(folder, tmp_path, model_type):
    assert_carries_its_code(folder, model_type)
    AutoModelForImageClassification.from_pretrained(folder).save_pretrained(tmp_path / "second")
    AutoImageProcessor.from_pretrained(folder).save_pretrained(tmp_path / "second")
    assert_carries_its_code(tmp_path / "second", model_type)
    processor = json.loads((tmp_path / "second" / "preprocessor_config.json").read_text())
    assert processor["auto_map"] == AUTO_MAPS["image_processor"]


def test_an_hgnet_v2_folder_carries_its_code_too(tmp_path, tiny_fields):
    hgnetv2_hf.HGNetV2Backbone(hgnetv2_hf.HGNetV2Config(**tiny_fields)).save_pretrained(tmp_path)
    assert_carries_its_code(tmp_path, "hgnet_v2")


def test_what_the_trainer_saves_carries_its_code(folder, tmp_path, model_type):
    model = AutoModelForImageClassification.from_pretrained(folder)
    arguments = TrainingArguments(output_dir=str(tmp_path / "run"), report_to=[], use_cpu=True)
    trainer = Trainer(model=model, args=arguments, processing_class=AutoImageProcessor.from_pretrained(folder))
    trainer.save_model(str(tmp_path / "trained"))
    assert_carries_its_code(tmp_path / "trained", model_type)
    assert (tmp_path / "trained" / "preprocessor_config.json").is_file()


REMOTE = """
import json, torch, transformers
from pathlib import Path
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor
folder, out = Path(sys.argv[1]), Path(sys.argv[2])
options = {"trust_remote_code": True}
classifier = transformers.AutoModelForImageClassification.from_pretrained(folder, **options).eval()
base = transformers.AutoModel.from_pretrained(folder, **options).eval()
processor = AutoImageProcessor.from_pretrained(folder, **options)
image = Image.radial_gradient("L").resize((90, 80))
pixel_values = processor(image, return_tensors="pt")["pixel_values"]
with torch.no_grad():
    logits = classifier.double()(pixel_values.double()).logits
    pooled = base.double()(pixel_values.double()).pooler_output
classify = transformers.pipeline("image-classification", model=str(folder), device="cpu", **options)
scores = {row["label"]: row["score"] for row in classify(image.convert("RGB"))}
torch.save([pixel_values, logits, pooled, scores], out / "answers.pt")
# a second and a third save, from models that were loaded as remote code
classifier.float().save_pretrained(out / "second")
processor.save_pretrained(out / "second")
again = transformers.AutoModelForImageClassification.from_pretrained(out / "second", **options)
again.save_pretrained(out / "third")
for name in ("AutoBackbone",):
    config = transformers.AutoConfig.from_pretrained(out / "third", **options)
    backbone = transformers.AutoBackbone.from_config(config, **options)
    assert type(backbone).__name__ == type(classifier).__name__.replace("ForImageClassification", "Backbone")
assert "hgnetv2_hf" not in [name for name, module in sys.modules.items() if module is not None]
"""


def test_loads_without_the_package_and_computes_the_same(folder, tmp_path, without_package, model_type):
    from PIL import Image

    returncode, _, error = without_package(REMOTE, folder, tmp_path)
    assert returncode == 0, error
    pixel_values, logits, pooled, scores = torch.load(tmp_path / "answers.pt", weights_only=False)
    image = Image.radial_gradient("L").resize((90, 80))
    ours = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(ours, pixel_values)
    model = AutoModelForImageClassification.from_pretrained(folder).double().eval()
    with torch.no_grad():
        output = model(pixel_values.double(), output_hidden_states=True)
    assert torch.allclose(output.logits, logits, rtol=0, atol=1e-12)
    assert torch.allclose(output.hidden_states[-1].mean((2, 3)), pooled, rtol=0, atol=1e-12)
    for index, probability in enumerate(output.logits.softmax(1)[0].tolist()):
        assert scores[f"LABEL_{index}"] == pytest.approx(probability, abs=1e-5)
    for name in ("second", "third"):
        assert_carries_its_code(tmp_path / name, model_type)
    for name in CODE_OF[model_type]:
        assert (tmp_path / "third" / name).read_text() == (folder / name).read_text()


def test_without_trust_stock_refuses(folder, without_package, model_type):
    code = "import transformers; transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1])"
    returncode, _, error = without_package(code, folder)
    assert returncode != 0
    assert "trust_remote_code" in error or model_type in error


def test_the_pipeline_never_asks_whether_to_run_the_folders_code(folder, monkeypatch):
    from PIL import Image
    from transformers import pipeline

    asked = []
    monkeypatch.setattr("builtins.input", lambda *question: asked.append(question) or "n")
    classify = pipeline("image-classification", model=str(folder), device="cpu")
    assert len(classify(Image.new("RGB", (70, 70)))) == 3
    assert not asked


def test_shipped_files_import_each_other_only_as_the_loader_follows():
    """Flat files, ``from .x import y``, and each entry file names all the others: 4.56 copies only those."""
    import re
    from pathlib import Path

    package = Path(hgnetv2_hf.__file__).parent / "model"
    assert set(CODE_FILES) <= set(PP_HGNET_CODE_FILES)
    for name in PP_HGNET_CODE_FILES:
        names = {each.removesuffix(".py") for each in (CODE_FILES if name in CODE_FILES else PP_HGNET_CODE_FILES)}
        imported = set(re.findall(r"^\s*from \.(\S+) import", (package / name).read_text(), flags=re.MULTILINE))
        assert imported <= names, name
        if name.startswith(("configuration", "modeling", "image_processing")):
            assert imported | {name.removesuffix(".py")} == names, name
