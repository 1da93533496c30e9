"""``hgnetv2-hf train-detector``: a recipe on Hugging Face ``Trainer``, from annotated images to a folder that
`pipeline` takes.

While it runs, everything lies in ``OUTPUT.training``, as with `train`; the same command continues after the last whole
checkpoint.
"""

import contextlib
import copy
import dataclasses
import functools
import math
import os
from typing import Any, Optional

import numpy as np
from transformers import TrainingArguments

from ...data.detection import draw_contact_sheet, load_detection_data
from ...errors import TrainingError, raised_as
from ...evaluation.coco import require_coco_tools
from ...files.processes import in_main_process
from ..fit import leave_out_a_lone_image, mean_loss, readable_errors
from ..moving_average import FILE as MOVING_AVERAGE_FILE
from ..moving_average import KeepMovingAverage, MovingAverage
from ..plan import check_training_arguments, make_request, training_arguments
from ..run import claim_output, enter, environment_restored, work_kept_if_it_can_continue
from ..trainer import uses_fsdp
from ..work_folder import DATA_PICTURE, last_checkpoint, where_drawn
from . import recipe
from .augmentation import DetectionAugmentation
from .examples import DetectionCollator, DetectionDataset, EvaluationDataset, Stages, collate_evaluation
from .options import DetectorOptions
from .recipe import RECIPES, SMALL
from .start import limit_queries, load_start
from .trainer import BestWeights, DetectionTrainer, Falling
from .write import describe, summary, write


BEST_WEIGHTS = "best.pt"


