"""Figures of classifiers and detectors on labelled images: what they get right, how sure they are, how fast they are.

Models in one call are all classifiers or all detectors, and see the same images. Images are decoded and prepared in
threads while the network runs, a few batches ahead; only answers are kept.
"""

import contextlib
import functools
import os
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional, Union

import torch
from tqdm.auto import tqdm

from ..data.load import load_data
from ..errors import DataError, InferenceError, raised_as
from ..evaluation.accuracy import five_best
from ..evaluation.coco import require_coco_tools
from ..evaluation.images import PARTS, choose_images
from ..evaluation.labels import match_labels
from ..evaluation.measure import measure_classifier, measure_detector
from ..evaluation.pictures import can_draw
from ..evaluation.write import METRICS, table_and_notes, write_evaluation
from ..files.atomic import claim
from ..files.images import UNREADABLE, printable_path
from ..wording import counted, printable, sentence
from .predictors import load_predictor, recognise, refuse_several_labels, threads


_BATCHES_AHEAD = 3
_TIMED = (3, 1.0)  # at least so many batches, and seconds


@raised_as(InferenceError)
def evaluate(
    model: Any,
    data: Any,
    part: str = "validation",
    dtype: str = "float32",
    batch_size: int = 16,
    output_dir: Union[str, os.PathLike, None] = None,
    threshold: float = 0.5,
    limit: Optional[int] = None,
    device: Optional[str] = None,
    workers: Optional[int] = None,
    overwrite: bool = False,
    image_processor: Any = None,
    validation_fraction: float = 0.0,
    seed: int = 42,
    class_folders: Optional[str] = None,
    data_format: Optional[str] = None,
    config_name: Optional[str] = None,
    image_column: Optional[str] = None,
    label_column: Optional[str] = None,
    objects_column: Optional[str] = None,
    box_format: Optional[str] = None,
    show: Callable[[str], Any] = print,
) -> Any:
    """
    Measures classifiers or detectors on labelled images.

    Labels of the model and classes of the data are matched by name. Where the folders are named by WordNet ids, all
    1000 of ImageNet-1k are there and the model has ImageNet's labels, the sorted ids are those labels in their order.

    Args:
        model (`str`, `os.PathLike`, `torch.nn.Module` or a list of them): a folder or repository with a classifier or
            a detector of Transformers, a folder of `hgnetv2-hf export`, or a model in memory.
        data (`str`, or what `load_data` or `load_detection_data` return): for classifiers an image folder, a data set
            of the `datasets` library or `"digits"`; for detectors data in COCO's, YOLO's or Pascal VOC's format, or a
            data set of the library.
        part (`"validation"`, `"train"` or `"all"`, defaults to `"validation"`): which images.
        dtype (`str`, defaults to `"float32"`): or `"bfloat16"`, `"float16"`, `"auto"` (bfloat16 where it is native,
            else float32): the precision of the network.
        batch_size (`int`, defaults to 16): images per call of the network.
        output_dir (`str` or `os.PathLike`, *optional*): a folder to write, complete or absent: `metrics.json`, and per
            model `results.csv`, `confusion.csv`, `evaluation.png` and a detector's `detections.json`.
        threshold (`float`, defaults to 0.5): score above which a detection counts in confusion, rows and pictures;
            COCO's figures use all.
        limit (`int`, *optional*): so many images only, evenly spread over the part.
        device (`str`, *optional*): such as `"cpu"` or `"cuda"`; by default the GPU, if there is one.
        workers (`int`, *optional*): threads that decode and prepare; by default one per core.
        overwrite (`bool`, defaults to `False`): replace an existing folder of this command.
        image_processor (*optional*): of a model in memory.
        validation_fraction (`float`, defaults to 0): hold out this share where the data have no validation part: with
            the `seed` and the fraction of a training, the images that it held out.
        seed (`int`, defaults to 42): decides what is held out.
        class_folders, data_format, config_name, image_column, label_column, objects_column, box_format (`str`,
            *optional*): how the data are read; see `load_data` and `load_detection_data`.
        show (callable, defaults to `print`): receives the table and notes, line by line.

    Returns:
        `dict`, or a list of them for a list of models: `model`, `task`, `dtype`, `images`, `unreadable`,
            `images_per_second` (from decoded images to results: preprocessing and network one after the other, in
            batches); of a classifier `accuracy`, `top5`, `ece` (see `evaluation.calibration`), `reliability` and
            `per_class`; of a detector COCO's figures, see `evaluation.coco.coco_figures`.

    Raises:
        `InferenceError`: a model or the data cannot be read, they do not belong together, or the folder cannot be
            written. An image that cannot be read is no error: it is counted and named.

    Example:

        >>> import hgnetv2_hf
        >>> report = hgnetv2_hf.convert_checkpoint("digits", "digits-model")
        >>> metrics = hgnetv2_hf.evaluate("digits-model", "digits", show=str)
        >>> metrics["images"], metrics["accuracy"] > 0.98, metrics["ece"] < 0.1
        (599, True, True)
    """
    for name, value in (("batch_size", batch_size), ("limit", limit), ("workers", workers)):
        if value is not None and value < 1:
            raise InferenceError(f"Unsupported {name} {value}: expected a positive whole number.")
    if part not in PARTS:
        raise InferenceError(f"There is no part {part!r}: {', '.join(PARTS)}.")
    models = list(model) if isinstance(model, (list, tuple)) else [model]
    by_task = {
        "classifier": {"class_folders": class_folders, "label_column": label_column},
        "detector": {"data_format": data_format, "objects_column": objects_column, "box_format": box_format},
    }
    reading = {
        "validation_fraction": validation_fraction, "seed": seed, "config_name": config_name,
        "image_column": image_column,
    }  # fmt: skip
    with contextlib.ExitStack() as stack:
        if output_dir is not None:
            stack.enter_context(claim(output_dir, overwrite=overwrite, marker=METRICS))
            if not can_draw():
                show('pictures are left out: pip install "hgnetv2-hf[plot]" for matplotlib')
        recognised = [recognise(each) for each in models]
        for each in recognised:
            refuse_several_labels(each)
        task = _task(recognised)
        loaded = _load(data, recognised[0], {**reading, **by_task[task]})
        for line in (*loaded.understood, *_left_out(loaded)):
            show(line)
        images = choose_images(loaded, part, limit)
        matched = [_matched(each, images, show) for each in recognised]  # before the first of them takes its time
        measure = functools.partial(
            _measure, images=images, dtype=dtype, device=device, image_processor=image_processor,
            batch_size=batch_size, workers=workers or os.cpu_count() or 1, threshold=threshold,
        )  # fmt: skip
        measured = [measure(each, positions) for each, positions in zip(recognised, matched)]
        for line in table_and_notes(measured, images, part):
            show(line)
        if output_dir is not None:
            write_evaluation(output_dir, measured, images)
            show(f"-> {printable_path(output_dir)}")
    metrics = [each.metrics for each in measured]
    return metrics if isinstance(model, (list, tuple)) else metrics[0]


