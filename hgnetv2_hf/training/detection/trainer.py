"""``Trainer`` with the originals' criterion, parameter groups, moving average and COCO's figures."""

import contextlib
import functools
import math
import os
from typing import NamedTuple

import torch
import torch.distributed
from transformers import Trainer, TrainerCallback

from ...evaluation.boxes import best_boxes
from ...evaluation.coco import coco_figures
from ..trainer import AverageStatistics, Reproduce, StopAtNaN, StopEarly
from .losses import detection_losses
from .rates import detector_groups
from .recipe import flat_cosine


DETECTIONS = 300  # per image, as the originals evaluate


class Falling(NamedTuple):
    """When a rate begins to fall and has fallen, as shares of the training, and to which part of it."""

    flat: float
    end: float
    last_rate: float

    def __str__(self):
        return f"flat for {self.flat:.0%}, a cosine to {self.last_rate:g} of it at {self.end:.0%}"


class DetectionTrainer(Trainer):
    """
    `Trainer` for a detector as its authors train it.

    - The loss is [`detection_losses`]: that of the original program, over all processes.
    - Rates and decay are those of [`detector_groups`].
    - The evaluation's figures are COCO's (`eval_AP`, `eval_AP50`, …), of the moving average's weights.
    - What is random in a step is a function of seed, step and process.

    Args:
        backbone_rate, decays_biases, norm_learns_as_head: see [`detector_groups`].
        falling ([`Falling`], *optional*): a rate that stays and then falls, in the place of `lr_scheduler_type`.
        moving_average ([`MovingAverage`], *optional*): evaluated instead of the model.
        eval_collator (callable, *optional*): makes batches of the evaluation.
        objects (`Sequence`, *optional*): of each validation image, what is in it.
        ids (`Sequence`, *optional*): their numbers, which decide between equal scores, as in COCO's tools.
        classes (`list[str]`, *optional*)
        early_stopping (`int`, *optional*): stop after that many evaluations without a better AP.
        args, kwargs: those of `Trainer`.
    """

    def __init__(
        self, *args, backbone_rate=None, decays_biases=True, norm_learns_as_head=False, falling=None,
        moving_average=None, eval_collator=None, objects=None, ids=None, classes=None, early_stopping=None, **kwargs,
    ):  # fmt: skip
        super().__init__(*args, compute_metrics=self._figures, **kwargs)
        self.backbone_rate, self.decays_biases = backbone_rate, decays_biases
        self.norm_learns_as_head, self.falling = norm_learns_as_head, falling
        self.moving_average, self.eval_collator = moving_average, eval_collator
        self.objects, self.ids, self.classes = objects, ids, classes
        self.figures, self.detections = None, None  # of the last evaluation
        self.model_accepts_loss_kwargs = False  # the loss is a mean: `Trainer` has to divide accumulated ones
        self.can_return_loss = False
        self.label_names = ["labels"]
        self.add_callback(AverageStatistics(self))
        self.add_callback(Reproduce(self))
        self.add_callback(StopAtNaN())
        if early_stopping is not None:
            self.add_callback(StopEarly(early_stopping, "eval_AP"))

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            rate = options.pop("lr")
            groups = detector_groups(
                model,
                rate,
                rate if self.backbone_rate is None else self.backbone_rate,
                self.args.weight_decay,
                self.decays_biases,
                self.norm_learns_as_head,
            )
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps, optimizer=None):
        if self.falling is None or self.lr_scheduler is not None:
            return super().create_scheduler(num_training_steps, optimizer)
        flat, end = (round(share * num_training_steps) for share in (self.falling.flat, self.falling.end))
        share = functools.partial(
            flat_cosine, warmup=int(self.args.warmup_steps), flat=flat, end=end, last_rate=self.falling.last_rate
        )
        optimizer = self.optimizer if optimizer is None else optimizer
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        plain = self.accelerator.unwrap_model(model)
        losses = detection_losses(plain, inputs["pixel_values"], inputs["labels"], call=model)
        total = sum(losses.values())
        embedding = getattr(plain.model, "denoising_class_embed", None)
        if embedding is not None:  # every process has a gradient for it, also where its images are empty
            total = total + 0 * embedding.weight.sum()
        return (total, losses) if return_outputs else total

    @torch.no_grad()
    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with self.compute_loss_context_manager():
            outputs = model(pixel_values=inputs["pixel_values"])
        found = best_boxes(outputs.logits.float(), outputs.pred_boxes.float(), inputs["sizes"], DETECTIONS)
        columns = [torch.cat([each["scores"][:, None], each["labels"][:, None], each["boxes"]], 1) for each in found]
        return None, torch.stack(columns).double(), inputs["image_index"]

    def _figures(self, prediction):
        rows, indices = prediction.predictions, prediction.label_ids
        self.detections = {
            int(index): {"scores": each[:, 0], "labels": each[:, 1].astype("int64"), "boxes": each[:, 2:]}
            for index, each in zip(indices, rows)
        }
        order = sorted(self.detections, key=None if self.ids is None else lambda index: self.ids[index])
        answers = [self.objects[index] for index in order]
        self.figures = coco_figures([self.detections[index] for index in order], answers, self.classes)
        return {name: value for name, value in self.figures.items() if isinstance(value, float)}

    def get_eval_dataloader(self, *args, **kwargs):
        collator, dropped = self.data_collator, self.args.dataloader_drop_last
        self.data_collator = self.eval_collator or collator
        self.args.dataloader_drop_last = False  # that is about training
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.data_collator, self.args.dataloader_drop_last = collator, dropped

    def evaluate(self, *args, **kwargs):
        with self.moving_average.applied() if self.moving_average is not None else contextlib.nullcontext():
            return super().evaluate(*args, **kwargs)


class BestWeights(TrainerCallback):
    """
    Keeps the weights with the best AP, goes back to them when the strong augmentation ends, and restarts the
    moving average there, as D-FINE's solver does (``src/solver/det_solver.py``). The optimizer keeps its
    state; D-FINE's takes that of the best weights.

    Args:
        trainer ([`DetectionTrainer`]): evaluated by its moving average.
        path (`Path`): the file that holds them.
        strong_until (`int` or `None`): the epoch at which the strong augmentation ends.
        ema_after (`float`): the decay of the moving average from then on.
    """

    def __init__(self, trainer, path, strong_until, ema_after):
        self.trainer, self.path, self.strong_until, self.ema_after = trainer, path, strong_until, ema_after

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        found = (metrics or {}).get("eval_AP")
        before = [row["eval_AP"] for row in state.log_history if "eval_AP" in row and row["step"] < state.global_step]
        if found is None or found <= max(before, default=-1.0):
            return
        if state.is_world_process_zero:
            content = {
                "AP": found,
                "step": state.global_step,
                "model": self.trainer.accelerator.unwrap_model(self.trainer.model).state_dict(),
                "average": self.trainer.moving_average.state_dict(),
            }
            partial = f"{self.path}.partial"
            torch.save(content, partial)
            os.replace(partial, self.path)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if self.strong_until is None:
            return
        steps = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        if state.global_step == self.strong_until * steps:
            self.load()
        if state.global_step >= self.strong_until * steps:
            self.trainer.moving_average.decay = self.ema_after

    def load(self):
        """Puts the best weights, where there are any, into the model and its average. Returns their step."""
        if not self.path.is_file():
            return None
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        self.trainer.accelerator.unwrap_model(self.trainer.model).load_state_dict(content["model"])
        self.trainer.moving_average.load_state_dict(content["average"])
        return content["step"]
