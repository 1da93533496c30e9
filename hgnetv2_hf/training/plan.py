"""From what was asked for to what will be done: requests are checked, and the recipe fills in the rest."""

import dataclasses
import math
import os
from pathlib import Path
from typing import Any, Optional

from transformers import TrainingArguments

from ..errors import TrainingError
from ..files.processes import has_accelerator, number_of_processes
from ..hub.upload import check_repository
from ..model.compat import choose_fsdp2
from ..wording import sentence
from . import recipe
from .augmentation import timm
from .options import Options, check_options
from .trainer import uses_fsdp


# What `TrainingArguments` takes and `Trainer` stumbles over: field, what it must be, in words.
_CHECKS = (
    ("seed", lambda value: 0 <= value < 2**32, "a whole number of at least 0 and below 2**32"),
    ("num_train_epochs", lambda value: 0 < value < math.inf, "a positive number"),
    ("max_steps", lambda value: value > 0 or value == -1, "a positive whole number"),
    ("per_device_train_batch_size", lambda value: value > 0, "a positive whole number"),
    ("per_device_eval_batch_size", lambda value: value > 0, "a positive whole number"),
    ("gradient_accumulation_steps", lambda value: value > 0, "a positive whole number"),
    ("learning_rate", lambda value: 0 <= value < math.inf, "a number that is not negative"),
    ("weight_decay", lambda value: 0 <= value < math.inf, "a number that is not negative"),
    ("max_grad_norm", lambda value: value is None or value >= 0, "a number that is not negative"),
    (
        "resume_from_checkpoint",
        lambda value: not isinstance(value, str) or os.path.isdir(value),
        "a checkpoint's folder; an interrupted run continues without this option",
    ),
    ("label_smoothing_factor", lambda value: 0 <= value < 1, "a number of at least 0 and below 1"),
    ("prediction_loss_only", lambda value: not value, "no such option, because accuracy is what is measured"),
)


