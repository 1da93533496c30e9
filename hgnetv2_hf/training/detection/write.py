"""What a training of a detector leaves behind: the folder, its card, its pictures, a summary."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
from huggingface_hub import EvalResult, ModelCardData

from ...data.detection import Objects, draw_contact_sheet
from ...files.atomic import atomic_folder
from ...hub.upload import push_folder
from ...model.heads import write_both_names
from ..report import draw_curves
from ..starting_point import shown_name
from ..work_folder import DATA_PICTURE
from ..write import save_model
from . import recipe
from .options import DetectorOptions


FIGURES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR_100")
_DRAWN = 8  # validation images


def describe(request, plan, data, start):
    """What was trained on what, with which settings: the first part of metrics.json."""
    defaults, options = dataclasses.asdict(DetectorOptions()), dataclasses.asdict(request.options)
    return {
        "data": data.title,
        "model": request.model,
        "classes": start.classes,
        "train_images": len(data.train),
        "train_objects": int((~data.train.table().crowd).sum()),
        "validation_images": len(data.validation or ()),
        "validation_from": data.held_out,
        "skipped": data.skipped,
        "recipe": f"{plan.recipe}, {start.recipe}",
        "options": {name: value for name, value in options.items() if value != defaults[name]},
        "training_arguments": {
            **recipe.TRAINING_ARGUMENTS,
            "num_train_epochs": plan.args.num_train_epochs,
            "per_device_train_batch_size": plan.args.per_device_train_batch_size,
            "weight_decay": plan.args.weight_decay,
            "warmup_steps": plan.args.warmup_steps,
            "seed": plan.args.seed,
            **({} if plan.falling is None else {"lr_scheduler_type": str(plan.falling)}),
            **request.training_arguments,
        },
        "moving_average": {"decay": plan.ema, "decay_after": plan.ema_after, "warmup": plan.ema_warmup},
        "stages": plan.stages._asdict(),
        "sizes": plan.sizes,
        "augmentation": plan.probabilities,
    }


def summary(output_dir, metrics):
    """The end of the command's output."""
    lines = [f"{output_dir}: {_figures(metrics)}"]
    if metrics.get("AP") is not None and metrics["AP50"] < 0.05:
        lines.insert(
            0,
            "Next to nothing is found: look at the data with --draw-data 8, train longer (--num_train_epochs or "
            f"--max_steps; {metrics['epochs']:g} epochs, {metrics['steps']} steps now), or start from trained weights "
            "(--model or --backbone).",
        )
    return "\n".join(lines)


def _figures(metrics):
    parts = [f"{metrics['steps']} steps, training loss {metrics['train_loss']:.3f}"]
    if metrics.get("AP") is not None:
        parts = [
            f"AP {metrics['AP']:.1%}, AP50 {metrics['AP50']:.1%} on {metrics['validation_images']} validation images",
            *parts,
        ]
    return "; ".join(parts)


def write(request, start, data, trainer, metrics, show):
    """
    Writes the output folder, removes the one in which the training lived, and pushes where that was asked for.

    Raises:
        `OutputError`, `HubError`: the folder cannot be written, or not be pushed.
    """
    work = request.work
    with atomic_folder(request.output_dir) as staging:
        save_model(trainer, None, staging)
        write_both_names(staging, start.model.config.model_type)
        start.image_processor.save_pretrained(staging)
        (staging / "metrics.json").write_text(json.dumps(metrics, indent=2, default=str) + "\n", encoding="utf-8")
        if (work / DATA_PICTURE).is_file():
            shutil.copyfile(work / DATA_PICTURE, staging / DATA_PICTURE)
        pictures = []
        if draw_curves(metrics, staging / "curves.png", "eval_AP", "AP"):
            pictures.append("curves.png")
        else:
            show('no curves.png: pip install "hgnetv2-hf[plot]"')
        if trainer.detections:
            pictures.append("detections.png")
            _draw_detections(data, trainer.detections, request.options.threshold, staging / "detections.png")
        where = request.repo_id or Path(request.output_dir).name
        (staging / "README.md").write_text(_card(metrics, start, where, pictures), encoding="utf-8")
        if (work / "runs").is_dir():
            shutil.copytree(work / "runs", staging / "runs")
    shutil.rmtree(work, ignore_errors=True)
    if request.repo_id is not None:
        is_private = bool(trainer.args.hub_private_repo)
        show(f"pushed to {push_folder(request.output_dir, request.repo_id, private=is_private)}")


def _draw_detections(data, detections, threshold, path):
    """Validation images beside each other: what is there, then what was found."""
    split, pairs = data.validation, []
    indices = np.linspace(0, len(split) - 1, min(_DRAWN, len(split))).astype(int)
    for index in indices.tolist():
        image, found = split.images[index], detections[index]
        keep = found["scores"] >= threshold
        boxes = found["boxes"][keep]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        pairs += [
            (image, split.objects[index]),
            (image, Objects(boxes, found["labels"][keep], np.zeros(len(boxes), dtype=bool), areas)),
        ]
    draw_contact_sheet(pairs, data.classes, path)


def _card(metrics, start, where, pictures):
    title = str(where).rpartition("/")[2]
    data_name = shown_name(metrics["data"])
    results = [
        EvalResult(
            task_type="object-detection",
            dataset_type="validation",
            dataset_name=f"{data_name}, {metrics['validation_from']}",
            metric_type="mAP",
            metric_value=round(metrics["AP"], 4),
        )
        for _ in range(metrics.get("AP") is not None)
    ]
    head = ModelCardData(
        license="unknown",  # that of the data and of the first weights, which only their users know
        library_name="transformers",
        pipeline_tag="object-detection",
        tags=[start.model.config.model_type, "pp-hgnetv2"],
        model_name=title if results else None,
        eval_results=results or None,
    )
    rows = [(name, "–" if metrics[name] is None else f"{metrics[name]:.1%}") for name in FIGURES if name in metrics]
    skipped = f" {len(metrics['skipped'])} images or boxes were left out." if metrics["skipped"] else ""
    settings = {
        **metrics["training_arguments"],
        "learning_rate": metrics["learning_rate"],
        "backbone's learning rate": metrics["backbone_rate"],
        **metrics["options"],
    }
    captions = {"curves.png": "curves", "detections.png": "validation images: what is there, then what was found"}
    return "\n".join(
        [
            "---",
            head.to_yaml(),
            "---",
            "",
            f"# {title}",
            "",
            f"Trained with hgnetv2_hf on {data_name} ({metrics['train_images']} images, {metrics['train_objects']} "
            f"objects, {len(metrics['classes'])} classes): {_figures(metrics)}.{skipped}",
            "",
            *(f"- {note}" for note in start.notes),
            f"- recipe: {metrics['recipe']}",
            "",
            "Licence: unknown: it depends on the data and on the weights it started from; set it above.",
            "",
            *(["| figure | validation images |", "| --- | --- |"] if rows else []),
            *(f"| {name} | {value} |" for name, value in rows),
            "",
            *(f"![{captions[name]}]({name})\n" for name in pictures),
            "```python",
            "import hgnetv2_hf",
            "from transformers import pipeline",
            "",
            f'detect = pipeline("object-detection", model="{where}")',
            'detect("photo.jpg")',
            "```",
            "",
            *(
                ["Without `import hgnetv2_hf`, `trust_remote_code=True` uses the code in this folder.", ""]
                if start.model.config.model_type.startswith("deim")
                else []
            ),
            "| setting | value |",
            "| --- | --- |",
            *(f"| `{name}` | `{value}` |" for name, value in settings.items()),
            "",
        ]
    )
