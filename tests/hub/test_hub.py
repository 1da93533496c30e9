"""Publishing: model cards, uploads by the real client to a local Hub, what loads from there without the package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from canvases import write_canvases
from conftest import TINY_FIELDS, randomize
from hub_server import READ_TOKEN, HubServer, Repository
from huggingface_hub import ModelCard

import hgnetv2_hf
from hgnetv2_hf import ConversionError, convert_checkpoint
from hgnetv2_hf.conversion.layouts import LAYOUTS, rename_back
from hgnetv2_hf.conversion.paddle_file import write_paddle_file
from hgnetv2_hf.hub.published import ASSETS, PADDLECLAS_URL, PUBLISHED
from hgnetv2_hf.model.remote_code import AUTO_MAPS, CODE_FILES


DIGITS = ASSETS / PUBLISHED["digits"].file_name
# Runs command lines one after the other in one process and prints [status, last line of standard error] for each.
COMMANDS = """
import contextlib, io, json, sys, time
from hgnetv2_hf.cli import main
time.sleep = lambda seconds: None
for arguments in json.loads(sys.argv[1]):
    error = io.StringIO()
    with contextlib.redirect_stderr(error), contextlib.redirect_stdout(sys.stderr):
        status = main(arguments)
    lines = [line for line in error.getvalue().splitlines() if line.startswith("hgnetv2-hf:")]
    print(json.dumps([status, lines]))
