"""Files to labels: `classify` against `pipeline` with Transformers' own model, in turn, in one run.

    python tests/programs/benchmark_classify.py [--photos 1000]

Makes JPEG photos of many sizes from those that scikit-image and scikit-learn ship, gives both programs a B0 with the
same weights, lets `pipeline` choose its best batch size on a part of the photos, and prints images per second, the
ratio, and how many labels differ from those of the exact path (the plain float32 network behind the same image
processor).
"""

import argparse
import contextlib
import csv
import io
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers
from transformers import BitImageProcessor, pipeline

import hgnetv2_hf
from hgnetv2_hf.benchmark.inference import machine_and_versions
from hgnetv2_hf.inference.classify import classify
from hgnetv2_hf.inference.export import export_model


DECODING = "decoding and resizing alone"
ORIGINALS = 6
BATCH_SIZES = (1, 4, 8, 16, 32)
STOCK = "pipeline, Transformers' own model"


def make_photos(folder, count, seed=0):
    from skimage import data
    from sklearn.datasets import load_sample_images

    originals = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket(), *load_sample_images().images]
    random = np.random.RandomState(seed)
    folder.mkdir()
    for index in range(count):
        image = PIL.Image.fromarray(originals[index % ORIGINALS])
        left, top = random.uniform(0, 0.2, 2)
        right, bottom = random.uniform(0.8, 1, 2)
        width = random.randint(320, 720)
        box = (left * image.width, top * image.height, right * image.width, bottom * image.height)
        image.crop(tuple(map(int, box))).resize((width, int(width * random.uniform(0.6, 1.5)))).save(
            folder / f"{index:05}.jpg", quality=90
        )


def make_model(folder, files):
    """B0 with random weights and a last layer fitted (ridge regression) to tell apart the originals that the photos
    are made of."""
    torch.manual_seed(0)
    trunk = hgnetv2_hf.PPHGNetV2Model(hgnetv2_hf.PPHGNetV2Config.from_variant("b0")).eval()
    config = hgnetv2_hf.HGNetV2Config.from_variant("b0", num_labels=ORIGINALS)
    model = hgnetv2_hf.HGNetV2ForImageClassification(config).eval()
    model.load_state_dict(trunk.state_dict(), strict=False)
    processor = hgnetv2_hf.HGNetV2ImageProcessor()
    files = files[: 20 * ORIGINALS]
    with torch.no_grad():
        pixel_values = processor(files, return_tensors="pt")["pixel_values"]
        features = model.flatten(model.avg_pool(model.encoder(model.embedder(pixel_values))[0])).double()
        mean = features.mean(0)
        targets = 10 * torch.eye(ORIGINALS, dtype=torch.float64)[[index % ORIGINALS for index in range(len(files))]]
        gram = (features - mean).T @ (features - mean) + torch.eye(len(mean), dtype=torch.float64)
        weight = torch.linalg.solve(gram, (features - mean).T @ targets).T
        model.fc.weight.copy_(weight)
        model.fc.bias.copy_(targets.mean(0) - weight @ mean)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def stock_pipeline(folder):
    hgnetv2_hf.unregister()
    try:
        config = transformers.AutoConfig.from_pretrained(folder)
        model = transformers.AutoModelForImageClassification.from_pretrained(folder, config=config)
    finally:
        hgnetv2_hf.register()
    assert type(model).__module__.startswith("transformers.")
    processors = [BitImageProcessor]
    with contextlib.suppress(ImportError):
        processors.append(transformers.BitImageProcessorFast)
    size = {"size": {"shortest_edge": 232}, "crop_size": 224, "resample": 3}
    mean = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    return [pipeline("image-classification", model=model, image_processor=each(**size, **mean)) for each in processors]


def seconds_of_decoding(folder, files):
    processor = hgnetv2_hf.HGNetV2ImageProcessor.from_pretrained(folder)
    start = time.perf_counter()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(lambda file: processor(file, return_tensors="np", data_format="channels_last"), files):
            pass
    return time.perf_counter() - start


def labels(path):
    with open(path, encoding="utf-8", newline="") as file:
        return [row["label_1"] for row in csv.DictReader(file)]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print(machine_and_versions())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        make_photos(folder / "photos", arguments.photos)
        files = sorted(map(str, (folder / "photos").iterdir()))
        make_model(folder / "b0", files)
        part = files[:: max(1, len(files) // 100)]
        pipe, size = min(
            ((pipe, size) for pipe in stock_pipeline(folder / "b0") for size in BATCH_SIZES),
            key=lambda trial: seconds(trial[0], part, trial[1]),
        )
        print(f"pipeline is fastest with {type(pipe.image_processor).__name__} and batches of {size}")
        exact = exact_labels(folder / "b0", files)
        print(f"{len(set(exact))} different labels")
        ways = {"classify float32": (folder / "b0", "float32"), "classify bfloat16": (folder / "b0", "bfloat16")}
        with contextlib.suppress(hgnetv2_hf.HGNetV2Error), contextlib.redirect_stderr(io.StringIO()):
            export_model(folder / "b0", folder / "openvino", "openvino")
            ways["classify OpenVINO float32"] = (folder / "openvino", "float32")
            ways["classify OpenVINO bfloat16"] = (folder / "openvino", "bfloat16")
        speeds = {name: [] for name in (STOCK, DECODING, *ways)}
        differing = {}
        for _ in range(arguments.rounds):
            speeds[STOCK].append(len(files) / seconds(pipe, files, size))
            speeds[DECODING].append(len(files) / seconds_of_decoding(folder / "b0", files))
            for name, (model, dtype) in ways.items():
                result = classify(
                    [str(folder / "photos")], model, folder / "out.csv", 1, dtype=dtype, overwrite=True, show=str
                )
                speeds[name].append(result["images_per_second"])
                differing[name] = sum(one != other for one, other in zip(labels(folder / "out.csv"), exact))
    for name, values in speeds.items():
        ratio = statistics.median(values) / statistics.median(speeds[STOCK])
        print(
            f"{name:<36}{statistics.median(values):>8.1f} images/s{ratio:>7.2f} times"
            + (f", {differing[name]} of {len(files)} labels differ" if name in differing else "")
        )


def seconds(pipe, files, batch_size):
    start = time.perf_counter()
    pipe(files, batch_size=batch_size, top_k=1)
    return time.perf_counter() - start


def exact_labels(folder, files):
    model = hgnetv2_hf.HGNetV2ForImageClassification.from_pretrained(folder).eval()
    processor = hgnetv2_hf.HGNetV2ImageProcessor.from_pretrained(folder)
    found = []
    with torch.inference_mode():
        for start in range(0, len(files), 16):
            logits = model(**processor(files[start : start + 16], return_tensors="pt")).logits
            found += [model.config.id2label[index] for index in logits.argmax(-1).tolist()]
    return found


if __name__ == "__main__":
    main()