@dataclasses.dataclass
class TrainedDetector:
    """What [`train_detector`] did. ``str(result)`` is what the command prints."""

    output_dir: str
    metrics: dict[str, Any]  # what metrics.json holds

    def __str__(self):
        return summary(self.output_dir, self.metrics)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be done, the same in every process."""

    recipe: str  # "coco" or "small"
    row: recipe.Recipe
    args: TrainingArguments
    backbone_rate: float
    ema: float
    ema_after: float
    ema_warmup: int
    stages: Stages  # of the augmentation
    falling: Optional[Falling]  # of the rate
    sizes: Optional[list[int]]  # pixels per side, for a step each; ``None`` for one size
    probabilities: dict[str, float]  # of the augmentation


@raised_as(TrainingError)
def train_detector(
    data: str, model: str, output_dir: str, options: Optional[DetectorOptions] = None, overwrite: bool = False,
    show=print, **training_arguments,
) -> TrainedDetector:  # fmt: skip
    """
    Trains or fine-tunes a detector with its authors' criterion and a recipe for its data.

    Args:
        data (`str`): annotated images in COCO's, YOLO's or Pascal VOC's format, or a data set of the `datasets`
            library.
        model (`str`): a detector's folder or repository (D-FINE, RT-DETR, RT-DETRv2, DEIM, RT-DETRv4, DEIMv2), a
            published name, a weight file, or `"dfine-n"` … `"deimv2-x"` with fresh weights.
        output_dir (`str`): the folder to write: model, labels, image processor, card, `metrics.json`, pictures.
        options ([`DetectorOptions`], *optional*)
        overwrite (`bool`, defaults to `False`): replace an existing folder, and start anew where another run was
            interrupted.
        show (callable, defaults to `print`): receives lines of text.
        training_arguments: every argument of `TrainingArguments` but `output_dir`; the defaults are those of
            `detection/recipe.py`.

    Returns:
        [`TrainedDetector`]

    Raises:
        `TrainingError`: the data, the model or the output do not allow it; said before training starts.
    """
    with environment_restored():
        options = options or DetectorOptions()
        request = make_request(str(data), str(model), str(output_dir), options, overwrite, training_arguments)
        _check(request)
        return _train(request, show)


def _check(request):
    options, given = request.options, request.training_arguments
    if options.image_size is not None and options.image_size % 32:
        raise TrainingError(f"Unsupported image_size {options.image_size}: expected a multiple of 32.")
    if given.get("load_best_model_at_end"):
        raise TrainingError("The weights with the best AP are kept anyway; leave --load_best_model_at_end out.")
    require_coco_tools()


def _train(request, show):
    args = training_arguments(request, {**recipe.TRAINING_ARGUMENTS, "num_train_epochs": SMALL.epochs})
    check_training_arguments(args)
    if uses_fsdp(args):
        raise TrainingError("Unsupported: FSDP for detectors; DDP, the default of several processes, works.")
    is_main = args.process_index == 0
    in_main = functools.partial(in_main_process, is_main)
    show = show if is_main else lambda line: None
    with contextlib.ExitStack() as stack:
        in_main(lambda: stack.enter_context(claim_output(request)))
        data = in_main(lambda: _load_data(request, args.seed, show))
        resumes = in_main(lambda: enter(request, args, data))
        with work_kept_if_it_can_continue(request.work, is_main):
            return _train_in_work_folder(request, args, data, resumes, in_main, show)


def _load_data(request, seed, show):
    options = request.options
    data = load_detection_data(
        request.data,
        options.validation_fraction,
        seed,
        data_format=options.format,
        config_name=options.config_name,
        image_column=options.image_column,
        objects_column=options.objects_column,
        box_format=options.box_format,
        check=options.check,
        show=show,
    )
    if data.validation is not None and data.validation.table().crowd.all():  # of no objects, too
        show(f"there is no object in the images to validate with ({data.held_out}): no AP, and nothing is validated")
        data = dataclasses.replace(data, validation=None)
    return data


def _train_in_work_folder(request, args, data, resumes, in_main, show):
    work = request.work
    start = load_start(request.model, data.classes, request.options, args.seed, work, in_main)
    data = _in_order(data, start.classes)
    for line in start.notes:
        show(line)
    plan = make_plan(request, args, len(data.train), start, show)
    size = min([start.image_processor.size["height"], *(plan.sizes or ())])
    for line in limit_queries(start.model.config, size, request.options.num_queries):
        show(line)
    train_dataset, eval_dataset, collator = build_datasets(data, start, plan, args.seed)
    if request.options.draw_data:
        in_main(lambda: _draw_data(data, train_dataset, request, show))
    trainer, figures = fit(request, start, data, plan, (train_dataset, eval_dataset, collator), resumes, in_main, show)
    metrics = {**describe(request, plan, data, start), **figures}
    in_main(lambda: write(request, start, data, trainer, metrics, show))
    return TrainedDetector(request.output_dir, metrics)


def _in_order(data, classes):
    """The data with labels in the order of the model's classes."""
    if data.classes == classes:
        return data
    order = np.array([classes.index(name) for name in data.classes], dtype="int64")

    def renumbered(split):
        if split is None:
            return None
        objects = [dataclasses.replace(each, labels=order[each.labels]) for each in split.objects]
        return dataclasses.replace(split, objects=objects)

    return dataclasses.replace(
        data, train=renumbered(data.train), validation=renumbered(data.validation), classes=list(classes),
        category_ids=None,
    )  # fmt: skip


