"""A page of pictures per model: what it takes for what, how sure it is, its worst mistakes; and models side by
side."""

import warnings

import numpy as np

from .coco import RECALLS
from .confusion import confused_pairs


NOTHING = "(nothing)"
MISTAKES = 20  # drawn on a page
BOXES = {"found": ("green", "-"), "missed": ("orange", "-"), "crowd": ("grey", "-"), "wrong": ("red", "--")}
THUMBNAIL = 320  # pixels of the longer side of an image that is drawn
_ALL_NAMES = 60  # classes whose confusion is drawn as a table with names
_PAIRS = 25
_COLUMNS = 5


def can_draw():
    """Whether matplotlib is installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw_classifier(path, title, confusion, names, reliability, mistakes):
    """
    Args:
        path (`Path`): the PNG to write.
        title (`str`): the model and its figures.
        confusion (`np.ndarray`): `(classes, classes)` counts, a row per true class; see [`confusion_matrix`].
        names (`list[str]`): of the classes.
        reliability (`list[dict]`): see [`calibration.reliability`].
        mistakes (`list[tuple[PIL.Image.Image, str]]`): images and what is written above each.
    """
    figure, left, right, pictures = _page(title, len(mistakes), "the surest wrong answers")
    _draw_confusion(left, confusion, names, "answer")
    _draw_reliability(right, reliability)
    for axes, (image, text) in zip(pictures, mistakes):
        _show(axes, image, text)
    _save(figure, path)


def draw_detector(path, title, confusion, names, curves, mistakes):
    """
    Args:
        path, title, names: as in [`draw_classifier`].
        confusion (`np.ndarray`): `(classes + 1, classes + 1)`, see [`detection_confusion`].
        curves (`dict[str, np.ndarray]`): see [`coco_evaluation`].
        mistakes (`list[tuple]`): images, what is written above each, and boxes: `(left, top, right, bottom)` in pixels
            of the drawn image, text, and a key of `BOXES`.
    """
    kinds = ", ".join(f"{kind} ({colour})" for kind, (colour, _) in BOXES.items())
    figure, left, right, pictures = _page(title, len(mistakes), f"the images with the lowest F1: {kinds}")
    _draw_confusion(left, confusion, [*names, NOTHING], "detected")
    for name, label in (("AP50", "IoU 0.5"), ("AP75", "IoU 0.75"), ("AP", "mean of IoU 0.5 … 0.95")):
        right.plot(RECALLS, curves[name], label=label)
    right.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="recall", ylabel="precision, mean over classes", box_aspect=1)
    right.grid(alpha=0.3)
    right.legend(loc="lower left")
    for axes, (image, text, boxes) in zip(pictures, mistakes):
        _show(axes, image, text)
        for box, label, kind in boxes:
            _draw_box(axes, box, label, *BOXES[kind])
    _save(figure, path)


def draw_comparison(path, rows, figure_name):
    """
    Draws accuracy against speed, a point per model.

    Args:
        path (`Path`): the PNG to write.
        rows (`list[tuple[str, float, float]]`): name, images per second, figure.
        figure_name (`str`): what the figure is.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, speed, value in rows:
        axes.plot([speed], [value], "o")
        axes.annotate(_plain(name), (speed, value), textcoords="offset points", xytext=(6, 4), fontsize=8)
    axes.set(xlabel="images per second", ylabel=figure_name)
    speeds = [speed for _, speed, _ in rows]
    if max(speeds) > 10 * min(speeds):
        axes.set_xscale("log")
    axes.margins(0.2)
    axes.grid(alpha=0.3)
    _save(figure, path)


def _page(title, mistakes, heading):
    """A figure, its two axes above, and one per mistake below."""
    from matplotlib.figure import Figure

    lines = -(-mistakes // _COLUMNS)
    figure = Figure(figsize=(14, 7.8 + 2.9 * lines), layout="constrained")
    parts = figure.subfigures(2 if lines else 1, 1, height_ratios=[7.8, 2.9 * lines] if lines else None, squeeze=False)
    parts[0, 0].suptitle(_plain(title), fontsize=11)
    left, right = parts[0, 0].subplots(1, 2)
    if not lines:
        return figure, left, right, []
    parts[1, 0].suptitle(heading, fontsize=10)
    pictures = parts[1, 0].subplots(lines, _COLUMNS, squeeze=False).ravel()
    for axes in pictures:
        axes.axis("off")
    return figure, left, right, pictures


def _draw_confusion(axes, confusion, names, answer):
    if len(names) > _ALL_NAMES:
        return _draw_pairs(axes, confusion, names)
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel=f"{answer} (colour: share of the class)", ylabel="class")
    names, size = [_plain(name) for name in names], 9 if len(names) <= 20 else 5
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
    axes.set_yticks(range(len(names)), names, fontsize=size)
    if len(names) <= 12:
        for row, column in zip(*np.nonzero(confusion)):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(confusion[row, column]), ha="center", va="center", color=colour, fontsize=8)


def _draw_pairs(axes, confusion, names):
    pairs = confused_pairs(confusion, names, _PAIRS)
    texts = [_plain(f"{_short(true)} → {_short(answer)}") for true, answer, _ in pairs]
    axes.barh(range(len(pairs)), [count for *_, count in pairs])
    axes.set_yticks(range(len(pairs)), texts, fontsize=7)
    axes.set_ylim(max(len(pairs), 1) - 0.5, -0.5)
    axes.set(xlabel="the most frequent confusions, class → answer: how often")


def _draw_reliability(axes, rows):
    known = [row for row in rows if row["images"]]
    middles = [(row["low"] + row["high"]) / 2 for row in known]
    width = 1 / max(len(rows), 1)
    axes.bar(middles, [row["accuracy"] for row in known], width=width * 0.95, label="accuracy")
    axes.plot([row["confidence"] for row in known], [row["accuracy"] for row in known], "k.", label="mean confidence")
    axes.plot([0, 1], [0, 1], "k--", linewidth=1, label="right as often as sure")
    total = sum(row["images"] for row in known) or 1
    for middle, row in zip(middles, known):
        axes.text(middle, 0.01, f"{row['images'] / total:.0%}", ha="center", fontsize=7, rotation=90, color="white")
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="confidence (share of the images in white)", ylabel="accuracy")
    axes.set(box_aspect=1)
    axes.legend(loc="upper left")


def _show(axes, image, text):
    axes.imshow(np.asarray(image))
    axes.set_title(_plain(text), fontsize=7)


def _draw_box(axes, box, text, colour, line):
    from matplotlib.patches import Rectangle

    left, top, right, bottom = box
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linestyle=line))
    side = "top" if line == "--" else "bottom"  # a wrong detection's text beside that of the object under it
    axes.text(left, top, _plain(_short(text, 24)), color=colour, fontsize=6, clip_on=True, va=side)


def _short(text, limit=30):
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _plain(text):
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def _save(figure, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)  # names in other scripts
        figure.savefig(path, dpi=110, bbox_inches="tight")
