"""The page: right answers in a real browser, sentences for what it cannot take, and the folder that is a Space."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import transformers
import yaml
from hub_server import HubServer

from hgnetv2_hf.cli import main
from hgnetv2_hf.data.digits import load_held_out
from hgnetv2_hf.demo.answers import answer, heat_map, load
from hgnetv2_hf.errors import InferenceError
from hgnetv2_hf.inference.export import export_model


needs_gradio = pytest.mark.skipif(importlib.util.find_spec("gradio") is None, reason="comes with the extra [demo]")
BROWSER = shutil.which("chromium")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Scans as PNG files of a size to look at, and their labels."""
    folder = tmp_path_factory.mktemp("digits")
    scans, labels = load_held_out()
    for index in range(6):
        scans[index].resize((160, 160)).save(folder / f"{index}.png")
    return [str(folder / f"{index}.png") for index in range(6)], [str(label) for label in labels[:6]]


@pytest.fixture(scope="module")
def classifier(digits_folder):
    return load(digits_folder)


def test_a_classifiers_scores_are_the_pipelines(classifier, digits_folder, digits):
    pipe = transformers.pipeline("image-classification", model=str(digits_folder), device="cpu")
    for path, label in zip(*digits):
        found, expected = answer(classifier, path), pipe(path)
        assert list(found.scores) == [each["label"] for each in expected] and next(iter(found.scores)) == label
        assert list(found.scores.values()) == pytest.approx([each["score"] for each in expected], abs=1e-4)
        assert re.fullmatch(r"\d+ ms to prepare, \d+ ms to compute", found.time)


def test_a_heat_map_changes_with_the_label(classifier, digits):
    maps = [np.asarray(heat_map(classifier, digits[0][0], str(label))) for label in range(10)]
    assert {each.shape for each in maps} == {(320, 646, 3)}
    assert all((each[:, :320] == maps[0][:, :320]).all() for each in maps)
    assert any((each != maps[0]).any() for each in maps)


def test_a_detectors_picture_has_more_boxes_at_a_lower_score(detector, digits):
    model = load(detector)
    pictures = [np.asarray(answer(model, digits[0][0], threshold).picture) for threshold in (0.99, 0.1)]
    original = np.asarray(PIL.Image.open(digits[0][0]).convert("RGB"))
    assert (pictures[0] == original).all() and (pictures[1] != original).any()


def test_exported_folders_answer_without_a_heat_map(digits_folder, digits, tmp_path):
    pytest.importorskip("onnxruntime", reason="comes with the extra [onnx]")
    export_model(digits_folder, tmp_path / "onnx", "onnx")
    model = load(tmp_path / "onnx")
    assert model.explained is None and next(iter(answer(model, digits[0][0]).scores)) == digits[1][0]


def test_people_at_once_get_their_own_answers(classifier, digits):
    """Heat maps too, although a model is hooked while one is made."""
    expected = [(answer(classifier, path).scores, heat_map(classifier, path, "7").tobytes()) for path in digits[0]]

    def ask(index):
        return answer(classifier, digits[0][index]).scores, heat_map(classifier, digits[0][index], "7").tobytes()

    with ThreadPoolExecutor(6) as pool:
        for found in pool.map(lambda _: [ask(index) for index in range(6)], range(4)):
            assert found == expected


@pytest.mark.parametrize("content", [b"no image", b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 20])
def test_what_is_no_image_is_a_sentence(classifier, tmp_path, content):
    (tmp_path / "0123456789abcdef.png").write_bytes(content)
    with pytest.raises(InferenceError, match=r"^This is no image that can be read: [^/]*\.$"):
        answer(classifier, str(tmp_path / "0123456789abcdef.png"))


@pytest.mark.parametrize("sides", [(8000, 7000), (20000, 20000)])
def test_an_image_of_too_many_pixels_is_a_sentence_and_not_decoded(classifier, huge_png, sides):
    for ask in (answer, lambda *arguments: heat_map(*arguments, "7")):
        with pytest.raises(InferenceError, match="too large: at most 50 million pixels"):
            ask(classifier, huge_png(sides))


@pytest.fixture
def huge_png(tmp_path):
    def write(sides):
        PIL.Image.new("1", sides).save(tmp_path / "huge.png")
        return str(tmp_path / "huge.png")

    return write


