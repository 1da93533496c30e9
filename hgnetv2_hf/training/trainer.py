"""``Trainer`` with PaddleClas's parameter groups, loss and optimizer."""

import contextlib
import math
import os

import torch
import torch.distributed
import torch.nn.functional as F
from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import Trainer, TrainerCallback

from ..errors import TrainingError
from ..model.compat import fsdp_plugin_options
from .freezing import batch_norms_that_move
from .rates import LAB_RATE, parameter_groups
from .recipe import MOMENTUM


class ClassifierTrainer(Trainer):
    """
    `Trainer` for an image classifier as PaddleClas trains it.

    - Every parameter has the rate and decay that [`parameter_groups`] gives it; every `optim` of `TrainingArguments`
    works, and
      `sgd` has PaddleClas's momentum of 0.9.
    - Labels are smoothed (`label_smoothing_factor`) while training; the evaluation's loss is the plain cross entropy.
    - The loss is the mean over the images of a step, with `gradient_accumulation_steps` too.
    - Before each evaluation and each save, batch norm's running statistics are averaged over the processes.
    - Dropout and stochastic depth are functions of seed, step and process.

    Args:
        lr_mult_list, lab_lr_mult, exempt_biases_and_lab: see [`parameter_groups`].
        moving_average ([`MovingAverage`], *optional*): evaluates with these weights.
        class_weights (`torch.Tensor`, *optional*): `(classes,)`, of the classes in the training loss.
        early_stopping (`int`, *optional*): stop after that many evaluations without a better accuracy.
        args, kwargs: those of `Trainer`.
    """

    def __init__(
        self,
        *args,
        lr_mult_list=None,
        lab_lr_mult=LAB_RATE,
        exempt_biases_and_lab=False,
        moving_average=None,
        class_weights=None,
        early_stopping=None,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.class_weights = class_weights if class_weights is None else class_weights.to(self.args.device)
        self.rates = {
            "lr_mult_list": lr_mult_list,
            "lab_lr_mult": lab_lr_mult,
            "exempt_biases_and_lab": exempt_biases_and_lab,
        }
        self.moving_average = moving_average
        self.model_accepts_loss_kwargs = False  # the loss below is a mean: `Trainer` has to divide accumulated ones
        self.add_callback(AverageStatistics(self))
        self.add_callback(Reproduce(self))
        self.add_callback(StopAtNaN())
        if early_stopping is not None:
            self.add_callback(StopEarly(early_stopping))

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if uses_fsdp(self.args) and state.distributed_type == DistributedType.MULTI_CPU:
            # accelerate shards on accelerators only, and would go on with DDP without a word.
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**fsdp_plugin_options(self.args))
            PartialState().distributed_type = state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def create_optimizer(self, model=None):
        if self.optimizer is None:
            model = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, model)
            if self.args.optim == "sgd":
                options.setdefault("momentum", MOMENTUM)
            groups = parameter_groups(model, options.pop("lr"), self.args.weight_decay, **self.rates)
            groups.sort(key=lambda group: -group["lr"])  # Trainer logs the rate of the first
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        outputs = model(**inputs)
        logits = at_least_float32(outputs.logits)
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        if model.training and self.class_weights is not None:
            # Weights of the images: PyTorch's own weights would multiply the smoothed part of every class too.
            weights = self.class_weights.to(logits.dtype)[labels]
            losses = F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")
            loss = (losses * weights).sum() / weights.sum()
        else:
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        return (loss, outputs) if return_outputs else loss

    def get_eval_dataloader(self, *args, **kwargs):
        dropped, self.args.dataloader_drop_last = self.args.dataloader_drop_last, False  # that is about training
        try:
            return super().get_eval_dataloader(*args, **kwargs)
        finally:
            self.args.dataloader_drop_last = dropped

    def evaluate(self, *args, **kwargs):
        with self.moving_average.applied() if self.moving_average is not None else contextlib.nullcontext():
            return super().evaluate(*args, **kwargs)


def uses_fsdp(args):
    """Whether `TrainingArguments` or `accelerate launch` ask for FSDP."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def at_least_float32(logits):
    """Losses are not computed in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


class AverageStatistics(TrainerCallback):
    """The rule for batch norm's buffers with several processes: where they are read, they are the average over the
    processes.

    Between two readings each process moves its own; DDP sends those of the first process around before each forward,
    FSDP does not. Where every process has a GPU, DDP can compute common statistics instead (`SyncBatchNorm`).
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if control.should_evaluate or control.should_save or control.should_training_stop:
            self._average()

    def on_epoch_end(self, args, state, control, **kwargs):
        self._average()

    @torch.no_grad()
    def _average(self):
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return
        for module in batch_norms_that_move(self.trainer.model):
            for buffer in (module.running_mean, module.running_var):
                torch.distributed.all_reduce(buffer)
                buffer /= torch.distributed.get_world_size()


class Reproduce(TrainerCallback):
    """Makes what is random a function of the step, so that a resumed run goes on as if nothing had happened.

    Checkpoints hold the generators' states, but data loaders draw from them when their workers start, which a resumed
    run does at another time; and accelerate does not tell the data set the epoch of a resumed run.
    """

    def __init__(self, trainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, train_dataloader=None, **kwargs):
        if hasattr(self.trainer.train_dataset, "start_epoch"):
            steps = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
            self.trainer.train_dataset.start_epoch(state.global_step // steps)

    def on_step_begin(self, args, state, control, **kwargs):
        torch.manual_seed(hash((args.seed, args.process_index, state.global_step)) % 2**63)


class StopAtNaN(TrainerCallback):
    """Ends a training whose loss is no longer a number, where `Trainer` would go on."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        if not math.isfinite((logs or {}).get("loss", 0.0)):
            raise TrainingError(
                f"The training loss is {logs['loss']} after step {state.global_step}: lower the learning rate, or "
                "look for NaN in the weights it started from."
            )


class StopEarly(TrainerCallback):
    """Ends a training whose accuracy, or another figure, has not risen for some evaluations. The log, which
    checkpoints hold, is all that it remembers, so a resumed run stops where an uninterrupted one would."""

    def __init__(self, patience, figure="eval_accuracy"):
        self.patience, self.figure = patience, figure

    def on_evaluate(self, args, state, control, **kwargs):
        found = [row[self.figure] for row in state.log_history if self.figure in row]
        if len(found) - 1 - found.index(max(found)) >= self.patience:
            control.should_training_stop = True