def make_plan(request, args, images, start, show):
    """
    Chooses the recipe, which fills in what was not asked for.

    Args:
        request ([`Request`])
        args (`TrainingArguments`): of any recipe.
        images (`int`): to learn from.
        start ([`StartingDetector`])
        show (callable): receives lines of text.

    Returns:
        [`Plan`]
    """
    options, given = request.options, request.training_arguments
    name, why = recipe.choose(options.recipe, images)
    row, is_small = RECIPES[start.recipe], name == "small"
    show(f"recipe: {name} ({why}), {start.recipe}")
    processes = args.world_size * max(1, args.n_gpu)
    batch_size = max(1, (SMALL.batch_size if is_small else row.batch_size) // processes)
    per_step = given.get("per_device_train_batch_size", batch_size) * processes * args.gradient_accumulation_steps
    steps_per_epoch = math.ceil(images / per_step)
    small_epochs = max(SMALL.epochs, math.ceil(SMALL.least_steps / steps_per_epoch))
    defaults = {
        **recipe.TRAINING_ARGUMENTS,
        "num_train_epochs": small_epochs if is_small else row.epochs,
        "weight_decay": row.weight_decay,
        "per_device_train_batch_size": batch_size,
    }
    args = training_arguments(request, defaults)
    total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
    epochs = total / steps_per_epoch
    args.learning_rate, backbone_rate = _rates(row, is_small, start, per_step, given, options)
    if not {"warmup_steps", "warmup_ratio"} & given.keys():
        warmup = round(SMALL.warmup_share * total) if is_small else row.warmup_steps
        args.warmup_steps = min(warmup, total // 4)
    leave_out_a_lone_image(args, images, args.per_device_train_batch_size * processes, show)
    stages = _stages(row, is_small, total, epochs, options)
    asked = {each: getattr(options, each) for each in _PROBABILITIES if getattr(options, each) is not None}
    dense = {} if row.dense is None else {"mosaic": row.dense.mosaic, "mixup": row.dense.mixup}
    probabilities = {**_PROBABILITIES, **dense, **asked}
    pixels = start.image_processor.size["height"]
    show(
        f"plan: {total} steps of {per_step} images of {pixels} pixels, learning rate {args.learning_rate:.3g} "
        f"(backbone {backbone_rate:.3g}) after {args.warmup_steps:g} steps of warm-up; strong augmentation for "
        f"{max(stages.until - stages.start, 0)} of {epochs:g} epochs"
    )
    if stages.dense_until > stages.start and (probabilities["mosaic"] or probabilities["mixup"]):
        show(f"Mosaic and MixUp in epochs {stages.start + 1} to {stages.dense_until}")
    elif asked.get("mosaic") or asked.get("mixup"):
        show("no Mosaic and no MixUp: there is no epoch of strong augmentation; say --strong-until")
    ema = (SMALL.ema if is_small else row.ema) if options.ema is None else options.ema
    size = start.image_processor.size["height"]
    several = options.multi_scale == "yes" if options.multi_scale else not is_small and row.sizes_repeat is not None
    return Plan(
        recipe=name,
        row=row,
        args=args,
        backbone_rate=backbone_rate,
        ema=ema,
        ema_after=ema if is_small or options.ema is not None else row.ema_after,
        ema_warmup=SMALL.ema_warmup if is_small else row.ema_warmup,
        stages=stages,
        falling=_falling(row, given),
        sizes=_sizes(size, row.sizes_repeat or 1) if several else None,
        probabilities=probabilities,
    )


# The originals'; the last two are DEIM's and its families'.
_PROBABILITIES = {"photometric": 0.5, "zoom_out": 0.5, "crop": 0.8, "flip": 0.5, "mosaic": 0.0, "mixup": 0.0}


def _stages(row, is_small, steps, epochs, options):
    """The authors' epochs, in proportion; of small data the strong augmentation begins with the first."""
    if options.strong_until is not None:
        until = options.strong_until
    elif is_small:
        until = epochs * SMALL.strong_share if steps >= SMALL.strong_from else 0
    else:
        until = epochs * row.strong_until / row.epochs
    if row.dense is None:
        return Stages(math.floor(until), dense_until=math.floor(until / 2))
    start = 0 if is_small else epochs * row.dense.start / row.epochs
    return Stages(math.floor(until), math.floor(start), math.floor(until * row.dense.flat_until / row.strong_until))


def _falling(row, given):
    if row.dense is None or "lr_scheduler_type" in given or row.dense.last_rate == 1:
        return None
    return Falling(row.dense.flat_until / row.epochs, row.strong_until / row.epochs, row.dense.last_rate)


def _rates(row, is_small, start, per_step, given, options):
    """Of encoder and decoder, and of the backbone, for so many images per step."""
    if is_small:
        rate = row.rate * (per_step / SMALL.batch_size) ** 0.5
        backbone_rate = rate * (SMALL.backbone_share if start.has_trained_backbone else 1.0)
    else:
        rate, backbone_rate = (each * per_step / row.batch_size for each in (row.rate, row.backbone_rate))
    if "learning_rate" in given:
        rate, backbone_rate = given["learning_rate"], backbone_rate * given["learning_rate"] / rate
    return rate, backbone_rate if options.backbone_rate is None else options.backbone_rate


def _sizes(size, repeat):
    """Three quarters to five quarters of the size in steps of 32 pixels, the size itself ``repeat`` times more."""
    smaller = range(int(size * 0.75 / 32) * 32, size, 32)
    larger = range(size + 32, int(size * 1.25 / 32) * 32 + 1, 32)
    return [*smaller, *[size] * repeat, *larger]


def build_datasets(data, start, plan, seed):
    """What is learnt from, what is validated with (``None``: nothing), and what makes batches of the first."""
    processor = start.image_processor
    size = (processor.size["height"], processor.size["width"])
    probabilities = dict(plan.probabilities)
    of_four, of_two = probabilities.pop("mosaic"), probabilities.pop("mixup")
    augmentation = DetectionAugmentation.for_processor(processor, size, **probabilities)
    train = DetectionDataset(data.train, augmentation, seed, plan.stages, of_four)
    collator = DetectionCollator(plan.sizes, plan.stages, of_two)
    return train, None if data.validation is None else EvaluationDataset(data.validation, processor), collator


def _draw_data(data, dataset, request, show):
    pairs = [dataset.drawn(index) for index in range(min(request.options.draw_data, len(dataset)))]
    draw_contact_sheet(pairs, data.classes, request.work / DATA_PICTURE)
    show(where_drawn(request.work, request.output_dir))


def fit(request, start, data, plan, datasets, resumes, in_main_process, show):
    """
    Trains, or goes on after the last whole checkpoint.

    Returns:
        `tuple[DetectionTrainer, dict]`: its model holds the final weights; figures for metrics.json.

    Raises:
        `TrainingError`: the model, the data or the disk do not allow it.
    """
    train_dataset, eval_dataset, collator = datasets
    args, work = copy.copy(plan.args), request.work
    args.output_dir = str(work)
    if eval_dataset is None:
        args.eval_strategy = "no"
        if request.options.early_stopping is not None:
            raise TrainingError("--early-stopping needs images to validate with, and there are none.")
    average = MovingAverage(start.model.to(args.device), plan.ema, plan.ema_warmup)
    checkpoint = request.training_arguments.get("resume_from_checkpoint")
    if resumes and not isinstance(checkpoint, str):
        checkpoint = in_main_process(lambda: last_checkpoint(work, (MOVING_AVERAGE_FILE,)))
    with readable_errors(work, ValueError, RuntimeError):
        trainer = DetectionTrainer(
            model=start.model,
            args=args,
            processing_class=start.image_processor,
            data_collator=collator,
            eval_collator=collate_evaluation,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            backbone_rate=plan.backbone_rate,
            decays_biases=plan.row.decays_biases,
            norm_learns_as_head=plan.row.norm_learns_as_head,
            falling=plan.falling,
            moving_average=average,
            objects=None if data.validation is None else data.validation.objects,
            ids=None if data.validation is None else data.validation.ids,
            classes=start.classes,
            early_stopping=request.options.early_stopping,
        )
    best = BestWeights(trainer, work / BEST_WEIGHTS, plan.stages.until, plan.ema_after)
    trainer.add_callback(KeepMovingAverage(average, checkpoint))
    trainer.add_callback(best)
    with readable_errors(work, ValueError):
        if checkpoint:
            show(f"continued after {checkpoint}")
        elif best.path.is_file() and trainer.is_world_process_zero():
            os.unlink(best.path)
        outcome = trainer.train(resume_from_checkpoint=checkpoint)
        best_step = best.load()
        if eval_dataset is not None:
            history = list(trainer.state.log_history)
            trainer.evaluate()
            trainer.state.log_history = history
    figures = {
        **(trainer.figures or {}),
        "best_step": best_step,
        "train_loss": mean_loss(trainer.state.log_history, outcome.training_loss),
        "learning_rate": args.learning_rate,
        "backbone_rate": plan.backbone_rate,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "images_per_second": outcome.metrics.get("train_samples_per_second"),
        "history": trainer.state.log_history,
    }
    return trainer, figures
