"""Momentum against AdamW on the digits, which decides the default of ``hgnetv2-hf train``.

    python compare_optimizers.py [--seeds 3]

From scratch: all training scans, 30 epochs, batches of 64. Fine-tuning: the shipped checkpoint with a new last layer,
five classes, 20 scans each, 40 epochs, batches of 32. Accuracy on the held-out scans, mean and range over the seeds.
"""

import argparse
import contextlib
import io
import statistics
import tempfile

import transformers
from tqdm.auto import tqdm

from hgnetv2_hf.benchmark.inference import machine_and_versions
from hgnetv2_hf.training import Options, train


AUGMENTATION = {
    "recipe": "imagenet",
    "flip": 0.0,
    "rand_augment": "none",
    "random_erasing": 0.0,
    "crop_scale": (0.7, 1.0),
}
# Rates as they are; PaddleClas's 0.5 for 1024 images is 0.031 for 64.
CASES = {
    "from scratch": (
        Options(from_scratch=True, **AUGMENTATION),
        {"num_train_epochs": 30, "per_device_train_batch_size": 64},
        {"sgd": (0.031, 0.094, 0.31), "adamw_torch": (1e-3, 4e-3, 1.6e-2)},
    ),
    "fine-tuning": (
        Options(head="new", classes=list("56789"), images_per_class=20, **AUGMENTATION),
        {"num_train_epochs": 40, "per_device_train_batch_size": 32},
        {"sgd": (0.0005, 0.0016, 0.0047), "adamw_torch": (1.25e-4, 5e-4, 2e-3)},
    ),
}


def accuracy(options, arguments):
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        result = train(
            "digits", "digits", f"{folder}/out", options, use_cpu=True, dataloader_num_workers=0, disable_tqdm=True,
            eval_strategy="no", save_strategy="no", show=str, **arguments,
        )  # fmt: skip
    return result.metrics["accuracy"] * 100


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    transformers.logging.set_verbosity_error()
    runs = [
        (title, options, {**common, "optim": optim, "learning_rate": rate, "seed": seed})
        for title, (options, common, rates) in CASES.items()
        for optim in rates
        for rate in rates[optim]
        for seed in seeds
    ]
    found = {}
    for title, options, arguments in tqdm(runs, unit="run"):
        found.setdefault((title, arguments["optim"], arguments["learning_rate"]), []).append(
            accuracy(options, arguments)
        )
    print(machine_and_versions())
    for (title, optim, rate), values in found.items():
        print(
            f"{title:<14}{optim:<13}{rate:<9}{statistics.mean(values):>7.2f} %  ({min(values):.2f} to "
            f"{max(values):.2f})"
        )


if __name__ == "__main__":
    main()