"""


@pytest.fixture
def hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture
def run(hub, tmp_path):
    """Runs Python code that talks to the local Hub: its standard output."""

    def run(code, *arguments, token=None, home="home", environment=None):
        environment = {**os.environ, **hub.environment(tmp_path / home), **(environment or {})}
        if token is not None:
            environment["HF_TOKEN"] = token
        result = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        return result.stdout

    return run


@pytest.fixture
def commands(run):
    def commands(*lists, **options):
        printed = run(COMMANDS, json.dumps([list(map(str, arguments)) for arguments in lists]), **options)
        return [json.loads(line) for line in printed.splitlines() if line.startswith("[")]

    return commands


def push(target, repo_id, *options):
    return ["convert", DIGITS, target, "--push-to-hub", repo_id, *options]


def test_convert_creates_pushes_updates_and_opens_pull_requests(hub, commands, tmp_path):
    assert (
        commands(
            push(tmp_path / "one", "somebody/digits"),
            push(tmp_path / "two", "some-org/hidden", "--private"),
            push(tmp_path / "three", "somebody/digits"),
            push(tmp_path / "four", "somebody/digits", "--create-pr"),
        )
        == [[0, []]] * 4
    )
    digits, hidden = hub.repositories["somebody/digits"], hub.repositories["some-org/hidden"]
    local = {path.name: path.read_bytes() for path in (tmp_path / "three").iterdir()}
    assert digits.files == local and set(CODE_FILES) < set(local)
    assert not digits.private and hidden.private
    assert len(digits.pull_requests) == 1
    assert digits.pull_requests[0]["model.safetensors"] == local["model.safetensors"]
    assert 'model="somebody/digits"' in digits.files["README.md"].decode()
    uploads = [path for method, path in hub.requests if method == "PUT"]
    assert len(uploads) == 1  # the same weights travel once
    validated = [path for method, path in hub.requests if path == "/api/validate-yaml"]
    assert validated


@pytest.mark.slow
def test_what_breaks_for_a_moment_is_tried_again(hub, commands, tmp_path):
    hub.fail("POST", "/api/repos/create", 500)
    hub.fail("POST", "/preupload/", 503)
    hub.fail("POST", "/lfs/objects/batch", 500)
    hub.fail("PUT", "/lfs/", 500, "cut", "slow")
    hub.fail("POST", "/lfs-verify/", 502)
    hub.fail("POST", "/models/somebody/other/commit/", 500, "cut", 409)
    assert commands(push(tmp_path / "one", "somebody/flaky"), push(tmp_path / "two", "somebody/other")) == [
        [0, []],
        [0, []],
    ]
    for name, folder in (("somebody/flaky", "one"), ("somebody/other", "two")):
        local = {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        assert hub.repositories[name].files == local
    assert not hub._failures


@pytest.mark.slow
def test_a_refused_upload_is_one_sentence_and_the_folder_and_the_repository_stay_whole(hub, commands, tmp_path):
    kept = {name: Repository() for name in ("somebody/changing", "somebody/breaking", "somebody/foreign")}
    for repository in kept.values():
        repository.commits.append({"README.md": b"old"})
    hub.repositories.update(kept)
    hub.fail("POST", "/api/models/somebody/changing/commit/", *[409] * 10)
    hub.fail("POST", "/api/models/somebody/breaking/commit/", *["cut"] * 10)
    results = commands(
        push(tmp_path / "one", "somebody/changing"),
        push(tmp_path / "two", "somebody/breaking"),
        push(tmp_path / "three", "somebody/absent", "--create-pr"),
    )
    results += commands(push(tmp_path / "four", "somebody/foreign"), token=READ_TOKEN)
    results += commands(push(tmp_path / "five", "somebody/new"), token="hf_wrong")
    words = ["somebody else is changing", "breaking failed", "no repository", "may not write", "hf auth login"]
    for (status, lines), expected, number in zip(results, words, ("one", "two", "three", "four", "five")):
        assert status == 1 and len(lines) == 1 and expected in lines[0], lines
        assert "`hf upload somebody/" in lines[0]
        assert (tmp_path / number / "model.safetensors").is_file()
    assert all(repository.files == {"README.md": b"old"} for repository in kept.values())
    assert hub.repositories == kept


@pytest.mark.slow
def test_an_upload_that_fails_says_where_it_left_a_new_repository_empty(hub, commands, tmp_path):
    hub.repositories["somebody/old"] = Repository()
    hub.fail("POST", "/api/models/somebody/new/commit/", *["cut"] * 12)
    hub.fail("POST", "/api/models/somebody/(old|fresh)/commit/", *[500] * 12)
    new, old, fresh, again = commands(
        push(tmp_path / "one", "somebody/new"),
        push(tmp_path / "two", "somebody/old"),
        push(tmp_path / "three", "somebody/fresh"),
        push(tmp_path / "four", "somebody/new"),  # created by the first
    )
    words = "failed: .*; the new repository is there and empty%s; try again with `hf upload somebody/"
    assert new[0] == 1 and re.search(words % r" \(unless the commit arrived .*\)", new[1][0])
    assert fresh[0] == 1 and re.search(words % "", fresh[1][0])
    assert not hub.repositories["somebody/new"].files and not hub.repositories["somebody/fresh"].files
    for status, lines in (old, again):
        assert status == 1 and "is there and empty" not in lines[0]


@pytest.mark.slow
def test_train_pushes_the_whole_folder_at_the_end(hub, commands, tmp_path):
    options = ["--max_steps", "2", "--per_device_train_batch_size", "16", "--use_cpu", "--dataloader_num_workers", "0"]
    options += ["--rand-augment", "none", "--random-erasing", "0", "--eval_strategy", "no", "--save_strategy", "no"]
    options += ["--push_to_hub", "--hub_model_id", "somebody/trained", "--hub_private_repo", "true"]
    target = tmp_path / "trained"
    assert commands(["train", "digits", "--model", DIGITS, "--output", target, *options]) == [[0, []]]
    repository = hub.repositories["somebody/trained"]
    assert repository.private and repository.files == {path.name: path.read_bytes() for path in target.iterdir()}
    assert {"README.md", "metrics.json", "model.safetensors", *CODE_FILES} <= set(repository.files)
    assert b'model="somebody/trained"' in repository.files["README.md"]


@pytest.mark.slow
def test_train_detector_pushes_the_whole_folder_at_the_end(hub, commands, tmp_path):
    """A detector of a stock type: no code of this package, and labels and metrics beside the weights."""
    pytest.importorskip("torchvision", reason="comes with the extra [detection]")
    pytest.importorskip("faster_coco_eval", reason="comes with the extra [detection]")
    data, target = write_canvases(tmp_path / "data", 4, size=64), tmp_path / "trained"
    options = "--image-size 64 --validation-fraction 0 --max_steps 1 --use_cpu --save_strategy no".split()
    options += "--dataloader_num_workers 0 --push_to_hub --hub_model_id somebody/finds --hub_private_repo".split()
    command = ["train-detector", data, "--model", "dfine-n", "--output", target, *options]
    assert commands(command) == [[0, []]]
    repository = hub.repositories["somebody/finds"]
    assert repository.private and repository.files == {path.name: path.read_bytes() for path in target.iterdir()}
    assert {"README.md", "metrics.json", "model.safetensors", "preprocessor_config.json"} <= set(repository.files)
    assert not set(CODE_FILES) & set(repository.files) and b"somebody/finds" in repository.files["README.md"]


def test_what_cannot_be_pushed_is_refused_before_any_work(tmp_path, monkeypatch):
    with pytest.raises(ConversionError, match="repository name"):
        convert_checkpoint(DIGITS, tmp_path / "out", push_to_hub="a/b/c")
    with pytest.raises(ConversionError, match="HF_HUB_OFFLINE"):
        convert_checkpoint(DIGITS, tmp_path / "out", push_to_hub="a/b")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("hgnetv2_hf.hub.upload.get_token", lambda: None)
    with pytest.raises(ConversionError, match="hf auth login"):
        convert_checkpoint(DIGITS, tmp_path / "out", push_to_hub="a/b")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_whole_set_converts_pushes_goes_on_after_a_failure_and_continues(hub, run, tmp_path):
    cache, out = tmp_path / "cache", tmp_path / "out"
    cache.mkdir()
    names = [name for name, row in PUBLISHED.items() if (row.url or "").startswith(PADDLECLAS_URL)]
    broken = cache / PUBLISHED[names[3]].file_name
    for name in names:
        (cache / PUBLISHED[name].file_name).write_bytes(DIGITS.read_bytes())
    broken.write_bytes(b"\x80\x04broken")
    script = Path(__file__).parents[2] / "conversion_scripts" / "convert_all_paddleclas.py"
    code = """
