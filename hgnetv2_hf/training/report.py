"""What is left of a training run for people: a summary, pictures, tables, a model card."""

import numpy as np
import PIL.Image
import PIL.ImageDraw
from huggingface_hub import EvalResult, ModelCardData

from ..evaluation import accuracy as evaluation
from ..model.remote_code import NETWORK_TYPES
from .starting_point import shown_name


_TILE = 96  # pixels per side of an image that is drawn, at least
_AUGMENTED = 6  # drawn of each image


def summary(output_dir, metrics):
    """The end of the command's output."""
    lines = [f"{output_dir}: {_figures(metrics)}"]
    if "from_scratch" in metrics:
        lines.append(f"the same from scratch: {_figures(metrics['from_scratch'])}")
    if metrics["close_to_chance"] is not None:
        lines.insert(0, metrics["close_to_chance"])
    return "\n".join(lines)


def _figures(metrics):
    parts = [f"{metrics['steps']} steps, training loss {metrics['train_loss']:.4f}"]
    if "accuracy" in metrics:
        parts = [f"accuracy {metrics['accuracy']:.2%} on the validation images", *parts]
    return "; ".join(parts)


def close_to_chance(metrics):
    """A sentence on what to try where a training has learnt next to nothing, else ``None``."""
    if "per_class" not in metrics:
        return None
    finding = evaluation.close_to_chance(metrics["accuracy"], [row["images"] for row in metrics["per_class"].values()])
    return finding and (
        f"{finding}: look at the data with --draw-data 8, and try more "
        f"epochs (--num_train_epochs, {metrics['epochs']:g} now), another --learning_rate "
        f"({metrics['learning_rate']:.3g} now), smaller steps (--per_device_train_batch_size) or weaker augmentation "
        "(--recipe small)."
    )


def draw_data(data, preprocessing, augmentation, count, path):
    """
    Draws training images, a row each: as they are evaluated, then as they are learnt from.

    Args:
        data ([`Data`]): the images, with or without classes.
        preprocessing, augmentation (callable): an image to a normalised tensor (3, height, width).
        count (`int`): images, spread over the classes.
        path (`Path`): the PNG to write.
    """
    split = data.train
    order = np.argsort(split.labels, kind="stable") if split.labels is not None else np.arange(len(split))
    chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)]
    rows = []
    for index in chosen.tolist():
        image = split.images[index]
        tensors = [preprocessing(image), *(augmentation(image, (0, epoch, index)) for epoch in range(_AUGMENTED))]
        rows.append([_as_drawn(tensor, augmentation) for tensor in tensors])
    width = max(tile.width for row in rows for tile in row) + 4
    height = max(tile.height for row in rows for tile in row) + 18
    canvas = PIL.Image.new("RGB", (width * (_AUGMENTED + 1), height * len(rows)), "white")
    draw = PIL.ImageDraw.Draw(canvas)
    for line, (index, row) in enumerate(zip(chosen.tolist(), rows)):
        name = data.classes[split.labels[index]] if split.labels is not None else split.images.name(index)
        draw.text((2, line * height + 2), f"{name}: as evaluated, then as learnt from", fill="black")
        for column, tile in enumerate(row):
            canvas.paste(tile, (column * width + 2, line * height + 16))
    canvas.save(path)


def _as_drawn(tensor, augmentation):
    """A normalised tensor as an image that is large enough to see."""
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (augmentation.image_mean, augmentation.image_std))
    pixels = (np.asarray(tensor) * std + mean) / augmentation.rescale_factor
    image = PIL.Image.fromarray(pixels.transpose(1, 2, 0).clip(0, 255).round().astype("uint8"))
    scale = max(1, -(-_TILE // min(image.size)))
    return image.resize((image.width * scale, image.height * scale), PIL.Image.Resampling.NEAREST)


def draw_curves(metrics, path, figure_key="eval_accuracy", figure_title="accuracy"):
    """Draws loss, rate and, where there is one, accuracy (or another figure) over the epochs into ``path``. Returns
    ``False`` where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    runs = {"trained": metrics, "from scratch": metrics.get("from_scratch", {})}
    panels = {"loss": "training loss", "learning_rate": "learning rate"}
    if any(figure_key in row for run in runs.values() for row in run.get("history", [])):
        panels[figure_key] = figure_title
    figure = Figure(figsize=(11 / 3 * len(panels), 3.5), layout="constrained")
    for axes, (key, title) in zip(figure.subplots(1, len(panels)), panels.items()):
        for name, run in runs.items():
            points = [(row["epoch"], row[key]) for row in run.get("history", []) if key in row]
            if points:
                axes.plot(*zip(*points), label=name)
        axes.set(title=title, xlabel="epoch")
        if "from_scratch" in metrics:
            axes.legend()
    figure.savefig(path, dpi=120)
    return True


def _tags(model_type):
    network = "pp-hgnet" if model_type == "pp_hgnet" else "pp-hgnetv2"
    return [model_type, network] if model_type in NETWORK_TYPES else None


def model_card(metrics, start, where, has_curves):
    """
    Args:
        metrics (`dict`): what `metrics.json` holds.
        start ([`StartingPoint`]): model, image processor and what was decided about them.
        where (`str`): the folder or repository that the example names.
        has_curves (`bool`): whether `curves.png` lies beside the card.

    Returns:
        `str`: the card, with the Hub's metadata in front.
    """
    title = str(where).rpartition("/")[2]
    data_name, validation_from, teacher = (
        metrics[name] and shown_name(metrics[name]) for name in ("data", "validation_from", "teacher")
    )
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="validation",
            dataset_name=f"{data_name}, {validation_from}",
            metric_type="accuracy",
            metric_value=round(metrics["accuracy"], 4),
        )
        for _ in range("accuracy" in metrics)
    ]
    data = ModelCardData(
        license="unknown",  # that of the data and of the first weights, which only their users know
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=_tags(start.model.config.model_type),
        model_name=title if results else None,
        eval_results=results or None,
    )
    skipped = f" {len(metrics['skipped'])} images could not be read and were left out." if metrics["skipped"] else ""
    settings = {**metrics["training_arguments"], "learning_rate": metrics["learning_rate"], **metrics["options"]}
    for name in ("teacher", "draw_data"):  # stands above; changes nothing
        settings.pop(name, None)
    return "\n".join(
        [
            "---",
            data.to_yaml(),
            "---",
            "",
            f"# {title}",
            "",
            f"Trained with hgnetv2_hf on {data_name} ({metrics['train_images'] or 'a stream of'} images, "
            f"{metrics['classes']} classes): {_figures(metrics)}.{skipped}",
            "",
            *(f"- {note}" for note in start.notes),
            *([f"- teacher: {teacher}"] if teacher else []),
            "",
            "Licence: unknown: it depends on the data and on the weights it started from; set it above.",
            "",
            *(["![curves](curves.png)", ""] if has_curves else []),
            "```python",
            "import hgnetv2_hf",
            "from transformers import pipeline",
            "",
            f'classify = pipeline("image-classification", model="{where}")',
            'classify("photo.jpg")',
            "```",
            "",
            "| setting | value |",
            "| --- | --- |",
            *(f"| `{name}` | `{value}` |" for name, value in settings.items()),
            "",
        ]
    )
