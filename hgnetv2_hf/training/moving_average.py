"""Exponential moving average of the weights, as PaddleClas keeps it.

Source: PaddleClas ``ppcls/utils/ema.py``: every tensor of the state, running statistics included, moves by
``decay * average + (1 - decay) * current`` after each step, from the first weights on.
"""

import contextlib
import math
import os

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from transformers import TrainerCallback


FILE = "moving_average.pt"


class MovingAverage:
    """
    The average of a model's weights, for any training loop: `update()` after each step, `with average.applied():` to
    evaluate or save.

    Args:
        model (`nn.Module`): the model that trains; not wrapped by FSDP, whose processes hold parts of it.
        decay (`float`, defaults to 0.9999): PaddleClas's.
        warmup (`int`, defaults to 0): updates in which the decay rises, `decay * (1 - exp(-update / warmup))`, as in
            RT-DETR and D-FINE (``src/optim/ema.py``).

    Raises:
        `ValueError`: the decay is not in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float = 0.9999, warmup: int = 0):
        if not 0 <= decay < 1:
            raise ValueError(f"The decay of a moving average is at least 0 and below 1, not {decay}.")
        self.model = model
        self.decay, self.warmup = decay, warmup
        self.average = AveragedModel(model, multi_avg_fn=self._move, use_buffers=True)
        self.average.n_averaged.fill_(1)  # it starts from the first weights, as PaddleClas's does

    def _move(self, averages, current, _):
        if averages[0].is_floating_point():
            torch._foreach_lerp_(averages, list(current), 1 - self._decay_now())
        else:  # counters
            for average, value in zip(averages, current):
                average.copy_(value)

    def _decay_now(self):
        if not self.warmup:
            return self.decay
        return self.decay * (1 - math.exp(-int(self.average.n_averaged) / self.warmup))  # it started with 1

    def update(self):
        self.average.update_parameters(self.model)

    @contextlib.contextmanager
    def applied(self):
        """The model holds the average inside the block, and its own weights after it."""
        averages, tensors = self.average.module.state_dict(), self.model.state_dict()
        own = {name: tensor.clone() for name, tensor in tensors.items()}
        try:
            self._copy(averages, tensors)
            yield
        finally:
            self._copy(own, tensors)

    @torch.no_grad()
    def _copy(self, source, target):
        for name, tensor in target.items():
            tensor.copy_(source[name])

    def state_dict(self):
        return self.average.state_dict()

    def load_state_dict(self, state):
        self.average.load_state_dict(state)


class KeepMovingAverage(TrainerCallback):
    """Updates the average of a `Trainer`'s model and keeps it in its checkpoints."""

    def __init__(self, average: MovingAverage, checkpoint=None):
        self.average = average
        if checkpoint is not None:
            average.load_state_dict(torch.load(os.path.join(checkpoint, FILE), map_location="cpu", weights_only=True))

    def on_step_end(self, args, state, control, **kwargs):
        self.average.update()

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            path = os.path.join(args.output_dir, f"checkpoint-{state.global_step}", FILE)
            torch.save(self.average.state_dict(), path + ".partial")
            os.replace(path + ".partial", path)