import runpy, sys, time
script, out, expected = sys.argv[1:]
sys.argv = [script, out, "--push-to-hub", "some-org"]
try:
    runpy.run_path(script, run_name="__main__")
except SystemExit as error:
    assert error.code == int(expected), error.code
"""
    environment = {"HGNETV2_HF_CACHE": str(cache)}
    assert "18 of 19 done" in run(code, script, out, 1, environment=environment)
    assert sorted(hub.repositories) == sorted(f"some-org/{name}" for name in names if name != names[3])
    broken.write_bytes(DIGITS.read_bytes())
    printed = run(code, script, out, 0, environment=environment)
    assert "19 of 19 done" in printed and printed.count("is there already; pushed") == 18
    assert sorted(hub.repositories) == sorted(f"some-org/{name}" for name in names)
    card = hub.repositories["some-org/PPHGNetV2_B6_ssld_stage2"].files["README.md"].decode()
    assert "86.3" in card and 'model="some-org/PPHGNetV2_B6_ssld_stage2"' in card


PUSH_FROM_TRANSFORMERS = """
import sys
import hgnetv2_hf
from transformers import AutoModelForImageClassification
from transformers.models.auto.image_processing_auto import AutoImageProcessor
model = AutoModelForImageClassification.from_pretrained(sys.argv[1])
model.push_to_hub("somebody/pushed", private=True)
AutoImageProcessor.from_pretrained(sys.argv[1]).push_to_hub("somebody/pushed")
model.push_to_hub("somebody/pushed", create_pr=True)
"""
LOAD_FROM_THE_HUB = """
import sys
sys.modules["hgnetv2_hf"] = None
import torch, transformers
from PIL import Image
from transformers.models.auto.image_processing_auto import AutoImageProcessor
name, out, options = sys.argv[1], sys.argv[2], {"trust_remote_code": True}
classifier = transformers.AutoModelForImageClassification.from_pretrained(name, **options).double().eval()
base = transformers.AutoModel.from_pretrained(name, **options).double().eval()
backbone = transformers.AutoBackbone.from_pretrained(name, out_features=["stem", "stage3"], **options).double().eval()
image = Image.radial_gradient("L").resize((90, 80))
pixel_values = AutoImageProcessor.from_pretrained(name, **options)(image, return_tensors="pt")["pixel_values"].double()
with torch.no_grad():
    answers = [pixel_values, classifier(pixel_values).logits, base(pixel_values).pooler_output]
    answers += backbone(pixel_values).feature_maps
