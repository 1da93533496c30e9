"""Times a training step with several settings in turn in one run, and measures the memory that each adds, in processes
of its own."""

import statistics
import subprocess
import sys
import time

import torch
from tqdm.auto import tqdm

from ..model import modeling_hgnetv2 as modeling
from ..model.configuration_hgnetv2 import HGNetV2Config
from .inference import machine_and_versions
from .memory import peak_memory


SETTINGS = {  # name: (stock's model, channels-last, bfloat16 autocast, gradient checkpointing)
    "stock": (True, False, False, False),
    "eager": (False, False, False, False),
    "channels-last": (False, True, False, False),
    "channels-last-bf16": (False, True, True, False),
    "checkpointing": (False, True, False, True),
    "checkpointing-bf16": (False, True, True, True),
}


def benchmark_training(variants, batch_sizes, image_size=224, rounds=10):
    """
    A step of SGD with momentum on one batch: forward, backward, update.

    Args:
        variants (`list[str]`), batch_sizes (`list[int]`), image_size (`int`): what is trained.
        rounds (`int`): steps per setting, in turn.

    Returns:
        `dict`: `machine` and `rows`: `variant`, `batch_size`, `setting`, `milliseconds` (median), `ratio` (the time of
        Transformers' own model in eager float32 by this one), and `bytes` that the forward and backward pass of a step
        add to the process at most.
    """
    rows = []
    cases = [(variant, batch_size) for variant in variants for batch_size in batch_sizes]
    for variant, batch_size in tqdm(cases, desc="benchmark", unit="case", leave=False):
        steps = {setting: Step(setting, variant, batch_size, image_size) for setting in SETTINGS}
        times = {setting: [] for setting in steps}
        for step in steps.values():
            step()
        for turn in tqdm(range(rounds), desc=f"{variant} × {batch_size}", leave=False):
            for setting in list(steps) if turn % 2 == 0 else reversed(list(steps)):
                start = time.perf_counter()
                steps[setting]()
                times[setting].append(time.perf_counter() - start)
        del steps
        medians = {setting: statistics.median(values) * 1e3 for setting, values in times.items()}
        for setting, milliseconds in medians.items():
            rows.append(
                {
                    "variant": variant,
                    "batch_size": batch_size,
                    "setting": setting,
                    "milliseconds": milliseconds,
                    "ratio": medians["stock"] / milliseconds,
                    "bytes": added_memory(setting, variant, batch_size, image_size),
                }
            )
    return {"machine": machine_and_versions(), "image_size": image_size, "rounds": rounds, "rows": rows}


class Step:
    """One training step of one setting; its weights move, so no two calls are the same."""

    def __init__(self, setting, variant, batch_size, image_size):
        is_stock, channels_last, self.autocast, checkpointing = SETTINGS[setting]
        config = HGNetV2Config.from_variant(variant, num_labels=1000)
        if is_stock:
            from transformers.models.hgnet_v2 import configuration_hgnet_v2, modeling_hgnet_v2

            config = configuration_hgnet_v2.HGNetV2Config.from_dict(config.to_dict())
            self.model = modeling_hgnet_v2.HGNetV2ForImageClassification(config).train()
        else:
            self.model = modeling.HGNetV2ForImageClassification(config).train()
        if checkpointing:
            self.model.gradient_checkpointing_enable()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        self.model.to(memory_format=layout)
        generator = torch.Generator().manual_seed(0)
        shape = (batch_size, 3, image_size, image_size)
        self.pixel_values = torch.randn(shape, generator=generator).contiguous(memory_format=layout)
        self.labels = torch.randint(0, 1000, (batch_size,), generator=generator)
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)

    def __call__(self):
        self.gradients(self.pixel_values, self.labels)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    def gradients(self, pixel_values, labels):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            loss = self.model(pixel_values, labels=labels).loss
        loss.backward()


def added_memory(setting, variant, batch_size, image_size):
    """Bytes that forward and backward add to the peak of a process whose weights and gradients are there already."""
    command = [sys.executable, "-m", __name__, setting, variant, str(batch_size), str(image_size)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(run.stdout.split()[-1])


def table(result):
    """The result of [`benchmark_training`] as text."""
    lines = [
        result["machine"],
        f"a training step at {result['image_size']}×{result['image_size']}, median of {result['rounds']} in turn; "
        "ratio: time of stock / time; memory: what a step adds to the process at most",
        f"{'variant':<9}{'batch':>5}  {'setting':<20}{'ms':>10}{'ratio':>8}{'memory MB':>11}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['variant']:<9}{row['batch_size']:>5}  "
            f"{row['setting']:<20}{row['milliseconds']:>10.0f}{row['ratio']:>8.2f}{row['bytes'] / 1e6:>11.0f}"
        )
    return "\n".join(lines)


def main():
    setting, variant, batch_size, image_size = sys.argv[1:]
    step = Step(setting, variant, int(batch_size), int(image_size))
    step.gradients(step.pixel_values[:2, :, :64, :64], step.labels[:2])  # gradients and what PyTorch keeps are there
    before = peak_memory()
    step.gradients(step.pixel_values, step.labels)
    print(peak_memory() - before)


if __name__ == "__main__":
    main()
