"""Objects in images, to look at: annotated pictures and a table, through ``pipeline("object-detection")``."""

import csv
import json
from pathlib import Path

import PIL.Image
import PIL.ImageOps
from tqdm.auto import tqdm

from ..backbone import check_name, load_image_processor
from ..data.drawing import draw_boxes
from ..errors import InferenceError, raised_as
from ..files.atomic import atomic_folder, claim
from ..files.images import UNREADABLE, find_images, printable_path
from ..wording import counted, printable, sentence
from .predictors import load_whole
from .runtime import is_exported


TABLES = {"csv": "detections.csv", "jsonl": "detections.jsonl"}
_COLUMNS = ("image", "label", "score", "xmin", "ymin", "xmax", "ymax", "error")


@raised_as(InferenceError)
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
        `InferenceError`: there are no images, the model is no detector, or the folder cannot be written.
    """
    with claim(output_dir, overwrite=overwrite, marker=TABLES[table]):
        return _detect(list(find_images(paths)), model, output_dir, threshold, table, show)


def _detect(images, model, output_dir, threshold, table, show):
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
            objects = _found(detector, image, threshold, model)
            _draw(image, objects).save(folder / name)
            rows += [
                {"image": path, "label": each["label"], "score": round(float(each["score"]), 6), **each["box"]}
                for each in objects
            ]
        _write_table(rows, folder / TABLES[table])
    failed = sum("error" in row for row in rows)
    show(
        f"{counted(len(rows) - failed, 'object')} in {counted(len(images) - failed, 'image')} -> "
        f"{printable_path(output_dir)} "
        f"(pictures and {TABLES[table]})" + (f"; {counted(failed, 'image')} could not be read" if failed else "")
    )
    return rows


def _found(detector, image, threshold, model):
    try:
        return detector(image, threshold=threshold)
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise InferenceError(f"{model} cannot be run: {sentence(error)[:300]}") from error


def _pipeline(model):
    from transformers import AutoConfig, pipeline

    check_name(model)
    if is_exported(model):
        raise InferenceError(
            f"{model} is an exported folder, which detect does not run yet; evaluate and load_exported do."
        )
    try:
        architectures = AutoConfig.from_pretrained(str(model)).architectures or []
        classifier = next((name for name in architectures if name.endswith("ForImageClassification")), None)
        if classifier is not None:
            article = "an" if classifier[0] in "AEIOU" else "a"
            raise InferenceError(f"{model} holds {article} {classifier}, not a detector; use classify.")
        loaded, processor = load_whole(str(model), "detector"), load_image_processor(str(model))
        return pipeline("object-detection", model=loaded, image_processor=processor)
    except (ValueError, OSError, KeyError, ImportError, RuntimeError, TypeError) as error:
        raise InferenceError(f"{model} is no detector that can be loaded: {sentence(error)[:300]}") from error


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
    objects = sorted(objects, key=lambda each: each["score"])  # the surest on top
    boxes = [[each["box"][side] for side in ("xmin", "ymin", "xmax", "ymax")] for each in objects]
    captions = [f"{each['label']} {each['score']:.2f}" for each in objects]
    return draw_boxes(image, boxes, [each["label"] for each in objects], captions)


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
