"""The folder that a training leaves: model, image processor, figures, pictures, card."""

import dataclasses
import json
import shutil
from pathlib import Path

import torch

from ..data.streams import Stream
from ..evaluation.confusion import draw_confusion, write_confusion
from ..files.atomic import atomic_folder
from ..hub.upload import push_folder
from . import recipe
from .options import Options
from .report import draw_curves, model_card
from .work_folder import DATA_PICTURE


def describe(request, plan, data, start):
    """What was trained on what, with which settings: the first part of metrics.json."""
    defaults = dataclasses.asdict(Options())
    options = dataclasses.asdict(plan.options)
    streams = [part for part in (data.train, data.validation) if isinstance(part, Stream) and part.unreadable > 0]
    return {
        "data": data.title,
        "model": request.model,
        "teacher": plan.options.teacher,
        "classes": len(start.classes),
        "train_images": _count(data.train),
        "validation_images": _count(data.validation),
        "validation_from": data.held_out,
        "skipped": data.skipped or [f"{stream.unreadable} of a stream" for stream in streams],
        "options": {name: value for name, value in options.items() if value != defaults[name]},
        "training_arguments": {
            **recipe.training_arguments(plan.recipe),
            "weight_decay": plan.args.weight_decay,
            "seed": plan.args.seed,
            **plan.given,
        },
    }


def _count(part):
    """The number of images; ``None`` of a stream."""
    return None if isinstance(part, Stream) else len(part or ())


def write(request, start, fitted, metrics, state_dict, show):
    """
    Writes the output folder, removes the one in which the training lived, and pushes where that was asked for.

    Args:
        request ([`Request`])
        start ([`StartingPoint`])
        fitted ([`Fitted`])
        metrics (`dict`): what `metrics.json` will hold.
        state_dict (`dict` or `None`): the weights where the model holds only parts of them (FSDP).
        show (callable): receives lines of text.

    Raises:
        `OutputError`, `HubError`: the folder cannot be written, or not be pushed.
    """
    work = request.work
    with atomic_folder(request.output_dir) as staging:
        save_model(fitted.trainer, state_dict, staging)
        start.image_processor.save_pretrained(staging)
        if fitted.confusion is not None:
            write_confusion(fitted.confusion, start.classes, staging / "confusion.csv")
            draw_confusion(fitted.confusion, start.classes, staging / "confusion.png")
        (staging / "metrics.json").write_text(json.dumps(metrics, indent=2, default=str) + "\n", encoding="utf-8")
        if (work / DATA_PICTURE).is_file():
            shutil.copyfile(work / DATA_PICTURE, staging / DATA_PICTURE)
        has_curves = draw_curves(metrics, staging / "curves.png")
        if not has_curves:
            show('no curves.png: pip install "hgnetv2-hf[train]"')
        card = model_card(metrics, start, request.repo_id or Path(request.output_dir).name, has_curves)
        (staging / "README.md").write_text(card, encoding="utf-8")
        if (work / "runs").is_dir():
            shutil.copytree(work / "runs", staging / "runs")
    shutil.rmtree(work, ignore_errors=True)
    if request.repo_id is not None:
        is_private = bool(fitted.trainer.args.hub_private_repo)
        show(f"pushed to {push_folder(request.output_dir, request.repo_id, private=is_private)}")


def save_model(trainer, state_dict, folder):
    """Saves the final weights, those of the moving average where there is one."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    model.to(memory_format=torch.contiguous_format)
    if trainer.moving_average is None:
        model.save_pretrained(folder, state_dict=state_dict)
        return
    with trainer.moving_average.applied():
        model.save_pretrained(folder)