def test_classes_with_the_same_label_are_told_apart(classifier, digits, digits_folder, tmp_path):
    shutil.copytree(digits_folder, tmp_path / "cranes")
    config = json.loads((tmp_path / "cranes" / "config.json").read_text())
    best = [index for _, index in answer(classifier, digits[0][0]).classes[:2]]
    config["id2label"].update({str(index): "crane" for index in best})
    config.pop("label2id", None)
    (tmp_path / "cranes" / "config.json").write_text(json.dumps(config))
    cranes = load(tmp_path / "cranes")
    found, expected = (answer(model, digits[0][0]) for model in (cranes, classifier))
    assert [name for name, _ in found.classes[:2]] == [f"crane ({index})" for index in best]
    assert list(found.scores.values()) == list(expected.scores.values())
    assert heat_map(cranes, digits[0][0], best[1]).tobytes() == heat_map(classifier, digits[0][0], best[1]).tobytes()


def test_what_a_model_does_not_take_is_a_sentence(classifier, tmp_path):
    PIL.Image.new("F", (40, 40)).save(tmp_path / "floats.tiff")
    for ask in (answer, lambda *arguments: heat_map(*arguments, 3)):
        with pytest.raises(InferenceError, match="The model does not take this image"):
            ask(classifier, str(tmp_path / "floats.tiff"))
        with pytest.raises(InferenceError, match="it has been removed since; upload it again"):
            ask(classifier, str(tmp_path / "gone.png"))


@needs_gradio
def test_a_space_holds_all_that_it_runs_with(digits_folder, detector, digits, tmp_path, capsys):
    out = tmp_path / "space"
    same = tmp_path / "other" / detector.name
    shutil.copytree(detector, same)
    command = ["demo", str(digits_folder), str(detector), str(same), "--space", str(out), "--examples", *digits[0][:2]]
    assert main(command) == 0 and "a Space with 3 models" in capsys.readouterr().out
    names = ["models/digits", f"models/{detector.name}", f"models/{detector.name}-2"]
    assert repr(names) in (out / "app.py").read_text()
    card = yaml.safe_load((out / "README.md").read_text().split("---")[1])
    assert (card["sdk"], card["app_file"]) == ("gradio", "app.py") and card["sdk_version"][0] == "6"
    requirements = (out / "requirements.txt").read_text().split()
    assert any(line.startswith("transformers") for line in requirements) and "gradio" not in "".join(requirements)
    assert {path.name for path in (out / "examples").iterdir()} == {"0.png", "1.png"}
    assert not list(out.rglob("__pycache__")) and (out / "hgnetv2_hf" / "assets").is_dir()
    assert main(command) == 1 and "exists already" in capsys.readouterr().err
    (same / ".env").write_text("HF_TOKEN=secret")
    (same / "checkpoint-9").mkdir()
    assert main([*command, "--overwrite"]) == 0
    assert not list(out.rglob(".env")) and not list(out.rglob("checkpoint-9"))
    (tmp_path / "other" / "app.py").write_text("somebody's own")
    command[command.index("--space") + 1] = str(tmp_path / "other")
    assert main([*command, "--overwrite"]) == 1 and "refuses to delete it" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "space"]


@needs_gradio
@pytest.mark.slow
def test_a_space_is_pushed_as_one(digits_folder, tmp_path):
    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "home")}
        command = [sys.executable, "-m", "hgnetv2_hf", "demo", str(digits_folder), "--space", str(tmp_path / "space")]
        run = subprocess.run(
            [*command, "--push-to-hub", "me/demo"], env=environment, capture_output=True, text=True, timeout=600
        )
        assert run.returncode == 0 and f"{hub.url}/spaces/" in run.stdout, run.stderr
        (repository,) = hub.repositories.values()
        written = {
            str(path.relative_to(tmp_path / "space")) for path in (tmp_path / "space").rglob("*") if path.is_file()
        }
        assert written <= set(repository.files) and any("/api/spaces/" in path for _, path in hub.requests)


