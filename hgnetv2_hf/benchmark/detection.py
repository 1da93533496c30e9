"""Times the backends of a detector in turn, as `inference` does a classifier's; and whole ways from image files to
boxes."""

import contextlib
import copy
import io
import json
import math
import os
import statistics
import tempfile
import time
from functools import partial

import torch
from tqdm.auto import tqdm
from transformers import RTDetrImageProcessor, pipeline
from transformers.image_utils import load_image

from ..errors import HGNetV2Error
from ..files.images import find_images, printable_path
from ..inference.comparison import detector_difference
from ..inference.detect import detect
from ..inference.detections import SIDES
from ..inference.export import export_model
from .backends import DEFAULT_BACKENDS, STOCK
from .inference import Network, measure, prepare, with_random_statistics


FAMILIES = ("dfine", "rtdetr", "rtdetrv2")  # those that Transformers has
_BOXES_PER_IMAGE = 10
_ROUNDING = 1e-4  # of a score, within which a box may be there or not


def benchmark_detectors(build, names, batch_sizes, backends=DEFAULT_BACKENDS, image_size=640, rounds=10, threads=None):
    """
    The same as `benchmark` for detectors with random weights, theirs and ours with the same.

    Args:
        build (callable): a name to a detector of Transformers with fresh weights and this package's backbone.
        names (`list[str]`): of detectors of `FAMILIES`, such as `"dfine-n"`.
        batch_sizes, backends, rounds, threads: see `benchmark`; there is no timm.
        image_size (`int`, defaults to 640): pixels per side, a multiple of 32.

    Returns:
        `dict`: see `benchmark`; `variant` is the detector's name, and `difference` that of the queries, paired one to
            one; `None` where stock's own choice of queries is a tie.

    Raises:
        `HGNetV2Error`: a backend is unsupported, or needs a package that is not installed; or the size is no multiple
            of 32.
    """
    if image_size % 32:
        raise HGNetV2Error(f"Images of {image_size}×{image_size} do not fit a detector: sides are multiples of 32.")
    if timm := [backend for backend in backends if backend.startswith("timm")]:
        raise HGNetV2Error(f"There are no detectors in timm; leave {timm[0]} out.")
    result = measure(partial(_detector, build), names, batch_sizes, backends, image_size, rounds, threads)
    if any(row["difference"] is None for row in result["rows"]):
        result["notes"].append("no difference: queries score the same at the edge of stock's selection")
    return result


def _detector(build, name, pixel_values, folder):
    stock, ours = _pair(build, name)
    size = dict(zip(("height", "width"), pixel_values.shape[2:]))

    def difference(output):
        arrays = {each: torch.as_tensor(output[each]).float().numpy() for each in ("logits", "pred_boxes")}
        return detector_difference(stock, lambda _: arrays, [pixel_values])

    return Network(
        stock, partial(prepare, stock, ours, RTDetrImageProcessor(size=size), pixel_values, folder), difference
    )


def _pair(build, name):
    """Transformers' own detector and ours, with the same weights: only their backbones' classes differ."""
    from transformers.models.hgnet_v2 import configuration_hgnet_v2, modeling_hgnet_v2

    torch.manual_seed(0)
    ours = with_random_statistics(build(name)).eval().requires_grad_(False)
    stock = copy.deepcopy(ours)
    theirs = stock.model.backbone.model
    config = configuration_hgnet_v2.HGNetV2Config.from_dict(theirs.config.to_dict())
    backbone = modeling_hgnet_v2.HGNetV2Backbone(config)
    for name, module in theirs.named_modules():
        if type(module).__name__.endswith("FrozenBatchNorm2d"):  # which the detector has put there
            backbone.set_submodule(name, module)
    backbone.load_state_dict(theirs.state_dict())
    stock.model.backbone.model = backbone.eval().requires_grad_(False)
    return stock, ours


