"""The training itself: a model, data and a plan into `Trainer`; final weights and figures out of it."""

import contextlib
import copy
import dataclasses
import math
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import TrainingArguments

from ..data.examples import ImageDataset, collate
from ..data.splits import Data
from ..data.streams import Stream, StreamDataset
from ..errors import TrainingError
from ..evaluation.accuracy import accuracies, five_best, per_class
from ..evaluation.confusion import confusion_matrix
from ..structure import contains_hgnetv2
from ..wording import sentence
from . import recipe
from .distillation import DistillationTrainer
from .freezing import freeze
from .moving_average import FILE as MOVING_AVERAGE_FILE
from .moving_average import KeepMovingAverage, MovingAverage
from .plan import Plan
from .preprocessing import Preprocessing, between, build_augmentation
from .starting_point import StartingPoint
from .stochastic_depth import set_drop_path_rate
from .trainer import ClassifierTrainer, uses_fsdp
from .work_folder import last_checkpoint


_MOST_COUNTED_CLASSES = 2000  # the table of confusions has the square of that


@dataclasses.dataclass(frozen=True)
class Fitted:
    """What [`fit`] did."""

    trainer: ClassifierTrainer  # its model holds the final weights, its `moving_average` their average
    figures: dict[str, Any]  # for metrics.json
    confusion: Optional[np.ndarray]  # of the validation images; ``None`` where there are none, or too many classes


def fit(
    start: StartingPoint, teacher: Optional[StartingPoint], data: Data, plan: Plan, work: Path, resumes: bool,
    in_main_process, show,
) -> Fitted:  # fmt: skip
    """
    Trains, or goes on after the last whole checkpoint.

    Args:
        start ([`StartingPoint`]): the model, which is changed in place, and its image processor.
        teacher ([`StartingPoint`] or `None`): whose answers to learn instead of labels.
        data ([`Data`]): labels in the order of the model's classes.
        plan ([`Plan`])
        work (`Path`): where checkpoints and logs go.
        resumes (`bool`): whether an interrupted run is taken up.
        in_main_process (callable): calls a function in the first process and returns its answer in every one.
        show (callable): receives lines of text.

    Raises:
        `TrainingError`: the model, the data or the disk do not allow it.
    """
    options = plan.options
    prepare_model(start.model, options, plan.args, show)
    images = None if options.streaming else len(data.train)
    args = schedule(plan, images, start.is_fresh, show)
    args.output_dir = str(work)
    average = None
    if options.ema is not None:
        average = MovingAverage(start.model.to(args.device), options.ema)
    checkpoint = plan.given.get("resume_from_checkpoint")
    if resumes and not isinstance(checkpoint, str):
        also = (MOVING_AVERAGE_FILE,) if average else ()
        checkpoint = in_main_process(lambda: last_checkpoint(work, also))
    train_dataset, eval_dataset = build_datasets(
        data, start.image_processor, options, args.seed, labelled=teacher is None
    )
    if eval_dataset is None:
        args.eval_strategy = "no"
        if options.early_stopping is not None:
            raise TrainingError("--early-stopping needs images to validate with, and there are none.")
    measure = Measure(len(start.classes))
    with readable_errors(work, ValueError, RuntimeError):
        trainer = build_trainer(
            start,
            teacher,
            options,
            args=args,
            data_collator=collate,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            compute_metrics=measure,
            preprocess_logits_for_metrics=_keep_five_best,
            moving_average=average,
            class_weights=class_weights(data.train, len(start.classes)) if options.class_weights else None,
        )
    with readable_errors(work, ValueError):
        if average is not None:
            trainer.add_callback(KeepMovingAverage(average, checkpoint))
        if checkpoint:
            show(f"continued after {checkpoint}")
        outcome = trainer.train(resume_from_checkpoint=checkpoint)
    evaluated = trainer.evaluate() if eval_dataset is not None else {}
    figures = {
        **({} if measure.confusion is None else {"per_class": per_class(measure.confusion, start.classes)}),
        **{name: evaluated[f"eval_{name}"] for name in ("accuracy", "top5", "loss") if f"eval_{name}" in evaluated},
        "train_loss": mean_loss(trainer.state.log_history, outcome.training_loss),
        "learning_rate": args.learning_rate,
        "steps": trainer.state.global_step,
        "epochs": trainer.state.epoch,
        "images_per_second": outcome.metrics.get("train_samples_per_second"),
        "history": trainer.state.log_history,
    }
    return Fitted(trainer, figures, measure.confusion)


def prepare_model(model, options, args, show):
    """Freezing, stochastic depth, common batch statistics and the memory format that [`Options`] ask for, in place."""
    if options.sync_batch_norm and args.world_size > 1 and args.device.type == "cuda" and not uses_fsdp(args):
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # before freezing, which takes either kind
    try:
        if options.freeze_at >= 0 or options.freeze_norm:
            frozen = freeze(model, options.freeze_at, options.freeze_stem_only, options.freeze_norm)
            show(f"frozen: {frozen.parameters:,} parameters, {frozen.batch_norms} batch norms")
        if options.drop_path:
            set_drop_path_rate(model, options.drop_path)
    except ValueError as error:
        raise TrainingError(str(error)) from error
    if options.channels_last and contains_hgnetv2(model) and not uses_fsdp(args):
        model.to(memory_format=torch.channels_last)


