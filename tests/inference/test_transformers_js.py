"""`export --format transformers-js`: Transformers.js in Node and in Chromium gives what Python's pipeline gives.

`HGNETV2_HF_NODE_MODULES` names a folder in which `npm install @huggingface/transformers` ran; Node and Chromium are
looked for on the path.
"""

import http.server
import json
import math
import os
import queue
import random as random_module
import shutil
import subprocess
import threading
import urllib.parse
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from conftest import PROGRAMS
from transformers.models.auto.image_processing_auto import AutoImageProcessor

import hgnetv2_hf
from hgnetv2_hf.errors import ExportError, InferenceError
from hgnetv2_hf.evaluation.boxes import surest_boxes
from hgnetv2_hf.inference import transformers_js
from hgnetv2_hf.inference.export import export_model
from hgnetv2_hf.inference.runtime import load_exported
from hgnetv2_hf.inference.transformers_js import BrowserPostProcessing, preprocessing, processing_of


NEEDS_NODE = pytest.mark.skipif(
    "HGNETV2_HF_NODE_MODULES" not in os.environ or shutil.which("node") is None,
    reason="needs Node, and HGNETV2_HF_NODE_MODULES: where npm installed @huggingface/transformers",
)
NEEDS_CHROMIUM = pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
CHROMIUM = [
    "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCORE, PIXELS = 1e-3, 1


@pytest.fixture(scope="module", autouse=True)
def onnx():
    for module in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(module, reason="comes with the extra [onnx]")


@pytest.fixture(scope="session")
def for_browser(make_once, digits_folder, detector):
    """A folder with `digits` and `detector` as Transformers.js takes them."""

    def make(path):
        path.mkdir()
        export_model(digits_folder, path / "digits", "transformers-js")
        export_model(detector, path / "detector", "transformers-js")

    return make_once("for-browser", make)


@pytest.fixture(scope="session")
def images(make_once):
    """Photographs' stand-ins: lying, upright and small, with transparency and grey ones."""

    def make(path):
        path.mkdir()
        random = np.random.RandomState(0)
        for index, (size, mode) in enumerate(
            [((640, 427), "RGB"), ((333, 500), "RGB"), ((120, 90), "RGBA"), ((64, 64), "L")]
        ):
            coarse = random.randint(0, 256, (6, 6, 3), dtype="uint8")
            PIL.Image.fromarray(coarse).resize(size).convert(mode).save(path / f"{index}.png")

    return sorted(make_once("images-for-browser", make).iterdir())


def in_node(models, task, name, options, files):
    command = ["node", PROGRAMS / "in_node.mjs", models, task, name, json.dumps(options), *files]
    run = subprocess.run(command, cwd=os.environ["HGNETV2_HF_NODE_MODULES"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


def in_chromium(models, task, name, options, files):
    """Serves page, modules, models and images, and waits for what the page posts."""
    answers = queue.Queue()
    roots = {
        "modules": Path(os.environ["HGNETV2_HF_NODE_MODULES"]) / "node_modules",
        "models": models,
        "images": files[0].parent,
    }

    class Server(http.server.SimpleHTTPRequestHandler):
        extensions_map = {
            **http.server.SimpleHTTPRequestHandler.extensions_map,
            ".mjs": "text/javascript",
            ".wasm": "application/wasm",
        }

        def translate_path(self, path):
            path = urllib.parse.unquote(urllib.parse.urlsplit(path).path)
            root, _, rest = path.lstrip("/").partition("/")
            return str(roots[root] / rest) if root in roots else str(PROGRAMS / "in_browser.html")

        def do_POST(self):
            answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    query = [("task", task), ("model", name), ("options", json.dumps(options)), *(("image", f.name) for f in files)]
    address = f"http://127.0.0.1:{server.server_port}/?{urllib.parse.urlencode(query)}"
    profile = models.parent / f"chromium-{server.server_port}"
    browser = subprocess.Popen(
        [*CHROMIUM, f"--user-data-dir={profile}", "--remote-debugging-port=0", address],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        answer = answers.get(timeout=240)
    finally:
        browser.kill()
        browser.wait()
        server.shutdown()
        shutil.rmtree(profile, ignore_errors=True)
    assert "answers" in answer, answer
    return answer["answers"]


RUNS = [
    pytest.param(in_node, marks=NEEDS_NODE, id="node"),
    pytest.param(in_chromium, marks=[NEEDS_NODE, NEEDS_CHROMIUM], id="chromium"),
]


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_classifier_gives_the_pipelines_labels_and_scores(for_browser, digits_folder, images, run):
    classify = transformers.pipeline("image-classification", model=str(digits_folder))
    for file, found in zip(images, run(for_browser, "image-classification", "digits", {"top_k": 10}, images)):
        expected = {each["label"]: each["score"] for each in classify(str(file), top_k=10)}
        assert {each["label"] for each in found} == set(expected)
        assert max(abs(each["score"] - expected[each["label"]]) for each in found) <= SCORE
        assert found[0]["score"] == max(each["score"] for each in found)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_detector_gives_the_pipelines_boxes(for_browser, detector, images, run):
    find = transformers.pipeline("object-detection", model=detector)
    expected = [find(str(file), threshold=0.0) for file in images]
    scores = sorted(each["score"] for boxes in expected for each in boxes)
    gap, threshold = max((after - before, (before + after) / 2) for before, after in zip(scores, scores[1:]))
    assert 0.01 < threshold < 0.99 and gap > 2 * SCORE
    total = 0
    for wanted, found in zip(
        expected, run(for_browser, "object-detection", "detector", {"threshold": threshold}, images)
    ):
        wanted = [each for each in wanted if each["score"] > threshold]
        assert len(found) == len(wanted)
        total += len(found)
        for each in found:
            assert any(
                other["label"] == each["label"]
                and abs(other["score"] - each["score"]) <= SCORE
                and all(abs(other["box"][side] - each["box"][side]) <= PIXELS for side in other["box"])
                for other in wanted
            ), (each, wanted)
    assert total > 5


@pytest.mark.parametrize(
    "processor",
    [
        hgnetv2_hf.HGNetV2ImageProcessor(),
        hgnetv2_hf.HGNetV2ImageProcessor(
            size={"shortest_edge": 57}, crop_size={"height": 32, "width": 48}, resample=3
        ),
        hgnetv2_hf.HGNetV2ImageProcessor(image_mean=[0.5], image_std=[0.25]),
        hgnetv2_hf.HGNetV2ImageProcessor(size={"height": 64, "width": 64}, do_center_crop=False),  # with its border
    ],
    ids=["default", "bicubic", "grey", "whole"],
)
@pytest.mark.parametrize("size", [(300, 200), (97, 120), (40, 40), (329, 382)])
def test_pixels_in_the_graph_are_those_of_the_image_processor(processor, size):
    import onnxruntime

    channels = len(processor.image_mean)
    graph = preprocessing(processing_of(processor, channels), opset=18, ir_version=10)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    random = np.random.RandomState(0)
    coarse = PIL.Image.fromarray(random.randint(0, 256, (8, 8, 3), dtype="uint8")).resize(size)
    noise = random.randint(-90, 91, (size[1], size[0], 3))
    image = PIL.Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype("uint8"))
    pixels = np.asarray(image, "float32").transpose(2, 0, 1)[None]
    (got,) = session.run(None, {"pixel_values": pixels})
    expected = processor(image, return_tensors="np")["pixel_values"]
    level = processor.rescale_factor / min(processor.image_std)
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() <= 1.001 * level  # a tie may round the other way
    assert (np.abs(got - expected) > 0.5 * level).mean() < 0.005


@pytest.mark.parametrize("target", [57, 232, 236, 256])
def test_sides_are_rounded_as_python_rounds_products_of_doubles(target):
    """Among them all that lie exactly between two whole numbers."""
    import onnx
    import onnxruntime

    build = transformers_js._Builder()
    transformers_js._rounded(build, "sides", target)
    whole = [onnx.helper.make_tensor_value_info(name, 7, [2]) for name in ("sides", build.nodes[-1].output[0])]
    graph = onnx.helper.make_graph(build.nodes, "sides", whole[:1], whole[1:], build.constants)
    opset = [onnx.helper.make_opsetid("", 18)]
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    random, ties = random_module.Random(0), 0
    for _ in range(4000):
        shortest = random.randint(1, 2000)
        longest = shortest + random.randint(0, 3000)
        if random.random() < 0.7:  # the nearest that is a tie, where there is one
            step = 2 * shortest // math.gcd(2 * shortest, 2 * target)
            longest = next(
                (n for n in range(longest, longest + 2 * step) if 2 * n * target % (2 * shortest) == shortest), longest
            )
        ties += 2 * longest * target % (2 * shortest) == shortest
        (got,) = session.run(None, {"sides": np.array([longest, shortest])})
        assert got.tolist() == [round(side * (target / shortest)) for side in (longest, shortest)], (longest, shortest)
    assert ties > (0 if target == 256 else 100)  # 2^8 divides most sides


def test_a_softmax_over_its_rows_gives_the_scores():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 30, 3, generator=generator) * 3
    boxes = torch.rand(2, 30, 4, generator=generator)
    rows, chosen = BrowserPostProcessing()(logits, boxes)
    scores, labels, corners = surest_boxes(logits, boxes, torch.ones(2, 2), 30)
    found = rows.softmax(-1)
    assert torch.equal(found.argmax(-1), labels) and rows.shape[2] > 1000  # never the last, which would be background
    assert torch.allclose(found.max(-1).values, scores, atol=1e-6)
    assert torch.allclose(chosen[..., :2] - chosen[..., 2:] / 2, corners[..., :2], atol=1e-6)


@pytest.mark.slow
def test_transformers_in_python_refuses_the_folder(for_browser):
    """Rule 1: it would find no weights, and pixels that are not prepared."""
    for name, auto in (
        ("digits", transformers.AutoModelForImageClassification),
        ("detector", transformers.AutoModelForObjectDetection),
    ):
        with pytest.raises(Exception, match="Transformers.js"):
            transformers.AutoConfig.from_pretrained(for_browser / name)
        with pytest.raises(Exception, match="Transformers.js"):
            auto.from_pretrained(for_browser / name)
        with pytest.raises(ValueError, match="Transformers.js"):
            AutoImageProcessor.from_pretrained(for_browser / name)
        with pytest.raises(InferenceError, match="is for Transformers.js"):
            load_exported(for_browser / name)


def test_an_image_that_is_smaller_than_the_crop_is_an_error():
    import onnxruntime

    processor = hgnetv2_hf.HGNetV2ImageProcessor(do_resize=False, crop_size=32)
    graph = preprocessing(processing_of(processor, 3), opset=18, ir_version=10)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    for height, width in ((31, 33), (3, 90), (2, 2), (16, 64), (64, 31)):
        with pytest.raises(Exception, match="Reshape"):
            session.run(None, {"pixel_values": np.zeros((1, 3, height, width), "float32")})
    (cropped,) = session.run(None, {"pixel_values": np.zeros((1, 3, 33, 40), "float32")})
    assert cropped.shape == (1, 3, 32, 32)
    with pytest.raises(ExportError, match="larger than its size"):
        processing_of(hgnetv2_hf.HGNetV2ImageProcessor(size={"shortest_edge": 32}, crop_size=48), 3)


@pytest.mark.parametrize("options", [{"num_labels": 1}, {"problem_type": "multi_label_classification"}])
def test_scores_that_are_no_softmax_are_refused(tmp_path, tiny_fields, options):
    config = hgnetv2_hf.HGNetV2Config(**{**tiny_fields, "num_labels": 3, **options})
    hgnetv2_hf.HGNetV2ForImageClassification(config).save_pretrained(tmp_path / "model")
    hgnetv2_hf.HGNetV2ImageProcessor().save_pretrained(tmp_path / "model")
    with pytest.raises(ExportError, match="this one's scores are sigmoids"):
        export_model(tmp_path / "model", tmp_path / "out", "transformers-js")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resample": 0}, "resample=0"),
        ({"do_convert_rgb": False}, "do_convert_rgb=False"),
        ({"size": {"shortest_edge": 4, "longest_edge": 9}}, "longest_edge"),
        ({"do_pad": True}, "do_pad"),
    ],
)
def test_what_the_graph_cannot_do_is_said(options, message):
    class Processor:
        def to_dict(self):
            return {"size": {"height": 4, "width": 4}, "rescale_factor": 1 / 255, "do_normalize": False, **options}

    with pytest.raises(ExportError, match=message):
        processing_of(Processor(), 3)


def test_options_that_do_not_fit_are_refused(digits_folder, tmp_path):
    for options in ({"batch_size": 2}, {"image_size": (64, 64)}, {"end_to_end": True}):
        with pytest.raises(ExportError):
            export_model(digits_folder, tmp_path / "out", "transformers-js", **options)
    assert not list(tmp_path.iterdir())
