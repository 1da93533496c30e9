"""
Images made to learn from: handwritten digits on noise, for detectors in COCO's format, for classifiers one per image.

python tests/canvases.py OUT    the sets of the guides: OUT/sixteen, OUT/eight, OUT/two, and OUT/single
"""

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image

from hgnetv2_hf.data.digits import load_held_out, load_split


def write_canvases(folder, images, digits=range(10), size=128, seed=0, part="train", held_out=False, only_noise=False):
    """
    Args:
        folder (`Path`): gets `annotations/instances_{part}.json` and the images in `{part}`.
        images (`int`): how many; one in eight has no digit.
        digits (iterable of `int`): the classes, named after them.
        size (`int`, defaults to 128): pixels per side; digits have a fifth to two fifths of it.
        seed (`int`)
        part (`"train"` or `"val"`)
        held_out (`bool`, defaults to `False`): scans that the shipped classifier never saw.
        only_noise (`bool`, defaults to `False`): no digits at all.
    """
    random, digits = np.random.RandomState(seed), list(digits)
    if held_out:
        scans, labels = load_held_out()
        scans = [np.asarray(scan) for scan in scans]
    else:
        (scans, labels), _ = load_split()
    labels = np.asarray(labels)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / part).mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": each + 1, "name": str(each)} for each in digits]}
    for index in range(images):
        canvas = random.normal(60, 25, (size, size)).clip(0, 255)
        taken = np.zeros((size, size), dtype=bool)
        for _ in range(0 if only_noise or index % 8 == 7 else random.randint(1, 5)):
            side = random.randint(size // 5, size * 2 // 5)
            left, top = random.randint(0, size - side, 2)
            if taken[top : top + side, left : left + side].any():
                continue
            taken[top : top + side, left : left + side] = True
            digit = digits[random.randint(len(digits))]
            scan = scans[random.choice(np.flatnonzero(labels == digit))]
            pixels = np.asarray(PIL.Image.fromarray(scan).resize((side, side), PIL.Image.Resampling.BICUBIC))
            canvas[top : top + side, left : left + side] = pixels
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": index,
                    "category_id": digit + 1,
                    "bbox": [int(left), int(top), side, side],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        PIL.Image.fromarray(canvas.astype("uint8")).convert("RGB").save(folder / part / f"{index}.png")
        content["images"].append({"id": index, "file_name": f"{index}.png", "width": size, "height": size})
    (folder / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return folder


def write_single(folder, images, size=224, seed=0, part="train", held_out=False):
    """
    Images with one digit each, of a quarter to half of their side, somewhere on noise that is as bright as it.

    Args:
        folder (`Path`): gets `{part}/{digit}/{index}.png`.
        images (`int`): how many.
        size, seed, part, held_out: as in [`write_canvases`].

    Returns:
        `dict[str, tuple]`: left, top and side of the digit, by the path of the image.
    """
    random = np.random.RandomState(seed)
    scans, labels = load_held_out() if held_out else load_split()[0]
    places = {}
    for index in range(images):
        canvas = random.normal(100, 60, (size, size)).clip(0, 255)
        side = random.randint(size // 4, size // 2 + 1)
        left, top = (int(each) for each in random.randint(0, size - side + 1, 2))
        chosen = random.randint(len(scans))
        scan = PIL.Image.fromarray(np.asarray(scans[chosen])).resize((side, side), PIL.Image.Resampling.BICUBIC)
        canvas[top : top + side, left : left + side] = np.maximum(
            canvas[top : top + side, left : left + side] / 2, scan
        )
        path = folder / part / str(labels[chosen]) / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(canvas.astype("uint8")).convert("RGB").save(path)
        places[str(path)] = (left, top, side)
    return places


if __name__ == "__main__":
    out = Path(sys.argv[1])
    write_canvases(out / "sixteen", 16)
    write_canvases(out / "eight", 64, digits=range(8), seed=1)
    write_canvases(out / "two", 40, digits=(8, 9), seed=3)
    write_canvases(out / "two", 24, digits=(8, 9), seed=4, part="val", held_out=True)
    write_single(out / "single", 3000)
    write_single(out / "single", 100, seed=1, part="val", held_out=True)
