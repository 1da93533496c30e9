"""Objects in images, to look at: annotated pictures and a table, through ``pipeline("object-detection")``."""

import csv
import importlib.util
import json
from pathlib import Path

import PIL.Image
import PIL.ImageOps
from tqdm.auto import tqdm

from .conversion.errors import ConversionError
from .conversion.folder import atomic_folder, check_target
from .image_files import UNREADABLE, find_images, printable, printable_path, sentence


TABLES = {"csv": "detections.csv", "jsonl": "detections.jsonl"}
_COLUMNS = ("image", "label", "score", "xmin", "ymin", "xmax", "ymax", "error")


def detect(paths, model, output_dir, threshold=0.5, table="csv", overwrite=False, show=print):
    """
    Finds objects and writes a folder with one annotated picture per image and a table with a row per object.

    Args:
        paths (`list[str]`): files, folders or globs.
        model (`str` or `os.PathLike`): a detector's folder or repository.
        output_dir (`str` or `os.PathLike`): the folder to write; complete or absent.
        threshold (`float`, defaults to 0.5): scores below are left out, 0…1.
        table (`"csv"` or `"jsonl"`, defaults to `"csv"`): the form of the table; boxes in pixels of the upright image.
        overwrite (`bool`, defaults to `False`): replace an existing folder of this command.
        show (callable, defaults to `print`): receives the summary.

    Returns:
        `list[dict]`: the rows; an image that cannot be read is a row with its error.

    Raises:
        `ConversionError`: there are no images, the model is no detector, or the folder cannot be written.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ConversionError(
            'torchvision draws the pictures and is not installed: pip install "hgnetv2-hf[detection]".'
        )
    check_target(output_dir, None, overwrite, marker=TABLES[table])
    images = list(find_images(paths))
    detector = _pipeline(model)
    rows = []
    with atomic_folder(output_dir) as folder:
        names = _unique_names(images)
        for path, name in tqdm(list(zip(images, names)), desc="detect", unit="image", mininterval=0.5):
            try:
                image = _open(path)
            except UNREADABLE as error:
                rows.append({"image": path, "error": sentence(error)})
                continue
            objects = detector(image, threshold=threshold)
            _draw(image, objects).save(folder / name)
            rows += [
                {"image": path, "label": each["label"], "score": round(float(each["score"]), 6), **each["box"]}
                for each in objects
            ]
        _write_table(rows, folder / TABLES[table])
    failed = sum("error" in row for row in rows)
    show(
        f"{len(rows) - failed} objects in {len(images) - failed} images -> {printable_path(output_dir)} (pictures and {TABLES[table]})"
        + (f"; {failed} images could not be read" if failed else "")
    )
    return rows


def _pipeline(model):
    from transformers import pipeline

    try:
        return pipeline("object-detection", model=str(model))
    except (ValueError, OSError, KeyError, ImportError) as error:
        raise ConversionError(f"{model} is no detector that can be loaded: {sentence(error)[:300]}") from error


def _open(path):
    with PIL.Image.open(path) as image:
        return PIL.ImageOps.exif_transpose(image).convert("RGB")


def _unique_names(images):
    """A PNG per image, named after it; images of the same name are numbered."""
    names, used = [], set()
    for path in images:
        stem = Path(path).stem
        name, number = f"{stem}.png", 2
        while name in used:
            name, number = f"{stem}-{number}.png", number + 1
        used.add(name)
        names.append(name)
    return names


def _draw(image, objects):
    """The image with boxes and labels; torchvision draws."""
    import torchvision
    from torchvision.transforms.functional import pil_to_tensor, to_pil_image

    if not objects:
        return image
    import torch

    boxes = torch.tensor([[each["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for each in objects])
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2])
    labels = [f"{each['label']} {each['score']:.2f}" for each in objects]
    drawn = torchvision.utils.draw_bounding_boxes(pil_to_tensor(image), boxes, labels=labels, width=3)
    return to_pil_image(drawn)


def _write_table(rows, path):
    rows = [{**row, "image": printable_path(row["image"])} for row in rows]
    rows = [{name: printable(cell) if isinstance(cell, str) else cell for name, cell in row.items()} for row in rows]
    with open(path, "w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        else:
            writer = csv.DictWriter(file, _COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