def _measure(recognised, positions, images, dtype, device, image_processor, batch_size, workers, threshold):
    """The [`Measured`] of one model."""
    predictor = load_predictor(recognised, dtype, device, image_processor)
    batch_size = min(batch_size, recognised.largest_batch or batch_size)
    answered, unreadable = _answer(recognised, predictor, images, batch_size, workers)
    common = {
        "model": recognised.name,
        "task": recognised.task,
        "runtime": recognised.runtime,
        "dtype": predictor.dtype,
        "device": predictor.device,
        "threads": threads(),
        "batch_size": batch_size,
        "images": len(answered),
        "unreadable": unreadable,
        "images_per_second": _speed(predictor, images, sorted(answered)[:batch_size]),
    }
    return _MEASURES[recognised.task](common, images, positions, answered, threshold)


_MEASURES = {"classifier": measure_classifier, "detector": measure_detector}


def _task(models):
    tasks = {each.task: each.name for each in models[::-1]}
    if not tasks:
        raise InferenceError("There is no model to evaluate.")
    if len(tasks) > 1:
        raise InferenceError(
            f"{tasks['classifier']} is a classifier and {tasks['detector']} a detector; evaluate them one by one."
        )
    if "detector" in tasks:
        require_coco_tools()
    return models[0].task


