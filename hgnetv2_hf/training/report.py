"""What is left of a training run for people: a summary, curves, a model card."""

from huggingface_hub import EvalResult, ModelCardData


def summary(output_dir, metrics):
    """The end of the command's output."""
    lines = [f"{output_dir}: {_figures(metrics)}"]
    if "from_scratch" in metrics:
        lines.append(f"the same from scratch: {_figures(metrics['from_scratch'])}")
    return "\n".join(lines)


def _figures(metrics):
    parts = [f"{metrics['steps']} steps, training loss {metrics['train_loss']:.4f}"]
    if "accuracy" in metrics:
        parts = [f"accuracy {metrics['accuracy']:.2%} on the validation images", *parts]
    return "; ".join(parts)


def draw_curves(metrics, path):
    """Draws loss, rate and accuracy over the epochs into ``path``. Returns ``False`` where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    runs = {"trained": metrics, "from scratch": metrics.get("from_scratch", {})}
    panels = {"loss": "training loss", "learning_rate": "learning rate", "eval_accuracy": "accuracy"}
    figure = Figure(figsize=(11, 3.5), layout="constrained")
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
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type="validation",
            dataset_name=f"{metrics['data']}, {metrics['validation_from']}",
            metric_type="accuracy",
            metric_value=round(metrics["accuracy"], 4),
        )
        for _ in range("accuracy" in metrics)
    ]
    data = ModelCardData(
        license="unknown",  # that of the data and of the first weights, which only their users know
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=[start.model.config.model_type, "pp-hgnetv2"] if "hgnet_v2" in start.model.config.model_type else None,
        model_name=title if results else None,
        eval_results=results or None,
    )
    skipped = f" {len(metrics['skipped'])} images could not be read and were left out." if metrics["skipped"] else ""
    settings = {**metrics["training_arguments"], "learning_rate": metrics["learning_rate"], **metrics["options"]}
    return "\n".join(
        [
            "---",
            data.to_yaml(),
            "---",
            "",
            f"# {title}",
            "",
            f"Trained with hgnetv2_hf on {metrics['data']} ({metrics['train_images'] or 'a stream of'} images, {metrics['classes']} classes): "
            f"{_figures(metrics)}.{skipped}",
            "",
            *(f"- {note}" for note in start.notes),
            *([f"- teacher: {metrics['teacher']}"] if metrics["teacher"] else []),
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
