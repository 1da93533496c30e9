"""``hgnetv2-hf train``: a recipe on Hugging Face ``Trainer``, from data to a folder that `pipeline` takes.

While it runs, everything lies in ``OUTPUT.training``: checkpoints, logs and what was asked for. The same command continues after
the last whole checkpoint. ``OUTPUT`` appears at the end, complete, and ``OUTPUT.training`` goes.
"""

import contextlib
import copy
import dataclasses
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import TrainingArguments, set_seed

from ..conversion import convert_checkpoint
from ..data.image_folders import ImageDataset, Stream, StreamDataset, check_images, collate, load_data, only_classes
from ..errors import TrainingError, raised_as
from ..files.atomic import atomic_folder, claim
from ..files.processes import has_accelerator, in_main_process, number_of_processes
from ..hub.upload import check_repository, push_folder
from ..model.compat import choose_fsdp2
from ..model.image_processing_hgnetv2 import HGNetV2ImageProcessor
from ..structure import contains_hgnetv2
from . import recipe
from .augmentation import Augmentation, timm
from .distillation import DistillationTrainer
from .freezing import freeze
from .moving_average import FILE as MOVING_AVERAGE_FILE
from .moving_average import KeepMovingAverage, MovingAverage
from .options import Options
from .report import (
    close_to_chance,
    draw_confusion,
    draw_curves,
    draw_data,
    model_card,
    per_class,
    summary,
    write_confusion,
)
from .starting_point import load_starting_point, needs_conversion
from .stochastic_depth import set_drop_path_rate
from .trainer import ClassifierTrainer, uses_fsdp
from .work_folder import enter_work_folder, last_checkpoint


_MOST_COUNTED_CLASSES = 2000  # the table of confusions has the square of that


@dataclasses.dataclass
class Trained:
    """What [`train`] did. ``str(result)`` is what the command prints."""

    output_dir: str
    metrics: dict[str, Any]  # what metrics.json holds

    def __str__(self):
        return summary(self.output_dir, self.metrics)


@raised_as(TrainingError)
def train(
    data: str, model: str, output_dir: str, options: Optional[Options] = None, overwrite: bool = False, show=print,
    **training_arguments,
) -> Trained:  # fmt: skip
    """
    Trains an image classifier with a recipe for its data, or distils one.

    Args:
        data (`str`): an image folder, the name of a data set of the `datasets` library, or `"digits"`.
        model (`str`): a classifier's folder or repository, a weight file or published name, or a variant (`"b0"`) with fresh
            weights. Any Transformers image classifier; the knobs that are about stages need an HGNetV2.
        output_dir (`str`): the folder to write: model, labels, image processor, card, `metrics.json`, `curves.png`.
        options ([`Options`], *optional*)
        overwrite (`bool`, defaults to `False`): replace an existing folder, and start anew where another run was interrupted.
        show (callable, defaults to `print`): receives lines of text.
        training_arguments: every argument of `TrainingArguments` but `output_dir`; the defaults are those of `recipe.py`.

    Returns:
        [`Trained`]

    Raises:
        `TrainingError`: the data, the model or the output do not allow it; said before training starts.
    """
    environment = dict(os.environ)
    try:
        return _Run(
            str(data), str(model), str(output_dir), options or Options(), overwrite, show, training_arguments
        )()
    finally:  # TrainingArguments leaves its precision and more there, and the next run in this process would take it over
        for name in [name for name in os.environ if name.startswith(("ACCELERATE_", "FSDP_"))]:
            if name in environment:
                os.environ[name] = environment[name]
            else:
                del os.environ[name]