def benchmark_files(build, name, photos, backends, rounds=3, threads=None):
    """
    From image files to boxes: `detect` without pictures against Transformers' own `pipeline`, in turn.

    Args:
        build, name: see [`benchmark_detectors`].
        photos (`str`): a folder of images.
        backends (`list[str]`): of those of `benchmark`, of which `optimised`, `onnx` and `openvino` are measured.
        rounds (`int`): over all images; the median counts.
        threads (`int`, *optional*): CPU threads.

    Returns:
        `list[dict]`: `backend`, `images_per_second` (the loading of the model apart), `ratio` to the pipeline's, and
            `pixels`: how far an edge of a box lies from that of the nearest box with the same label that Transformers'
            own model and image processor find in the same image, at most. A threshold lets through about ten boxes of
            the first image.

    Raises:
        `HGNetV2Error`: there are no images, or one cannot be read.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    files = list(find_images([photos]))
    with tempfile.TemporaryDirectory() as folder:
        stock, ours = _pair(build, name)
        processor = RTDetrImageProcessor()
        for each in (ours, processor):
            each.save_pretrained(os.path.join(folder, "optimised"))
        expected = [_boxes(stock, processor, file) for file in files]
        threshold = sorted((score for _, score, _ in expected[0]), reverse=True)[_BOXES_PER_IMAGE]
        calls = {STOCK: partial(_through_pipeline, stock, processor, files, threshold)}
        for backend in ("optimised", "onnx", "openvino"):
            if backend not in backends:
                continue
            target = os.path.join(folder, backend)
            if backend != "optimised":
                with contextlib.redirect_stderr(io.StringIO()):
                    export_model(os.path.join(folder, "optimised"), target, backend)
            calls[backend] = partial(_through_detect, target, photos, threshold, os.path.join(folder, "found"))
        runs = {backend: [] for backend in calls}
        for _ in tqdm(range(rounds), desc=f"{name}, {len(files)} files", unit="round", leave=False):
            for backend, call in calls.items():
                runs[backend].append(call())
    speeds = {backend: statistics.median(speed for speed, _ in each) for backend, each in runs.items()}
    return [
        {
            "backend": backend,
            "images_per_second": speed,
            "ratio": speed / speeds[STOCK],
            "pixels": _largest_distance(runs[backend][0][1], files, expected, threshold),
        }
        for backend, speed in speeds.items()
    ]


def _boxes(model, processor, file):
    """All boxes of one image: label, score, edges in pixels."""
    image = load_image(str(file))
    with torch.inference_mode():
        output = model(**processor(image, return_tensors="pt"))
    found = processor.post_process_object_detection(output, 0.0, [(image.height, image.width)])[0]
    labels = [model.config.id2label[label] for label in found["labels"].tolist()]
    return list(zip(labels, found["scores"].tolist(), found["boxes"].tolist()))


def _through_pipeline(model, processor, files, threshold):
    objects = pipeline("object-detection", model=model, image_processor=processor, device="cpu")
    start = time.perf_counter()
    for file in files:
        objects(str(file), threshold=threshold)
    return len(files) / (time.perf_counter() - start), None


def _through_detect(model, photos, threshold, output):
    counts = detect(
        [photos], model, output, threshold, "jsonl", overwrite=True, show=lambda line: None, pictures=False
    )
    with open(os.path.join(output, "detections.jsonl"), encoding="utf-8") as file:
        return counts["images_per_second"], [json.loads(line) for line in file]


def _largest_distance(rows, files, expected, threshold):
    """In pixels, `None` of the pipeline, whose edges are whole pixels; infinite where a box is missing on one side."""
    if rows is None:
        return None
    of_file = {printable_path(file): [] for file in files}  # one without objects has no row
    for row in rows:
        of_file[row["image"]].append((row["label"], row["score"], [row[side] for side in SIDES]))
    largest = 0.0
    for boxes, found in zip(expected, of_file.values()):
        for some, others in ((boxes, found), (found, boxes)):
            for label, score, edges in some:
                if score > threshold + _ROUNDING:
                    largest = max(largest, _nearest(label, edges, others))
    return largest


def files_table(files):
    """What [`benchmark_files`] returns of each detector, as text."""
    lines = [f"{'detector':<12}{'backend':<12}{'images/s':>10}{'ratio':>8}{'pixels':>9}"]
    for name, rows in files.items():
        for row in rows:
            pixels = "" if row["pixels"] is None else f"{row['pixels']:.2f}"
            lines.append(
                f"{name:<12}{row['backend']:<12}{row['images_per_second']:>10.2f}{row['ratio']:>8.2f}{pixels:>9}"
            )
    return "\n".join(
        [*lines, "  from files to boxes, without pictures: stock is Transformers' pipeline, one image after the other"]
    )


def _nearest(label, edges, others):
    """How far the nearest of the other boxes with this label lies away."""
    distances = [
        max(abs(ours - theirs) for ours, theirs in zip(other, edges)) for name, _, other in others if name == label
    ]
    return min(distances, default=math.inf)
