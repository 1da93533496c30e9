"""``hgnetv2-hf train``: PaddleClas's recipe on Hugging Face ``Trainer``, from data to a folder that `pipeline` takes.

While it runs, everything lies in ``OUTPUT.training``: checkpoints, logs and what was asked for. The same command continues after
the last whole checkpoint. ``OUTPUT`` appears at the end, complete, and ``OUTPUT.training`` goes.
"""

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
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from transformers import TrainingArguments, set_seed

from ..compat import choose_fsdp2
from ..conversion import convert_checkpoint
from ..conversion.errors import ConversionError
from ..conversion.folder import atomic_folder, check_target
from ..folding import contains_hgnetv2
from ..hub import check_repository, push_folder
from ..image_processing_hgnetv2 import HGNetV2ImageProcessor
from ..stochastic_depth import set_drop_path_rate
from . import recipe
from .augmentation import Augmentation, timm
from .data import ImageDataset, Stream, StreamDataset, check_images, collate, load_data, only_classes
from .distillation import DistillationTrainer
from .freezing import freeze
from .moving_average import FILE as MOVING_AVERAGE_FILE
from .moving_average import KeepMovingAverage, MovingAverage
from .report import draw_curves, model_card, summary
from .starting_point import load_starting_point, needs_conversion
from .trainer import ClassifierTrainer, uses_fsdp
from .work_folder import enter_work_folder, last_checkpoint


@dataclasses.dataclass
class Options:
    """
    What [`train`] takes beside `TrainingArguments`.

    Args:
        from_scratch (`bool`): fresh weights, whatever the folder holds.
        compare_from_scratch (`bool`): train a second time with fresh weights on the same data, and report both.
        head (`"auto"`, `"keep"` or `"new"`): the last layer; see `load_starting_point`.
        image_size (`int`, *optional*): pixels per side; by default the image processor's.
        classes (`list[str]`, *optional*), images_per_class (`int`, *optional*): a subset of the data.
        validation_fraction (`float`): held out of each class where the data have no validation part; 0 for none.
        image_column, label_column, config_name (`str`, *optional*): of a data set of the `datasets` library.
        streaming (`bool`): read such a data set as a stream, for `max_steps` steps; unreadable images are skipped and counted.
        check (`bool`): decode every image once before training, and leave out those that cannot be read.
        crop_scale (`tuple[float, float]`), flip (`float`), rand_augment (`str`), random_erasing (`float`): see [`Augmentation`].
            With a teacher nothing is erased by default, as in PaddleClas's SSLD files.
        warmup_epochs (`float`): epochs in which the rate rises from 0; at most a quarter of the training; of a stream, a twentieth.
        lr_mult_list, lab_lr_mult, exempt_biases_and_lab: see [`parameter_groups`].
        freeze_at, freeze_stem_only, freeze_norm: see [`freeze`].
        drop_path (`float`): see [`set_drop_path_rate`].
        ema (`float`, *optional*): decay of the moving average whose weights are evaluated and saved.
        teacher (`str`, *optional*): a classifier to learn from; distillation_loss (`"ce"` or `"kl"`): see [`DistillationTrainer`].
        sync_batch_norm (`bool`): common batch statistics of all processes, where they are on GPUs and use DDP.
        channels_last (`bool`): memory format of weights and images of an HGNetV2; not with FSDP.
    """

    from_scratch: bool = False
    compare_from_scratch: bool = False
    head: str = "auto"
    image_size: Optional[int] = None
    classes: Optional[list[str]] = None
    images_per_class: Optional[int] = None
    validation_fraction: float = 0.1
    image_column: Optional[str] = None
    label_column: Optional[str] = None
    config_name: Optional[str] = None
    streaming: bool = False
    check: bool = True
    crop_scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    rand_augment: str = "rand-m7-mstd0.5-inc1"
    random_erasing: Optional[float] = None
    warmup_epochs: float = recipe.WARMUP_EPOCHS
    lr_mult_list: Optional[list[float]] = None
    lab_lr_mult: float = 0.01
    exempt_biases_and_lab: bool = False
    freeze_at: int = -1
    freeze_stem_only: bool = True
    freeze_norm: bool = False
    drop_path: float = 0.0
    ema: Optional[float] = None
    teacher: Optional[str] = None
    distillation_loss: str = "ce"
    sync_batch_norm: bool = True
    channels_last: bool = True