@pytest.mark.parametrize(
    "options, words",
    [
        (["nowhere"], "There is no folder nowhere"),
        (["MODEL", "--examples", "nowhere.png"], "There is no image nowhere.png"),
        (["MODEL", "--space", "out", "--push-to-hub", "a/b/c"], "is not a repository name"),
        (["MODEL", "--host", "256.1.1.1"], "Cannot listen on 256.1.1.1"),
        (["MODEL", "--host", "::1", "--port", "7955"], "Cannot listen on ::1:7955"),
        (["MODEL", "--examples", __file__], "is no image that can be read"),
    ],
)
@needs_gradio
def test_bad_requests_are_one_line(digits_folder, tmp_path, monkeypatch, capsys, options, words):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *(str(digits_folder) if each == "MODEL" else each for each in options)]) == 1
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_options_of_a_space_without_one_are_wrong_usage(capsys):
    assert main(["demo", "model", "--overwrite"]) == 2
    assert "belong to --space" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "model", "--port", "99999"])


@contextmanager
def served(command, cwd, temporary, **environment):
    """The address of a page served by another process, which is interrupted at the end and leaves no file."""
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "HF_HUB_OFFLINE": "1", **environment}
    process = subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    errors = []
    reader = threading.Thread(target=lambda: errors.extend(process.stderr))
    reader.start()
    try:
        address = next((line.split()[0] for line in process.stdout if line.startswith("http")), None)
        assert address, "".join(errors)
        yield address
    finally:
        process.send_signal(2)
        process.wait(60)
        reader.join()
        process.stdout.close()
        process.stderr.close()
    assert "Traceback" not in "".join(errors), "".join(errors)
    assert not list(temporary.glob("hgnetv2-hf-demo-*"))


@needs_gradio
@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_a_photo_dropped_into_a_real_browser(digits_folder, detector, digits, huge_png, tmp_path):
    """Two people at once, each with another image; then a file that is none, and one of 400 million pixels."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    (tmp_path / "broken.png").write_bytes(b"no image")
    command = [
        sys.executable,
        "-m",
        "hgnetv2_hf",
        "demo",
        str(digits_folder),
        str(detector),
        "--examples",
        digits[0][0],
    ]
    with served(command, tmp_path, tmp_path / "temporary") as address, sync_api.sync_playwright() as playwright:
        assert "//127.0.0.1:" in address
        browser = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        people = [browser.new_page() for _ in range(2)]
        for page, path in zip(people, digits[0][1:]):
            page.goto(address)
            page.locator("input[type=file]").first.set_input_files(path)
        for page, label in zip(people, digits[1][1:]):
            sync_api.expect(page.get_by_test_id("label-output-value")).to_have_text(label, timeout=60_000)
            sync_api.expect(page.get_by_text(re.compile(r"\d+ objects?, \d+ ms to prepare"))).to_be_visible()
        page = people[0]
        heat = page.locator("img[src*='.webp'], img[src*='.png']")
        before = sorted(heat.evaluate_all("images => images.map(image => image.src)"))
        other = next(
            each for each in "0123456789" if page.get_by_role("radio", name=each).count() and each != digits[1][1]
        )
        page.get_by_role("radio", name=other).check()
        page.wait_for_function(
            "before => JSON.stringify([...document.querySelectorAll('img')].map(image => image.src).filter("
            "name => /[.](webp|png)/.test(name)).sort()) != before",
            arg=json.dumps(before, separators=(",", ":")),
        )
        for path, words in (
            (tmp_path / "broken.png", "no image that can be read"),
            (huge_png((20000, 20000)), "too large"),
        ):
            page = browser.new_page()
            page.goto(address)
            page.locator("input[type=file]").first.set_input_files(str(path))
            sync_api.expect(page.get_by_text(words).first).to_be_visible(timeout=60_000)
            assert "Traceback" not in page.inner_text("body")
        browser.close()


@needs_gradio
@pytest.mark.slow
def test_a_space_runs_where_the_package_is_not_installed(digits_folder, tmp_path):
    assert main(["demo", str(digits_folder), "--space", str(tmp_path / "space")]) == 0
    code = "import sys; sys.path.insert(0, '.'); import runpy; runpy.run_path('app.py', run_name='__main__')"
    app = [sys.executable, "-c", code]
    with served(app, tmp_path / "space", tmp_path / "temporary") as address:
        page = urllib.request.urlopen(address, timeout=30).read().decode()
    assert "PP-HGNetV2" in page and Path(tmp_path / "space" / "app.py").is_file()