classify = transformers.pipeline("image-classification", model=name, device="cpu", **options)
answers.append({row["label"]: row["score"] for row in classify(image.convert("RGB"), top_k=10)})
torch.save(answers, out)
"""


@pytest.mark.slow
def test_what_model_push_to_hub_uploads_loads_without_the_package_backbone_included(hub, run, tmp_path):
    folder = tmp_path / "digits"
    convert_checkpoint(DIGITS, folder)
    run(PUSH_FROM_TRANSFORMERS, folder)
    repository = hub.repositories["somebody/pushed"]
    assert repository.private and set(CODE_FILES) < set(repository.files) and len(repository.pull_requests) == 1
    config = json.loads(repository.files["config.json"])
    assert config["auto_map"] == AUTO_MAPS["pp_hgnet_v2"]
    run(LOAD_FROM_THE_HUB, "somebody/pushed", tmp_path / "answers.pt", home="another home")
    pixel_values, logits, pooled, stem, stage3, scores = torch.load(tmp_path / "answers.pt")
    model = hgnetv2_hf.PPHGNetV2ForImageClassification.from_pretrained(folder).double().eval()
    with torch.no_grad():
        output = model(pixel_values, output_hidden_states=True)
    maps = output.hidden_states
    for theirs, ours in ((logits, output.logits), (pooled, maps[-1].mean((2, 3))), (stem, maps[0]), (stage3, maps[3])):
        assert torch.allclose(theirs, ours, rtol=0, atol=1e-12)
    expected = output.logits.softmax(1)[0].tolist()
    assert all(scores[str(index)] == pytest.approx(value, abs=1e-5) for index, value in enumerate(expected))


@pytest.fixture(scope="module")
def cards(tmp_path_factory, golden_checkpoint):
    """Folders of every kind: a published classifier, somebody's own, backbones of either model type."""
    tmp_path = tmp_path_factory.mktemp("cards")
    config = hgnetv2_hf.PPHGNetV2Config(**TINY_FIELDS, num_labels=3)
    model = randomize(hgnetv2_hf.PPHGNetV2ForImageClassification(config))
    write_paddle_file(rename_back(model.state_dict(), LAYOUTS["paddleclas"]), tmp_path / "own.pdparams")
    published = tmp_path / PUBLISHED["PPHGNetV2_B0_ssld_stage2"].file_name
    published.symlink_to(golden_checkpoint("paddleclas_b0"))
    convert_checkpoint(published, tmp_path / "published", verify=True)
    convert_checkpoint(tmp_path / "own.pdparams", tmp_path / "own")
    convert_checkpoint(tmp_path / "own.pdparams", tmp_path / "faithful", task="backbone")
    convert_checkpoint(golden_checkpoint("dfine_n"), tmp_path / "stock", task="backbone")
    return tmp_path