@dataclasses.dataclass
class Trained:
    """What [`train`] did. ``str(result)`` is what the command prints."""

    output_dir: str
    metrics: dict[str, Any]  # what metrics.json holds

    def __str__(self):
        return summary(self.output_dir, self.metrics)


def train(
    data: str, model: str, output_dir: str, options: Optional[Options] = None, overwrite: bool = False, show=print,
    **training_arguments,
) -> Trained:  # fmt: skip
    """
    Trains an image classifier with PaddleClas's recipe, or distils one.

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
        `ConversionError`: the data, the model or the output do not allow it; said before training starts.
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
        self.overwrite, self.given = overwrite, dict(given)
        check_target(output_dir, model if os.path.isdir(model) else None, overwrite)
        self.work = Path(f"{output_dir}.training").absolute()
        self.repo_id = None
        if self.given.pop("push_to_hub", False):  # at the end and with the whole folder, so not by `Trainer`
            self.repo_id = self.given.pop("hub_model_id", None) or Path(output_dir).name
            check_repository(self.repo_id)
        if options.rand_augment != "none" or self._erasing():
            timm("auto_augment")
        self.args = self._training_arguments()
        self.is_main = self.args.process_index == 0
        self.show = show if self.is_main else lambda line: None
        if options.streaming and self.args.max_steps <= 0:
            raise ConversionError("A stream has no length: say --max_steps.")
        if options.streaming and (options.classes or options.images_per_class):
            raise ConversionError("--classes and --images-per-class need data that are no stream.")
        if options.ema is not None and (self.args.load_best_model_at_end or uses_fsdp(self.args)):
            other = "--load_best_model_at_end" if self.args.load_best_model_at_end else "FSDP"
            raise ConversionError(f"--ema averages the last weights of a whole model; {other} does not go with it.")

    def _training_arguments(self):
        defaults = dict(recipe.TRAINING_ARGUMENTS)
        if self.given.get("dataloader_num_workers", defaults["dataloader_num_workers"]) == 0:
            defaults["dataloader_persistent_workers"] = False
        if self.options.teacher is not None:
            defaults["label_smoothing_factor"] = 0.0
        if self.given.get("fsdp"):
            choose_fsdp2()
            defaults["fsdp_config"] = dict(recipe.FSDP_CONFIG)
        defaults["weight_decay"] = recipe.weight_decay(self.given.get("optim", defaults["optim"]))
        try:
            return TrainingArguments(output_dir=str(self.work), **{**defaults, **self.given})
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            raise ConversionError(
                f"These training arguments do not fit: {' '.join(str(error).split())[:300]}"
            ) from error

    def __call__(self):
        data = self._data()
        resumes = self._in_main_process(self._enter)
        try:
            return self._train(data, resumes)
        except BaseException:
            if self.is_main and not any(self.work.rglob("checkpoint-*")):
                shutil.rmtree(self.work, ignore_errors=True)
            raise

    def _train(self, data, resumes):
        teacher, start = self._teacher_and_start(data)
        for line in start.notes:
            self.show(line)
        trainer, figures = self._fit(start, teacher, data, self.work, resumes)
        metrics = {**self._description(data, start), **figures}
        if self.options.compare_from_scratch:
            self.show("\nfrom scratch, on the same data:")
            fresh = self._start(data, teacher, from_scratch=True)
            metrics["from_scratch"] = self._fit(fresh, teacher, data, self.work / "from_scratch", resumes)[1]
        state = None
        if uses_fsdp(self.args):  # every process hands over its part
            state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        self._in_main_process(lambda: self._write(trainer, start, metrics, state))
        return Trained(self.output_dir, metrics)

    def _in_main_process(self, call):
        """The first process's answer in every process, its error included."""
        answer = [None]
        if self.is_main:
            try:
                answer = [call()]
            except ConversionError as error:
                answer = [error]
        (answer,) = broadcast_object_list(answer)
        if isinstance(answer, ConversionError):
            raise answer
        return answer

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
        )
        if options.streaming:
            self.show(f"data: {data.title}: a stream" + (f", {data.held_out} to validate" if data.validation else ""))
            return data
        if options.classes or options.images_per_class:
            if data.train.labels is None:
                raise ConversionError("--classes and --images-per-class need images with classes.")
            only_classes(data, options.classes or data.classes, options.images_per_class)
        if options.check:
            data = self._in_main_process(lambda: check_images(data))
        if data.skipped:
            self.show(f"skipped: {len(data.skipped)} images that cannot be read; metrics.json names them")
        held_out = "" if data.validation is None else f", {len(data.validation)} to validate ({data.held_out})"
        self.show(f"data: {data.title}: {len(data.train)} images to learn from{held_out}")
        return data

    def _enter(self):
        settings = {
            "data": _absolute(self.data_name),
            "model": _absolute(self.model_name),
            "processes": self.args.world_size,
            **dataclasses.asdict(self.options),
            **{name: value for name, value in self.given.items() if name != "resume_from_checkpoint"},
        }
        return enter_work_folder(self.work, settings, self.overwrite)

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
            raise ConversionError(
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
        common = {
            "model": start.model,
            "args": args,
            "data_collator": collate,
            "train_dataset": train_dataset,
            "eval_dataset": eval_dataset,
            "processing_class": start.image_processor,
            "compute_metrics": accuracy,
            "preprocess_logits_for_metrics": five_best,
            "lr_mult_list": options.lr_mult_list,
            "lab_lr_mult": options.lab_lr_mult,
            "exempt_biases_and_lab": options.exempt_biases_and_lab,
            "moving_average": average,
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
            if isinstance(error, SafetensorError) or "PytorchStreamWriter" in message:
                message = f"Cannot write a checkpoint into {work}: {message[:200]}"
            elif trainer is not None and not isinstance(error, ValueError):
                raise
            raise ConversionError(message) from error
        figures = trainer.evaluate() if eval_dataset is not None else {}
        return trainer, {
            **{name: figures[f"eval_{name}"] for name in ("accuracy", "top5", "loss") if f"eval_{name}" in figures},
            "train_loss": outcome.training_loss,
            "learning_rate": args.learning_rate,
            "steps": trainer.state.global_step,
            "epochs": trainer.state.epoch,
            "images_per_second": outcome.metrics.get("train_samples_per_second"),
            "history": trainer.state.log_history,
        }

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
            raise ConversionError(str(error)) from error
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

    def _erasing(self):
        if self.options.random_erasing is None:
            return 0.0 if self.options.teacher is not None else Augmentation.random_erasing
        return self.options.random_erasing

    def _augmentation(self, processor):
        return Augmentation(
            _network_size(processor),
            crop_scale=tuple(self.options.crop_scale),
            flip=self.options.flip,
            rand_augment=self.options.rand_augment,
            random_erasing=self._erasing(),
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
            args.learning_rate = recipe.learning_rate(
                str(getattr(args.optim, "value", args.optim)), is_fresh, per_step
            )
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
                **recipe.TRAINING_ARGUMENTS,
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
            (staging / "metrics.json").write_text(json.dumps(metrics, indent=2, default=str) + "\n", encoding="utf-8")
            has_curves = draw_curves(metrics, staging / "curves.png")
            if not has_curves:
                self.show('no curves.png: pip install "hgnetv2-hf[train]"')
            card = model_card(metrics, start, self.repo_id or self.output_dir, has_curves)
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


def accuracy(prediction):
    best, labels = prediction.predictions, prediction.label_ids[:, None]
    return {"accuracy": float((best[:, :1] == labels).mean()), "top5": float((best == labels).any(1).mean())}


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
        raise ConversionError(f"--image-size is about this package's image processor, not {type(processor).__name__}.")
    crop, short = processor.crop_size["height"], processor.size.get("shortest_edge", processor.size.get("height"))
    processor.crop_size = {"height": pixels, "width": pixels}
    processor.size = {"shortest_edge": max(pixels, round(pixels * short / crop))}


def _absolute(name):
    return os.path.abspath(name) if os.path.exists(name) else name