def _load(data, model, options):
    """The data that belong to a model's task."""
    if not isinstance(data, (str, os.PathLike)):
        holds = "detector" if hasattr(data.train or data.validation, "objects") else "classifier"
        if holds != model.task:
            raise InferenceError(_other_task(model, getattr(data, "title", "data")))
        return data
    data = os.fspath(data)
    if data == "digits" and model.task == "detector":
        raise InferenceError(_other_task(model, data))
    load, other = {"classifier": (load_data, _load_objects), "detector": (_load_objects, load_data)}[model.task]
    try:
        return load(data, **options)
    except DataError as error:
        if _can_be_read(data, other):
            raise InferenceError(_other_task(model, data)) from error
        raise


def _load_objects(source, **options):
    from ..data.detection import load_detection_data

    return load_detection_data(source, check=False, **options)


def _can_be_read(data, load):
    """Whether data on this machine are for the other task."""
    if not os.path.exists(data):
        return False
    try:
        load(data, validation_fraction=0)
    except (DataError, ImportError):
        return False
    return True


def _other_task(model, title):
    holds = {"classifier": "boxes of objects", "detector": "a class per image"}[model.task]
    return f"{title} holds {holds}, and {model.name} is a {model.task}."


def _left_out(data):
    if not data.skipped:
        return []
    return [f"left out: {counted(len(data.skipped), 'entry', 'entries')}, such as {printable(data.skipped[0])}"]


def _matched(model, images, show):
    positions, notes = match_labels(images.classes, model.labels, images.used(), images.title)
    for note in notes:
        show(f"{model.name}: {note}")
    return positions


def _answer(recognised, predictor, images, batch_size, workers):
    """
    Runs the network over all images.

    Returns:
        `tuple[dict[int, Any], list[dict]]`: what is kept of each answer (see `_kept`), by the image's index; and the
            images that cannot be read, each with its error.
    """
    answered, unreadable = {}, []
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(total=len(images), desc=os.path.basename(recognised.name), unit="image", mininterval=0.5) as progress,
    ):
        ahead = deque()

        def run(count):
            batch = [(index, future.result()) for index, future in (ahead.popleft() for _ in range(count))]
            good = [(index, prepared) for index, prepared in batch if not isinstance(prepared, str)]
            unreadable.extend(
                {"index": index, "image": printable_path(images.images.name(index)), "error": printable(error)}
                for index, error in batch
                if isinstance(error, str)
            )
            if good:
                found = _predict(predictor, *zip(*(prepared for _, prepared in good)))
                answered.update((index, _kept(answer)) for (index, _), answer in zip(good, found))
            progress.update(count)

        for index in range(len(images)):
            ahead.append((index, pool.submit(_prepare, predictor, images.images, index)))
            if len(ahead) == batch_size * _BATCHES_AHEAD:
                run(batch_size)
        while ahead:
            run(min(batch_size, len(ahead)))
    if not answered:
        raise InferenceError(
            f"None of the {counted(len(images), 'image')} of {images.title} can be read: {unreadable[0]['error']}"
        )
    return answered, unreadable


def _prepare(predictor, images, index):
    """The pixels and the size of an image, or the error as text."""
    try:
        image = images[index]
        return predictor.pixels(image), (image.height, image.width)
    except UNREADABLE as error:
        return sentence(error)


def _predict(predictor, arrays, sizes):
    try:
        return predictor(list(arrays), list(sizes))
    except torch.cuda.OutOfMemoryError as error:
        raise InferenceError(
            f"The GPU has no memory for a batch of {len(arrays)}; choose a smaller --batch-size."
        ) from error


def _kept(answer):
    """Of logits the five best classes and the largest probability; of detections everything."""
    if isinstance(answer, dict):
        return answer
    logits = torch.from_numpy(answer)
    return five_best(logits[None])[0].numpy(), float(logits.double().softmax(-1).max())


def _speed(predictor, images, indices):
    """Images per second from decoded images to results: the median of one batch computed several times."""
    batch = [images.images[index] for index in indices]
    sizes = [(image.height, image.width) for image in batch]
    least, seconds = _TIMED
    times = []
    while len(times) < least or sum(times) < seconds:
        start = time.perf_counter()
        _predict(predictor, [predictor.pixels(image) for image in batch], sizes)
        times.append(time.perf_counter() - start)
    return len(batch) / statistics.median(times)