def schedule(plan: Plan, images: Optional[int], is_fresh: bool, show) -> TrainingArguments:
    """A copy of the plan's arguments with what depends on the number of images (``None`` of a stream): the rate, the
    steps of warm-up, and whether a last batch of one image is left out."""
    args = copy.copy(plan.args)
    batch = args.per_device_train_batch_size * max(1, args.n_gpu) * args.world_size
    per_step = batch * args.gradient_accumulation_steps
    if images is None:
        total, warmup = args.max_steps, args.max_steps // 20
    else:
        steps_per_epoch = math.ceil(images / per_step)
        total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
        warmup = min(round(plan.options.warmup_epochs * steps_per_epoch), total // 4)
    if not {"warmup_steps", "warmup_ratio"} & plan.given.keys():
        args.warmup_steps = warmup
    if "learning_rate" not in plan.given:
        optim = str(getattr(args.optim, "value", args.optim))
        args.learning_rate = recipe.learning_rate(plan.recipe, optim, is_fresh, per_step)
    if images is not None:
        leave_out_a_lone_image(args, images, batch, show)
    show(
        f"plan: {total} steps of {per_step} images, learning rate {args.learning_rate:.4g} after "
        f"{args.warmup_steps:g} steps of warm-up"
    )
    return args


def leave_out_a_lone_image(args, images, batch, show):
    """Leaves out the last batch of each epoch where it would have one image, in place."""
    if images > batch and images % batch == 1:
        args.dataloader_drop_last = True
        show("the last image of each epoch is left out: batch norm needs more than one")


def build_datasets(data, processor, options, seed, labelled):
    """What `Trainer` learns from, with labels or without, and what it validates with (``None``: nothing)."""
    augmentation, preprocessing = build_augmentation(processor, options), Preprocessing(processor)
    if isinstance(data.train, Stream):
        kind, train = StreamDataset, StreamDataset(data.train, augmentation, seed, repeats=True, labelled=labelled)
    else:
        split = data.train if labelled else dataclasses.replace(data.train, labels=None)
        kind, train = ImageDataset, ImageDataset(split, augmentation, seed)
    return train, None if data.validation is None else kind(data.validation, preprocessing)


def build_trainer(start, teacher, options, **arguments):
    """A [`ClassifierTrainer`], or with a teacher a [`DistillationTrainer`]."""
    arguments = {
        "model": start.model,
        "processing_class": start.image_processor,
        "lr_mult_list": options.lr_mult_list,
        "lab_lr_mult": options.lab_lr_mult,
        "exempt_biases_and_lab": options.exempt_biases_and_lab,
        "early_stopping": options.early_stopping,
        **arguments,
    }
    if teacher is None:
        return ClassifierTrainer(**arguments)
    return DistillationTrainer(
        **arguments,
        teacher=teacher.model,
        distillation_loss=options.distillation_loss,
        renormalise=between(start.image_processor, teacher.image_processor),
    )


def class_weights(split, classes):
    """Weights that give every class the same share of the loss, `(classes,)`; 1 on average over the images."""
    if isinstance(split, Stream) or split.labels is None:
        raise TrainingError("--class-weights needs images with classes that are no stream.")
    counts = torch.bincount(torch.tensor(split.labels), minlength=classes)
    weights = len(split) / (int((counts > 0).sum()) * counts.float())
    return torch.where(counts > 0, weights, 0.0)


def mean_loss(history, otherwise):
    """
    The mean training loss over all steps, those before an interruption too, which `Trainer` itself forgets.

    Args:
        history (`list[dict]`): `TrainerState.log_history`; a row's `loss` is the mean since the row before.
        otherwise (`float`): where no loss was logged.
    """
    rows = [row for row in history if "loss" in row and "step" in row]
    total = last = 0
    for row in rows:
        total, last = total + row["loss"] * (row["step"] - last), row["step"]
    return total / last if last else otherwise


def _keep_five_best(logits, labels):
    """What `Trainer` keeps of the logits of an evaluation."""
    return five_best(logits[0] if isinstance(logits, tuple) else logits)


class Measure:
    """`Trainer`'s `compute_metrics`. What it returns is logged as numbers, so the confusion of the last evaluation
    stays here."""

    def __init__(self, classes):
        self.classes, self.confusion = classes, None

    def __call__(self, prediction):
        best, labels = prediction.predictions, prediction.label_ids
        if self.classes <= _MOST_COUNTED_CLASSES:
            self.confusion = confusion_matrix(best[:, 0], labels, self.classes)
        return accuracies(best, labels)


@contextlib.contextmanager
def readable_errors(work, *kinds):
    """Errors of these kinds, and those of a disk that is full, as one sentence."""
    try:
        yield
    except (ValueError, RuntimeError, SafetensorError) as error:
        message = sentence(error)
        if isinstance(error, SafetensorError) or "inline_container" in message or "PytorchStreamWriter" in message:
            message = (
                f"Cannot write a checkpoint into {work} (is the disk full?): {message[:200]}; the same command "
                "continues after the last whole one."
            )
        elif not isinstance(error, kinds):
            raise
        raise TrainingError(message) from error
