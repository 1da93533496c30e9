"""Objects in many image files, as pictures to look at and a table: decoding, network and drawing beside each other, in
order, resumable.

Pictures and a journal, one JSON line per image, grow in a hidden folder beside the output. When the last image is
there, the journal becomes the table and the folder takes the output's name. An interrupted run leaves the hidden
folder, and the next run with the same model and options continues after the journal's last whole line.
"""

import csv
import itertools
import json
import os
import time
from functools import partial
from glob import glob

from tqdm.auto import tqdm

from ..data.drawing import draw_boxes
from ..errors import InferenceError, raised_as
from ..files.atomic import claim, resumable_folder
from ..files.images import UNREADABLE, file_stamp, find_images, open_upright, printable_path, unused_name
from ..files.journal import resume
from ..wording import counted, printable, sentence
from .detections import SIDES, as_objects
from .predictors import load_predictor, recognise, run_key
from .stages import in_stages
from .video import detect_in_video, is_video


FORMATS = {"csv": "detections.csv", "jsonl": "detections.jsonl", "coco": "detections.json"}
_COCO_IMAGES = "images.json"  # what the ids of COCO's results mean
_COLUMNS = ("image", "label", "score", *SIDES, "error")
_JOURNAL = ".journal.jsonl"


@raised_as(InferenceError)
def detect(
    paths, model, output_dir, threshold=0.5, format="csv", overwrite=False, show=print, top_k=None, pictures=True,
    dtype="float32", batch_size=4, workers=None, device=None,
):  # fmt: skip
    """
    Finds objects and writes a folder with one annotated picture per image and a table with a row per object.

    Args:
        paths (`list[str]`): files, folders (with those inside) or globs; or one video, whose table then has a row per
            object with `frame` (from 0) and `seconds`, and whose frames are drawn into `annotated.mp4` (extra `video`;
            without sound; an interrupted run starts anew).
        model (`str` or `os.PathLike`): a detector's folder or repository, or a folder of `hgnetv2-hf export`.
        output_dir (`str` or `os.PathLike`): the folder to write; complete or absent.
        threshold (`float`, defaults to 0.5): objects have a score above it, 0…1.
        format (`"csv"`, `"jsonl"` or `"coco"`, defaults to `"csv"`): the form of the table; boxes in pixels of the
            upright image. `"coco"` is the results file of the COCO tools, and `images.json` says which file each
            `image_id` is.
        overwrite (`bool`, defaults to `False`): replace an existing folder of this command.
        show (callable, defaults to `print`): receives the summary.
        top_k (`int`, *optional*): so many objects per image at most, the surest.
        pictures (`bool`, defaults to `True`): otherwise only the table is written.
        dtype (`str`, defaults to `"float32"`): or `"bfloat16"`, `"float16"`, `"auto"` (bfloat16 where it is native,
            else float32): the precision of the network.
        batch_size (`int`, defaults to 4): images per call of the network.
        workers (`int`, *optional*): threads that decode and draw; by default one per core.
        device (`str`, *optional*): such as `"cpu"` or `"cuda"`; by default the GPU, if there is one.

    Returns:
        `dict`: `images`, `unreadable`, `objects`, `resumed` (images that an earlier, interrupted run had done), and
            `images_per_second` of this run, the loading of the model apart. Of a video `frames`, `objects`, and
            `unreadable`: 1 where it was not read whole, and its last row says why.

    Raises:
        `InferenceError`: there are no images, the model is no detector, or the folder cannot be written. An image that
            cannot be read is no error: its row says why.
    """
    for name, value in (("top_k", top_k), ("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise InferenceError(f"Unsupported {name} {value}: expected a positive whole number.")
    if format not in FORMATS:
        raise InferenceError(f"There is no format {format!r}: {', '.join(FORMATS)}.")
    workers = workers or os.cpu_count() or 1
    if any(is_video(path) for path in paths):
        paths = [file for path in paths for file in ([path] if os.path.exists(path) else sorted(glob(path)) or [path])]
        if len(paths) > 1:
            raise InferenceError("One video at a time, and no images beside it: the table has a row per frame then.")
        return detect_in_video(
            paths[0], partial(_load, model, dtype, device), _answers, draw_detections, output_dir, threshold, format,
            overwrite, show, top_k, pictures, batch_size, workers,
        )  # fmt: skip
    with claim(output_dir, [*paths, model], overwrite, FORMATS.values()):
        total = sum(1 for _ in find_images(paths))
        labels, predictor, largest = _load(model, dtype, device)
        objects_of = partial(as_objects, id2label=labels, threshold=threshold, top_k=top_k)
        key = run_key(model, threshold, top_k, pictures, dtype)
        batch_size = min(batch_size, largest or batch_size)
        with resumable_folder(output_dir, key) as folder:
            with open(folder / _JOURNAL, "a+", encoding="utf-8", errors="replace") as journal:
                used = set() if pictures else None
                stamped = ((file, file_stamp(file)) for file in find_images(paths))
                resumed = resume(journal, stamped, lambda row: used is None or used.add(row["picture"]))
                for picture in folder.glob("*.png"):
                    if used is None or picture.name not in used:
                        picture.unlink()  # drawn after the last whole row; its image may be gone by now
                files = itertools.islice(find_images(paths), resumed, None)
                start = time.perf_counter()
                with tqdm(total=total, initial=resumed, desc="detect", unit="image", mininterval=0.5) as progress:
                    for row in _rows(files, predictor, objects_of, folder, used, batch_size, workers):
                        journal.write(json.dumps(row) + "\n")
                        journal.flush()
                        progress.update()
                seconds = max(time.perf_counter() - start, 1e-9)
                objects, unreadable = _write_table(journal, folder, format, labels)
            (folder / _JOURNAL).unlink()
    show(
        f"{counted(objects, 'object')} in {counted(total - unreadable, 'image')} -> {printable_path(output_dir)} "
        f"({'pictures and ' if pictures else ''}{FORMATS[format]})"
        + (f"; {counted(unreadable, 'image')} could not be read" if unreadable else "")
        + (f"; continued after {counted(resumed, 'image')} of an interrupted run" if resumed else "")
    )
    speed = (total - resumed) / seconds
    counts = {"images": total, "unreadable": unreadable, "objects": objects, "resumed": resumed}
    return {**counts, "images_per_second": speed}


def _load(model, dtype, device):
    """Labels, predictor, and the largest batch that it takes, or `None`."""
    detector = recognise(model)
    if detector.task != "detector":
        raise InferenceError(f"{detector.name} is a classifier, not a detector; use classify.")
    return detector.labels, load_predictor(detector, dtype, device), detector.largest_batch


def _rows(files, predictor, objects_of, folder, used, batch_size, workers):
    """A row per file, in their order; `used` are the names of pictures, or `None` where none are drawn."""

    def finish(file, decoded, found):
        picture = None if used is None else unused_name(file, used)
        return partial(_finish, decoded[0], objects_of(found), picture and folder / picture)

    staged = in_stages(files, partial(_decode, predictor), partial(_answers, predictor), finish, batch_size, workers)
    for file, error, finished in staged:
        objects, picture = finished or ([], None)
        name = picture and picture.name
        yield {"image": file, "stamp": file_stamp(file), "picture": name, "error": error, "objects": objects}


def _finish(image, objects, picture):
    if picture is not None:
        draw_detections(image, objects).save(picture)
    return objects, picture


def _decode(predictor, file):
    """The image and its pixels for the network, or the error as text."""
    try:
        image = open_upright(file)
        return image, predictor.pixels(image)
    except UNREADABLE as error:
        return sentence(error)


def _answers(predictor, decoded):
    if not decoded:
        return []
    try:
        return predictor([pixels for _, pixels in decoded], [(image.height, image.width) for image, _ in decoded])
    except (RuntimeError, ValueError, IndexError, TypeError) as error:
        raise InferenceError(f"The model cannot be run: {sentence(error)[:300]}") from error


def draw_detections(image, objects):
    """Draws what [`as_objects`] returned into an RGB image, the surest on top; returns it."""
    objects = sorted(objects, key=lambda each: each["score"])
    boxes = [[each["box"][side] for side in SIDES] for each in objects]
    captions = [f"{each['label']} {each['score']:.2f}" for each in objects]
    return draw_boxes(image, boxes, [each["label"] for each in objects], captions)


def _write_table(journal, folder, format, labels):
    """Turns the journal into the table; returns how many objects there are, and how many unreadable images."""
    counts = {"objects": 0, "unreadable": 0}

    def rows():
        journal.seek(0)
        for line in journal:
            row = json.loads(line)
            counts["objects"] += len(row["objects"])
            counts["unreadable"] += row["error"] is not None
            yield row

    _WRITERS[format](rows(), folder, labels)
    return counts["objects"], counts["unreadable"]


def _flat(rows):
    """A row per object, and one per image that could not be read."""
    for row in rows:
        image = printable_path(row["image"])
        if row["error"] is not None:
            yield {"image": image, "error": printable(row["error"])}
        for each in row["objects"]:
            box = {side: round(value, 2) for side, value in each["box"].items()}
            yield {"image": image, "label": printable(each["label"]), "score": round(each["score"], 6), **box}


def _write_csv(rows, folder, labels):
    with open(folder / FORMATS["csv"], "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(_flat(rows))


def _write_jsonl(rows, folder, labels):
    with open(folder / FORMATS["jsonl"], "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in _flat(rows))


def _write_coco(rows, folder, labels):
    """``image_id`` is the position of the image, from 1; ``category_id`` the model's index of the class."""
    index = {label: number for number, label in enumerate(labels)}
    with (
        open(folder / FORMATS["coco"], "w", encoding="utf-8") as results,
        open(folder / _COCO_IMAGES, "w", encoding="utf-8") as images,
    ):
        results.write("[")
        categories = json.dumps([{"id": number, "name": label} for number, label in enumerate(labels)])
        images.write(f'{{"categories": {categories}, "images": [')
        separator = ""
        for number, row in enumerate(rows, 1):
            image = {"id": number, "file_name": printable_path(row["image"])}
            image.update({"error": printable(row["error"])} if row["error"] is not None else {})
            images.write(("" if number == 1 else ",") + "\n" + json.dumps(image))
            for each in row["objects"]:
                left, top, right, bottom = (each["box"][side] for side in SIDES)
                box = [round(value, 3) for value in (left, top, right - left, bottom - top)]
                result = {"image_id": number, "category_id": index[each["label"]], "bbox": box}
                results.write(separator + "\n" + json.dumps({**result, "score": round(each["score"], 6)}))
                separator = ","
        results.write("\n]\n")
        images.write("\n]}\n")


_WRITERS = {"csv": _write_csv, "jsonl": _write_jsonl, "coco": _write_coco}