def test_cards_say_what_a_user_must_know(cards):
    text = (cards / "published" / "README.md").read_text()
    for words in ("`b0`", "6.00 M", "77.77 %", "93.91 %", "apache-2.0", "236 pixels", "holds the same bits", "Paddle"):
        assert words in text, words
    assert re.search(r"SHA-256 `[0-9a-f]{64}`", text)
    address = PUBLISHED["PPHGNetV2_B0_ssld_stage2"].url
    assert f"]({address})" in text
    assert "Licence: unknown" in (cards / "own" / "README.md").read_text()
    assert "362 tensors of the detector" in (cards / "stock" / "README.md").read_text()


def test_the_metadata_of_cards_is_what_the_hub_knows(cards, hub, run):
    tags = {"published": "image-classification", "own": "image-classification"}
    for name in ("published", "own", "faithful", "stock"):
        card = ModelCard.load(cards / name / "README.md")
        assert card.data.pipeline_tag == tags.get(name, "image-feature-extraction")
        assert card.data.to_dict()["library_name"] == "transformers" and "pp-hgnetv2" in card.data.tags
        assert card.data.license == ("apache-2.0" if name == "published" else "unknown")
        assert yaml.safe_load(card.data.to_yaml()) == yaml.safe_load(card.content.split("---")[1])
    card = ModelCard.load(cards / "published" / "README.md")
    assert card.data.datasets == ["imagenet-1k"]
    assert {result.metric_name: result.metric_value for result in card.data.eval_results} == {
        "top-1": 77.77,
        "top-5": 93.91,
    }
    code = """
import sys
from huggingface_hub import HfApi
api = HfApi()
api.create_repo("somebody/cards")
for path in sys.argv[1:]:
    api.upload_file(path_or_fileobj=path, path_in_repo="README.md", repo_id="somebody/cards")
"""
    run(code, *(cards / name / "README.md" for name in ("published", "own", "faithful", "stock")))
    assert sum(path == "/api/validate-yaml" for _, path in hub.requests) >= 4


@pytest.mark.slow
def test_every_snippet_of_every_card_runs(cards, without_package, tmp_path):
    from PIL import Image

    Image.radial_gradient("L").convert("RGB").resize((300, 260)).save(tmp_path / "photo.jpg")
    with_package, without = [], []
    for name in ("published", "own", "faithful", "stock"):
        blocks = re.findall(r"```python\n(.*?)```", (cards / name / "README.md").read_text(), flags=re.DOTALL)
        assert len(blocks) == (2 if name == "faithful" else 3)
        for block in blocks:
            block = block.replace('"photo.jpg"', repr(str(tmp_path / "photo.jpg")))
            (with_package if block.startswith("import hgnetv2_hf") else without).append(block)
    assert (len(with_package), len(without)) == (6, 5)
    run_all = "import json, sys\nfor block in json.loads(sys.argv[1]):\n    exec(block, {})\n"
    result = subprocess.run(
        [sys.executable, "-c", run_all, json.dumps(with_package)], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
    returncode, _, error = without_package(run_all, json.dumps(without))
    assert returncode == 0, error


def test_failures_of_every_installed_network_library_are_known_and_bugs_are_not():
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError

    from hgnetv2_hf.hub.network import NETWORK_ERRORS, network_failure

    # What the installed client raises from: requests or one of httpx's names.
    client = next(
        base for base in HfHubHTTPError.__mro__[1:] if base.__module__.partition(".")[0] != "huggingface_hub"
    )
    for kind in (HfHubHTTPError, client, ConnectionResetError, TimeoutError):
        assert issubclass(kind, NETWORK_ERRORS), (kind, huggingface_hub.__version__)
    cause = ConnectionResetError("gone")
    wrapped = RuntimeError("the upload failed")
    wrapped.__cause__ = cause
    assert network_failure(wrapped) is cause
    assert network_failure(ValueError("a bug")) is None and not issubclass(RuntimeError, NETWORK_ERRORS)