@dataclasses.dataclass(frozen=True)
class Request:
    """One call of [`train`], the same in every process."""

    data: str
    model: str
    output_dir: str
    options: Any  # [`Options`], or what stands for them in another task
    overwrite: bool
    training_arguments: dict[str, Any]  # those that were given
    repo_id: Optional[str]  # where to push the result

    @property
    def work(self):
        """The folder in which the training lives until it is done."""
        return Path(f"{self.output_dir}.training").absolute()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What will be done."""

    recipe: recipe.Recipe
    options: Options  # the recipe's where nothing was asked for
    args: TrainingArguments  # likewise
    given: dict[str, Any]  # the arguments of `TrainingArguments` that were asked for


def make_request(data, model, output_dir, options, overwrite, training_arguments):
    """
    Returns:
        [`Request`]

    Raises:
        `TrainingError`: an option has a value that it cannot have.
        `HubError`: the result could not be pushed.
    """
    check_options(options)
    given, repo_id = dict(training_arguments), None
    if given.pop("push_to_hub", False):  # at the end and with the whole folder, so not by `Trainer`
        repo_id = given.pop("hub_model_id", None) or Path(output_dir).name
        check_repository(repo_id)
    if isinstance(options, Options) and options.early_stopping is not None:
        given.setdefault("load_best_model_at_end", True)
    return Request(data, model, output_dir, options, overwrite, given, repo_id)


def build_training_arguments(request, row):
    """The `TrainingArguments` of a request, with the defaults of a row of `recipe.RECIPES`.

    Raises:
        `TrainingError`: they contradict each other.
    """
    defaults, given = recipe.training_arguments(row), request.training_arguments
    if request.options.teacher is not None:
        defaults["label_smoothing_factor"] = 0.0
    if given.get("fsdp"):
        choose_fsdp2()
        defaults["fsdp_config"] = dict(recipe.FSDP_CONFIG)
    defaults["weight_decay"] = recipe.weight_decay(given.get("optim", defaults["optim"]))
    return training_arguments(request, defaults)


def training_arguments(request, defaults):
    """The `TrainingArguments` of a request, with these defaults and what the machine and the launcher ask for.

    Raises:
        `TrainingError`: they contradict each other.
    """
    given, defaults = request.training_arguments, dict(defaults)
    if given.get("dataloader_num_workers", defaults["dataloader_num_workers"]) == 0:
        defaults["dataloader_persistent_workers"] = False
    defaults["dataloader_pin_memory"] = has_accelerator()  # PyTorch warns at every loader otherwise
    if number_of_processes() > 1 and not has_accelerator():
        defaults["use_cpu"] = True  # without it accelerate leaves every process alone
    try:
        return TrainingArguments(output_dir=str(request.work), **{**defaults, **given})
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        raise TrainingError(f"These training arguments do not fit: {sentence(error)[:300]}") from error


def check_request(request, args):
    """Raises ``TrainingError`` for what no data could make possible.

    Args:
        request ([`Request`])
        args (`TrainingArguments`): of any recipe; making them joined the processes that a launcher started.
    """
    options = request.options
    check_training_arguments(args)
    if options.class_weights and options.teacher is not None:
        raise TrainingError("--class-weights is about labels, which --teacher does not look at.")
    if options.streaming and args.max_steps <= 0:
        raise TrainingError("A stream has no length: say --max_steps.")
    if options.streaming and (options.classes or options.images_per_class):
        raise TrainingError("--classes and --images-per-class need data that are no stream.")


def check_training_arguments(args):
    """Raises ``TrainingError`` for what `Trainer` would stumble over."""
    for name, accepts, expected in _CHECKS:
        value = getattr(args, name)
        if not accepts(value):
            raise TrainingError(f"Unsupported {name} {value!r}: expected {expected}.")
    if args.world_size != number_of_processes():
        raise TrainingError(
            f"The launcher started {number_of_processes()} processes, and {args.world_size} would train together: "
            "start one process per GPU, or pass --use_cpu."
        )


def make_plan(request, args, images, show):
    """
    Chooses the recipe, which fills in what was not asked for.

    Args:
        request ([`Request`])
        args (`TrainingArguments`): of any recipe.
        images (`int` or `None`): to learn from; `None` of a stream.
        show (callable): receives lines of text.

    Returns:
        [`Plan`]

    Raises:
        `TrainingError`: timm is missing for the augmentation, or the moving average cannot be kept.
    """
    asked, given = request.options, request.training_arguments
    images_seen = None
    if args.max_steps > 0:
        batch = given.get("per_device_train_batch_size", recipe.RECIPES["small"].batch_size)
        images_seen = args.max_steps * batch * args.gradient_accumulation_steps * args.world_size
    name, why = recipe.choose(asked.recipe, images, given.get("num_train_epochs"), images_seen)
    row = recipe.RECIPES[name]
    args = build_training_arguments(request, row)
    epochs = _epochs(args, images)
    options = _filled_in(asked, name, row, epochs)
    show(f"recipe: {name} ({why})")
    if epochs < row.augmented_from:
        show(f"augmentation: the largest crop that fits, as for less than {row.augmented_from:g} epochs")
    if options.rand_augment != "none" or options.random_erasing:
        timm("auto_augment")
    if options.ema is not None and (args.load_best_model_at_end or uses_fsdp(args)):
        if asked.ema is not None:
            other = "--load_best_model_at_end" if args.load_best_model_at_end else "FSDP"
            raise TrainingError(f"--ema averages the last weights of a whole model; {other} does not go with it.")
        options = dataclasses.replace(options, ema=None)
    return Plan(row, options, args, given)


def _epochs(args, images):
    """How often an image is seen; of a stream, as if never twice."""
    if args.max_steps <= 0:
        return args.num_train_epochs
    if images is None:
        return 1
    per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    return args.max_steps * per_step / images


def _filled_in(asked, name, row, epochs):
    augmentation = recipe.augmentation(row, epochs)
    if asked.teacher is not None:
        augmentation = {**augmentation, "random_erasing": 0.0}
    defaults = {"warmup_epochs": row.warmup_epochs, "ema": row.ema, **augmentation}
    given = {key: value for key, value in dataclasses.asdict(asked).items() if value is not None}
    return Options(**{**defaults, **given, "recipe": name})
