"""What a training starts with: its data, a teacher, a model."""

import dataclasses
from pathlib import Path

import torch
from transformers import set_seed

from ..conversion import convert_checkpoint
from ..data.checking import check_images
from ..data.examples import ImageDataset, collate
from ..data.load import load_data
from ..data.splits import Split, only_classes
from ..errors import TrainingError
from .preprocessing import Preprocessing, network_size, set_network_size
from .starting_point import load_starting_point, needs_conversion


def load_training_data(source, options, seed, in_main_process, show):
    """
    Args:
        source (`str`): see [`load_data`].
        options ([`Options`])
        seed (`int`): decides what is held out.
        in_main_process (callable): calls a function in the first process and returns its answer in every one.
        show (callable): receives lines of text: how the data were read.

    Returns:
        [`Data`]

    Raises:
        `DataError`, `TrainingError`: there are no such data, or nothing can be learnt from them.
    """
    data = load_data(
        source,
        options.validation_fraction,
        seed,
        needs_labels=options.teacher is None,
        image_column=options.image_column,
        label_column=options.label_column,
        config_name=options.config_name,
        streaming=options.streaming,
        class_folders=options.class_folders,
    )
    for line in data.understood:
        show(line)
    if options.streaming:
        show(f"data: {data.title}: a stream" + (f", {data.held_out} to validate" if data.validation else ""))
        return data
    if options.classes or options.images_per_class:
        if data.train.labels is None:
            raise TrainingError("--classes and --images-per-class need images with classes.")
        data = only_classes(data, options.classes or data.classes, options.images_per_class)
    if options.check:
        data = in_main_process(lambda: check_images(data))
    if data.skipped:
        show(f"skipped: {len(data.skipped)} images that cannot be read; metrics.json names them")
    held_out = "" if data.validation is None else f", {len(data.validation)} to validate ({data.held_out})"
    show(f"data: {data.title}: {len(data.train)} images to learn from{held_out}")
    return data


def load_teacher(name, work, in_main_process):
    """The [`StartingPoint`] of a teacher; ``None`` without one."""
    if name is None:
        return None
    return load_starting_point(converted(name, work, in_main_process), None, head="keep")


def with_answers(data, teacher, args):
    """The data, their validation images labelled by the teacher where nothing else labels them."""
    is_unlabelled = isinstance(data.validation, Split) and data.validation.labels is None
    if teacher is None or not is_unlabelled:
        return data
    loader = torch.utils.data.DataLoader(
        ImageDataset(data.validation, Preprocessing(teacher.image_processor)),
        args.per_device_eval_batch_size,
        collate_fn=collate,
    )
    model = teacher.model.eval().to(args.device)
    with torch.inference_mode():
        answers = [model(batch["pixel_values"].to(args.device)).logits.argmax(-1).cpu() for batch in loader]
    validation = dataclasses.replace(data.validation, labels=torch.cat(answers).tolist())
    held_out = f"{data.held_out}, labelled by the teacher"
    return dataclasses.replace(data, validation=validation, classes=teacher.classes, held_out=held_out)


def load_start(name, classes, teacher, options, seed, work, in_main_process):
    """
    Args:
        name (`str`): the model to start from; see [`load_starting_point`].
        classes (`list[str]` or `None`): of the data.
        teacher ([`StartingPoint`] or `None`): whose classes the model has to have.
        options ([`Options`])
        seed (`int`): of fresh weights.
        work (`Path`): where a weight file is converted to a folder.
        in_main_process (callable): calls a function in the first process and returns its answer in every one.

    Returns:
        [`StartingPoint`]

    Raises:
        `TrainingError`: there is no such classifier, or it does not fit the data, the teacher or the options.
    """
    folder = converted(name, work, in_main_process)
    set_seed(seed)
    classes = classes if teacher is None else teacher.classes
    start = load_starting_point(folder, classes, options.from_scratch, options.head)
    if teacher is not None and start.classes != teacher.classes:
        raise TrainingError(f"The classes of {name} and its teacher are not the same in the same order.")
    if options.image_size is not None:
        set_network_size(start.image_processor, options.image_size)
    if teacher is not None:
        made_for, gets = (network_size(each.image_processor) for each in (teacher, start))
        if made_for != gets:
            start.notes.append(f"the teacher is made for {made_for} pixels and gets the student's {gets}")
    return start


def converted(name, work, in_main_process, **options):
    """A folder for ``name``, which may be a weight file or a published name; ``options`` are those of
    [`convert_checkpoint`]."""
    if not needs_conversion(name):
        return name
    folder = work / "converted" / Path(name).name

    def convert():
        if not folder.is_dir():
            convert_checkpoint(name, folder, **options)

    in_main_process(convert)
    return str(folder)