class _Run:
    """One call of [`train`], the same in every process."""

    def __init__(self, data, model, output_dir, options, overwrite, show, given):
        self.data_name, self.model_name, self.output_dir, self.options = data, model, output_dir, options
        self.asked = options  # the recipe fills in what was not asked for
        self.overwrite, self.given = overwrite, dict(given)
        if options.recipe not in recipe.NAMES:
            raise TrainingError(f"There is no recipe {options.recipe!r}: {', '.join(recipe.NAMES)}.")
        self.work = Path(f"{output_dir}.training").absolute()
        self.repo_id = None
        if self.given.pop("push_to_hub", False):  # at the end and with the whole folder, so not by `Trainer`
            self.repo_id = self.given.pop("hub_model_id", None) or Path(output_dir).name
            check_repository(self.repo_id)
        if options.early_stopping is not None:
            self.given.setdefault("load_best_model_at_end", True)
        # The data will say which recipe, but what follows concerns the processes, which have to find each other first.
        self.args = self._training_arguments(recipe.RECIPES["imagenet"])
        if self.args.world_size != number_of_processes():
            raise TrainingError(
                f"The launcher started {number_of_processes()} processes, and {self.args.world_size} would train together: start one "
                "process per GPU, or pass --use_cpu."
            )
        self.is_main = self.args.process_index == 0
        self.show = show if self.is_main else lambda line: None
        if options.class_weights and options.teacher is not None:
            raise TrainingError("--class-weights is about labels, which --teacher does not look at.")
        if options.streaming and self.args.max_steps <= 0:
            raise TrainingError("A stream has no length: say --max_steps.")
        if options.streaming and (options.classes or options.images_per_class):
            raise TrainingError("--classes and --images-per-class need data that are no stream.")

    def _training_arguments(self, row):
        defaults = recipe.training_arguments(row)
        if self.given.get("dataloader_num_workers", defaults["dataloader_num_workers"]) == 0:
            defaults["dataloader_persistent_workers"] = False
        defaults["dataloader_pin_memory"] = has_accelerator()  # PyTorch warns at every loader otherwise
        if self.options.teacher is not None:
            defaults["label_smoothing_factor"] = 0.0
        if self.given.get("fsdp"):
            choose_fsdp2()
            defaults["fsdp_config"] = dict(recipe.FSDP_CONFIG)
        defaults["weight_decay"] = recipe.weight_decay(self.given.get("optim", defaults["optim"]))
        if number_of_processes() > 1 and not has_accelerator():
            defaults["use_cpu"] = True  # without it accelerate leaves every process alone
        try:
            return TrainingArguments(output_dir=str(self.work), **{**defaults, **self.given})
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise TrainingError(
                f"These training arguments do not fit: {' '.join(str(error).split())[:300]}"
            ) from error

    def __call__(self):
        with contextlib.ExitStack() as stack:
            self._in_main_process(lambda: stack.enter_context(self._claim()))
            return self._run()

    def _claim(self):
        source = self.model_name if os.path.isdir(self.model_name) else None
        return claim(self.output_dir, source, self.overwrite)

    def _run(self):
        data = self._data()
        self._choose_recipe(None if self.options.streaming else len(data.train))
        resumes = self._in_main_process(lambda: self._enter(data))
        try:
            return self._train(data, resumes)
        except BaseException:
            if self.is_main and not any(self.work.rglob("checkpoint-*")):
                shutil.rmtree(self.work, ignore_errors=True)
            raise

    def _choose_recipe(self, images):
        """Fills in what the command did not ask for."""
        images_seen = None
        if self.args.max_steps > 0:
            batch = self.given.get("per_device_train_batch_size", recipe.RECIPES["small"].batch_size)
            accumulated = batch * self.args.gradient_accumulation_steps * self.args.world_size
            images_seen = self.args.max_steps * accumulated
        name, why = recipe.choose(self.options.recipe, images, self.given.get("num_train_epochs"), images_seen)
        row = recipe.RECIPES[name]
        self.args = self._training_arguments(row)
        epochs = self._epochs(images)
        augmentation = recipe.augmentation(row, epochs)
        if self.options.teacher is not None:
            augmentation = {**augmentation, "random_erasing": 0.0}
        defaults = {"warmup_epochs": row.warmup_epochs, "ema": row.ema, **augmentation, "recipe": name}
        asked = {key: value for key, value in dataclasses.asdict(self.asked).items() if value is not None}
        self.options = Options(**{**defaults, **asked, "recipe": name})
        self.show(f"recipe: {name} ({why})")
        if epochs < row.augmented_from:
            self.show(f"augmentation: the largest crop that fits, as for less than {row.augmented_from:g} epochs")
        if self.options.rand_augment != "none" or self.options.random_erasing:
            timm("auto_augment")
        if self.options.ema is not None and (self.args.load_best_model_at_end or uses_fsdp(self.args)):
            if self.asked.ema is None:
                self.options.ema = None
                return
            other = "--load_best_model_at_end" if self.args.load_best_model_at_end else "FSDP"
            raise TrainingError(f"--ema averages the last weights of a whole model; {other} does not go with it.")

    def _epochs(self, images):
        """How often an image is seen; of a stream, as if never twice."""
        if self.args.max_steps <= 0:
            return self.args.num_train_epochs
        if images is None:
            return 1
        per_step = self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        return self.args.max_steps * per_step / images

    def _train(self, data, resumes):
        teacher, start = self._teacher_and_start(data)
        for line in start.notes:
            self.show(line)
        if self.options.draw_data:
            self._in_main_process(lambda: self._draw_data(data, start.image_processor))
        trainer, figures = self._fit(start, teacher, data, self.work, resumes)
        metrics = {**self._description(data, start), **figures}
        metrics["close_to_chance"] = close_to_chance(metrics)
        if self.options.compare_from_scratch:
            self.show("\nfrom scratch, on the same data:")
            fresh = self._start(data, teacher, from_scratch=True)
            metrics["from_scratch"] = self._fit(fresh, teacher, data, self.work / "from_scratch", resumes)[1]
        state = None
        if uses_fsdp(self.args):  # every process hands over its part
            state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        self._in_main_process(lambda: self._write(trainer, start, metrics, state))
        return Trained(self.output_dir, metrics)

    def _draw_data(self, data, processor):
        if self.options.streaming:
            raise TrainingError("--draw-data needs data that are no stream.")
        path = self.work / "data.png"
        draw_data(data, Preprocessing(processor), self._augmentation(processor), self.options.draw_data, path)
        self.show(f"drawn: {path}")

    def _in_main_process(self, call):
        return in_main_process(self.is_main, call)

    def _data(self):
        options = self.options
        data = load_data(
            self.data_name,
            options.validation_fraction,
            self.args.seed,
            needs_labels=options.teacher is None,
            image_column=options.image_column,
            label_column=options.label_column,
            config_name=options.config_name,
            streaming=options.streaming,
            class_folders=options.class_folders,
        )
        for line in data.understood:
            self.show(line)
        if options.streaming:
            self.show(f"data: {data.title}: a stream" + (f", {data.held_out} to validate" if data.validation else ""))
            return data
        if options.classes or options.images_per_class:
            if data.train.labels is None:
                raise TrainingError("--classes and --images-per-class need images with classes.")
            only_classes(data, options.classes or data.classes, options.images_per_class)
        if options.check:
            data = self._in_main_process(lambda: check_images(data))
        if data.skipped:
            self.show(f"skipped: {len(data.skipped)} images that cannot be read; metrics.json names them")
        held_out = "" if data.validation is None else f", {len(data.validation)} to validate ({data.held_out})"
        self.show(f"data: {data.title}: {len(data.train)} images to learn from{held_out}")
        return data

    def _enter(self, data):
        settings = {
            "data": _absolute(self.data_name),
            "model": _absolute(self.model_name),
            "processes": self.args.world_size,
            **dataclasses.asdict(self.asked),
            **self.given,
        }
        return enter_work_folder(self.work, settings, data.fingerprint(), self.overwrite)

    def _teacher_and_start(self, data):
        teacher = None
        if self.options.teacher is not None:
            teacher = load_starting_point(self._converted(self.options.teacher), None, head="keep")
            if data.validation is not None and data.validation.labels is None:
                data.validation.labels = _answers(teacher, data.validation, self.args)
                data.classes = teacher.classes
                data.held_out += ", labelled by the teacher"
        return teacher, self._start(data, teacher)

    def _start(self, data, teacher, from_scratch=False):
        set_seed(self.args.seed)
        start = load_starting_point(
            self._converted(self.model_name),
            data.classes if teacher is None else teacher.classes,
            from_scratch or self.options.from_scratch,
            self.options.head,
        )
        if teacher is not None and start.classes != teacher.classes:
            raise TrainingError(
                f"The classes of {self.model_name} and its teacher are not the same in the same order."
            )
        if self.options.image_size is not None:
            _resize(start.image_processor, self.options.image_size)
        if teacher is not None:
            made_for, gets = (_network_size(each.image_processor) for each in (teacher, start))
            if made_for != gets:
                start.notes.append(f"the teacher is made for {made_for} pixels and gets the student's {gets}")
        data.renumber(start.classes)
        return start

    def _converted(self, name):
        """A folder for ``name``, which may be a weight file or a published name."""
        if not needs_conversion(name):
            return name
        folder = self.work / "converted" / Path(name).name

        def convert():
            if not folder.is_dir():
                convert_checkpoint(name, folder)

        self._in_main_process(convert)
        return str(folder)

    def _fit(self, start, teacher, data, work, resumes):
        """Trains; returns the trainer, whose model holds the final weights, and the figures."""
        options = self.options
        self._turn_knobs(start.model)
        args = copy.copy(self.args)
        args.output_dir = str(work)
        self._schedule(args, None if options.streaming else len(data.train), start.is_fresh)
        average = None
        if options.ema is not None:
            average = MovingAverage(start.model.to(args.device), options.ema)
        checkpoint = self.given.get("resume_from_checkpoint")
        if resumes and not isinstance(checkpoint, str):
            checkpoint = self._in_main_process(
                lambda: last_checkpoint(work, (MOVING_AVERAGE_FILE,) if average else ())
            )
        train_dataset, eval_dataset = self._datasets(data, start.image_processor, labelled=teacher is None)
        if eval_dataset is None:
            args.eval_strategy = "no"
            if options.early_stopping is not None:
                raise TrainingError("--early-stopping needs images to validate with, and there are none.")
        measure = Accuracy(len(start.classes))
        common = {
            "model": start.model,
            "args": args,
            "data_collator": collate,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "processing_class": start.image_processor,
            "compute_metrics": measure,
            "preprocess_logits_for_metrics": five_best,
            "lr_mult_list": options.lr_mult_list,
            "lab_lr_mult": options.lab_lr_mult,
            "exempt_biases_and_lab": options.exempt_biases_and_lab,
            "moving_average": average,
            "class_weights": _class_weights(data.train, len(start.classes)) if options.class_weights else None,
            "early_stopping": options.early_stopping,
        }
        trainer = None
        try:
            if teacher is None:
                trainer = ClassifierTrainer(**common)
            else:
                between = _between(start.image_processor, teacher.image_processor)
                trainer = DistillationTrainer(
                    **common, teacher=teacher.model, distillation_loss=options.distillation_loss, renormalise=between
                )
            if average is not None:
                trainer.add_callback(KeepMovingAverage(average, checkpoint))
            if checkpoint:
                self.show(f"continued after {checkpoint}")
            outcome = trainer.train(resume_from_checkpoint=checkpoint)
        except (ValueError, RuntimeError, SafetensorError) as error:
            message = " ".join(str(error).split())
            if isinstance(error, SafetensorError) or "inline_container" in message or "PytorchStreamWriter" in message:
                message = (
                    f"Cannot write a checkpoint into {work} (is the disk full?): {message[:200]}; the same command continues "
                    "after the last whole one."
                )
            elif trainer is not None and not isinstance(error, ValueError):
                raise
            raise TrainingError(message) from error
        figures = trainer.evaluate() if eval_dataset is not None else {}
        counted = {}
        if measure.confusion is not None:
            counted = {
                "confusion": measure.confusion.tolist(),
                "per_class": per_class(measure.confusion, start.classes),
            }
        return trainer, {
            **counted,
            **{name: figures[f"eval_{name}"] for name in ("accuracy", "top5", "loss") if f"eval_{name}" in figures},
            "train_loss": outcome.training_loss,
            "learning_rate": args.learning_rate,
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "images_per_second": outcome.metrics.get("train_samples_per_second"),
            "history": trainer.state.log_history,
        }

    def _row(self):
        return recipe.RECIPES[self.options.recipe]

    def _turn_knobs(self, model):
        options, args = self.options, self.args
        if options.sync_batch_norm and args.world_size > 1 and args.device.type == "cuda" and not uses_fsdp(args):
            torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # before freezing, which takes either kind
        try:
            if options.freeze_at >= 0 or options.freeze_norm:
                frozen = freeze(model, options.freeze_at, options.freeze_stem_only, options.freeze_norm)
                self.show(f"frozen: {frozen.parameters:,} parameters, {frozen.batch_norms} batch norms")
            if options.drop_path:
                set_drop_path_rate(model, options.drop_path)
        except ValueError as error:
            raise TrainingError(str(error)) from error
        if options.channels_last and contains_hgnetv2(model) and not uses_fsdp(args):
            model.to(memory_format=torch.channels_last)

    def _datasets(self, data, processor, labelled):
        augmentation, preprocessing = self._augmentation(processor), Preprocessing(processor)
        if self.options.streaming:
            kind = StreamDataset
            train = kind(data.train, augmentation, self.args.seed, repeats=True, labelled=labelled)
        else:
            kind = ImageDataset
            split = data.train if labelled else dataclasses.replace(data.train, labels=None)
            train = kind(split, augmentation, self.args.seed)
        return train, None if data.validation is None else kind(data.validation, preprocessing)

    def _augmentation(self, processor):
        return Augmentation(
            _network_size(processor),
            crop_scale=tuple(self.options.crop_scale),
            shift=self.options.shift,
            flip=self.options.flip,
            rand_augment=self.options.rand_augment,
            random_erasing=self.options.random_erasing,
            **_normalisation(processor),
        )

    def _schedule(self, args, images, is_fresh):
        """What depends on the number of images: steps of warm-up, the rate, and a last batch of one image."""
        batch = args.per_device_train_batch_size * max(1, args.n_gpu) * args.world_size
        per_step = batch * args.gradient_accumulation_steps
        if images is None:  # a stream
            total, warmup = args.max_steps, args.max_steps // 20
        else:
            steps_per_epoch = math.ceil(images / per_step)
            total = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * steps_per_epoch)
            warmup = min(round(self.options.warmup_epochs * steps_per_epoch), total // 4)
        if not {"warmup_steps", "warmup_ratio"} & self.given.keys():
            args.warmup_steps = warmup
        if "learning_rate" not in self.given:
            optim = str(getattr(args.optim, "value", args.optim))
            args.learning_rate = recipe.learning_rate(self._row(), optim, is_fresh, per_step)
        if images is not None and images > batch and images % batch == 1:
            args.dataloader_drop_last = True
            self.show("the last image of each epoch is left out: batch norm needs more than one")
        self.show(
            f"plan: {total} steps of {per_step} images, learning rate {args.learning_rate:.4g} after {args.warmup_steps:g} steps "
            "of warm-up"
        )

    def _description(self, data, start):
        defaults = dataclasses.asdict(Options())
        return {
            "data": data.title,
            "model": self.model_name,
            "teacher": self.options.teacher,
            "classes": len(start.classes),
            "train_images": _count(data.train),
            "validation_images": _count(data.validation),
            "validation_from": data.held_out,
            "skipped": data.skipped
            or [f"{each.unreadable} of a stream" for each in (data.train, data.validation) if _skips(each)],
            "options": {
                name: value for name, value in dataclasses.asdict(self.options).items() if value != defaults[name]
            },
            "training_arguments": {
                **recipe.training_arguments(self._row()),
                "weight_decay": self.args.weight_decay,
                "seed": self.args.seed,
                **self.given,
            },
        }

    def _write(self, trainer, start, metrics, state):
        model = trainer.accelerator.unwrap_model(trainer.model)
        average = trainer.moving_average
        with atomic_folder(self.output_dir) as staging:
            model.to(memory_format=torch.contiguous_format)
            if average is not None:
                with average.applied():
                    model.save_pretrained(staging)
            else:
                model.save_pretrained(staging, state_dict=state)
            start.image_processor.save_pretrained(staging)
            if "confusion" in metrics:
                confusion = np.array(metrics.pop("confusion"))
                metrics.get("from_scratch", {}).pop("confusion", None)
                write_confusion(confusion, start.classes, staging / "confusion.csv")
                draw_confusion(confusion, start.classes, staging / "confusion.png")
            (staging / "metrics.json").write_text(json.dumps(metrics, indent=2, default=str) + "\n", encoding="utf-8")
            if (self.work / "data.png").is_file():
                shutil.copyfile(self.work / "data.png", staging / "data.png")
            has_curves = draw_curves(metrics, staging / "curves.png")
            if not has_curves:
                self.show('no curves.png: pip install "hgnetv2-hf[train]"')
            card = model_card(metrics, start, self.repo_id or Path(self.output_dir).name, has_curves)
            (staging / "README.md").write_text(card, encoding="utf-8")
            if (self.work / "runs").is_dir():
                shutil.copytree(self.work / "runs", staging / "runs")
        shutil.rmtree(self.work, ignore_errors=True)
        if self.repo_id is not None:
            address = push_folder(self.output_dir, self.repo_id, private=bool(self.args.hub_private_repo))
            self.show(f"pushed to {address}")


class Preprocessing:
    """The image processor as the transform of an [`ImageDataset`]."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, image, key=None):
        return self.processor(image, return_tensors="pt")["pixel_values"][0]


def five_best(logits, labels):
    """What the evaluation keeps of the logits: the indices of the five best."""
    logits = logits[0] if isinstance(logits, tuple) else logits
    return logits.topk(min(5, logits.shape[-1])).indices


class Accuracy:
    """What `Trainer` computes of an evaluation's answers; `confusion` are the counts of the last one, a row per true class."""

    def __init__(self, classes):
        self.classes, self.confusion = classes, None

    def __call__(self, prediction):
        best, labels = prediction.predictions, prediction.label_ids
        if self.classes <= _MOST_COUNTED_CLASSES:
            pairs = labels * self.classes + best[:, 0]
            self.confusion = np.bincount(pairs, minlength=self.classes**2).reshape(self.classes, self.classes)
        hits = best == labels[:, None]
        return {"accuracy": float(hits[:, 0].mean()), "top5": float(hits.any(1).mean())}


def _class_weights(split, classes):
    """Weights that give every class the same share of the loss; 1 on average over the images."""
    if isinstance(split, Stream) or split.labels is None:
        raise TrainingError("--class-weights needs images with classes that are no stream.")
    counts = torch.bincount(torch.tensor(split.labels), minlength=classes)
    weights = len(split) / (int((counts > 0).sum()) * counts.float())
    return torch.where(counts > 0, weights, 0.0)


def _answers(teacher, split, args):
    """The teacher's class for every image."""
    dataset = ImageDataset(dataclasses.replace(split, labels=None), Preprocessing(teacher.image_processor))
    loader = torch.utils.data.DataLoader(dataset, args.per_device_eval_batch_size, collate_fn=collate)
    model = teacher.model.eval().to(args.device)
    with torch.inference_mode():
        answers = [model(batch["pixel_values"].to(args.device)).logits.argmax(-1).cpu() for batch in loader]
    return torch.cat(answers).tolist()


def _normalisation(processor):
    """How an image processor of any model interpolates, scales and normalises; what it does not do leaves pixels as they are."""
    does_normalise, does_rescale = (getattr(processor, f"do_{what}", True) for what in ("normalize", "rescale"))
    resample = getattr(processor, "resample", None)
    return {
        "rescale_factor": processor.rescale_factor if does_rescale else 1.0,
        "image_mean": tuple(processor.image_mean) if does_normalise else (0.0, 0.0, 0.0),
        "image_std": tuple(processor.image_std) if does_normalise else (1.0, 1.0, 1.0),
        "resample": int(Augmentation.resample if resample is None else resample),
    }


def _between(student, teacher):
    """Scale and shift from the student's normalised pixels to the teacher's; ``None`` where they are the same."""
    (mean, std), (other_mean, other_std) = (
        [np.array(values[name]) / values["rescale_factor"] for name in ("image_mean", "image_std")]
        for values in map(_normalisation, (student, teacher))
    )
    if np.allclose(mean, other_mean) and np.allclose(std, other_std):
        return None
    scale, shift = std / other_std, (mean - other_mean) / other_std
    return tuple(torch.tensor(each, dtype=torch.float32).view(1, -1, 1, 1) for each in (scale, shift))


def _count(split):
    """The number of images; ``None`` of a stream."""
    return None if isinstance(split, Stream) else len(split or ())


def _skips(split):
    return isinstance(split, Stream) and split.unreadable > 0


def _network_size(processor):
    """Height and width of what the network gets."""
    crop = getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", True) else None
    size = dict(crop or processor.size)
    if "shortest_edge" in size:
        return size["shortest_edge"], size["shortest_edge"]
    return size["height"], size["width"]


def _resize(processor, pixels):
    if not isinstance(processor, HGNetV2ImageProcessor):
        raise TrainingError(f"--image-size is about this package's image processor, not {type(processor).__name__}.")
    crop, short = processor.crop_size["height"], processor.size.get("shortest_edge", processor.size.get("height"))
    processor.crop_size = {"height": pixels, "width": pixels}
    processor.size = {"shortest_edge": max(pixels, round(pixels * short / crop))}


def _absolute(name):
    return os.path.abspath(name) if os.path.exists(name) else name
