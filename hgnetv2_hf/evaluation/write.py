"""What an evaluation prints, and its folder."""

import csv
import json
from pathlib import Path

import numpy as np

from ..files.atomic import atomic_folder
from ..files.images import printable_path
from ..wording import counted, printable
from .coco import corner_and_sides
from .confusion import write_confusion
from .pictures import can_draw, draw_comparison


METRICS = "metrics.json"
_MEASURED_AS = "from decoded images to results (preprocessing, then the network)"
_NAMED = 3  # unreadable images in what is printed; the files name all
_COLUMNS = {  # of the table: heading -> key of the metrics
    "classifier": {"top-1": "accuracy", "top-5": "top5", "ECE": "ece"},
    "detector": {
        "AP": "AP", "AP50": "AP50", "AP75": "AP75", "small": "AP_small", "medium": "AP_medium", "large": "AP_large",
        "AR": "AR_100",
    },
}  # fmt: skip


def table_and_notes(measured, images, part):
    """
    Args:
        measured (`list[Measured]`): a model each.
        images ([`LabelledImages`])
        part (`str`): of the data.

    Yields:
        `str`: the lines of the table, in per cent, and what its reader has to know.
    """
    metrics = [each.metrics for each in measured]
    columns = _COLUMNS[metrics[0]["task"]]
    names = [_labelled(row) for row in metrics]
    width = max(len("model"), *map(len, names))
    lines = [f"{'model':<{width}}  {'dtype':<8}" + "".join(f"{head:>8}" for head in columns) + f"{'images/s':>10}"]
    for name, row in zip(names, metrics):
        figures = "".join(f"{_percent(row[key]):>8}" for key in columns.values())
        lines.append(f"{name:<{width}}  {row['dtype']:<8}{figures}{row['images_per_second']:>10.1f}")
    yield from lines
    classes = counted(len(images.classes), "class", "classes")
    yield f"{images.title}, part {part}: {counted(len(images), 'image')}, {classes}"
    circumstances = [_circumstances(row) for row in metrics]
    if len({*circumstances}) > 1:
        circumstances = [f"{name}: {each}" for name, each in zip(names, circumstances)]
    yield f"images/s: {_MEASURED_AS}, {'; '.join(dict.fromkeys(circumstances))}"
    for name, each in zip(names, measured):
        for note in each.notes:
            yield f"{name}: {note}" if len(measured) > 1 else note
    broken = max((row["unreadable"] for row in metrics), key=len)
    if broken:
        some = ", ".join(row["image"] for row in broken[:_NAMED]) + (" …" if len(broken) > _NAMED else "")
        was = "was" if len(broken) == 1 else "were"
        yield f"{counted(len(broken), 'image')} could not be read and {was} left out: {some}"


def _circumstances(metrics):
    threads = f", {counted(metrics['threads'], 'thread')}" if metrics["device"] == "cpu" else ""
    return f"batches of {metrics['batch_size']} on {metrics['device']}{threads}"


def _labelled(metrics):
    """A model's name, and its runtime where that is not PyTorch."""
    return metrics["model"] if metrics["runtime"] == "torch" else f"{metrics['model']} ({metrics['runtime']})"


def _percent(value):
    return "–" if value is None else f"{value:.2%}"[:-1]


def write_evaluation(output_dir, measured, images):
    """Writes the folder, complete or not at all: `metrics.json`, and the files of a model, or a folder per model and
    `comparison.png`."""
    with atomic_folder(output_dir) as folder:
        metrics = [each.metrics for each in measured]
        description = {"data": images.title, "classes": images.classes, "models": metrics}
        _write_json(description, folder / METRICS)
        places = [folder] if len(measured) == 1 else _subfolders(folder, metrics)
        for each, place in zip(measured, places):
            _write_rows(each, images, place / "results.csv")
            write_confusion(each.confusion, each.names, place / "confusion.csv")
            if each.detections is not None:
                _write_detections(each.detections, images, place / "detections.json")
            if can_draw():
                each.draw(place / "evaluation.png", _title(each.metrics, images))
        if len(measured) > 1 and can_draw():
            heading, key = next(iter(_COLUMNS[metrics[0]["task"]].items()))
            rows = [
                (place.name, row["images_per_second"], 100 * (row[key] or 0)) for place, row in zip(places, metrics)
            ]
            draw_comparison(folder / "comparison.png", rows, f"{heading} %")


def _subfolders(folder, metrics):
    """A folder per model, named after it; those of the same name are numbered."""
    places = []
    for row in metrics:
        stem = Path(row["model"]).name.lstrip(".") or "model"
        place, number = folder / stem, 2
        while place in places or place.name in (METRICS, "comparison.png"):
            place, number = folder / f"{stem}-{number}", number + 1
        place.mkdir()
        places.append(place)
    return places


def _title(metrics, images):
    figures = ", ".join(f"{head} {_percent(metrics[key])}" for head, key in _COLUMNS[metrics["task"]].items())
    return printable(f"{_labelled(metrics)} on {images.title} ({counted(metrics['images'], 'image')}): {figures}")


def _write_json(value, path):
    path.write_text(printable(json.dumps(value, indent=2, ensure_ascii=False)) + "\n", encoding="utf-8")


def _write_rows(measured, images, path):
    """A row per image in their order, unreadable ones with their error."""
    broken = measured.metrics["unreadable"]
    columns = [name for name in measured.rows[0] if name != "index"]
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        for row in sorted([*measured.rows, *broken], key=lambda row: row["index"]):
            row = {**row, "image": printable_path(row["image"])}
            writer.writerow({name: printable(cell) if isinstance(cell, str) else cell for name, cell in row.items()})


def _write_detections(detections, images, path):
    """COCO's results: `image_id` and `category_id` are those of the annotation file, or else positions from 0."""
    with open(path, "w", encoding="utf-8") as file:
        separator = "[\n"
        for index, each in detections.items():
            image = index if images.ids is None else images.ids[index]
            for label, score, box in zip(each["labels"].tolist(), each["scores"], corner_and_sides(each["boxes"])):
                category = label if images.category_ids is None else images.category_ids[label]
                row = {
                    "image_id": int(image), "category_id": int(category), "bbox": [_shortest(side) for side in box],
                    "score": _shortest(score),
                }  # fmt: skip
                file.write(separator + json.dumps(row))
                separator = ",\n"
        file.write("[]\n" if separator == "[\n" else "\n]\n")


def _shortest(number):
    """The shortest decimal number that is the same in float32."""
    return float(str(np.float32(number)))
