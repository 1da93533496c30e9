"""Which classes a classifier takes for which: counts, a table, a picture."""

import csv

import numpy as np


def confusion_matrix(answers, labels, classes):
    """
    Args:
        answers, labels (`np.ndarray`): `(images,)`, what a classifier says and what is true.
        classes (`int`)

    Returns:
        `np.ndarray`: `(classes, classes)`, counts of images; a row per true class, a column per answer.
    """
    return np.bincount(labels * classes + answers, minlength=classes**2).reshape(classes, classes)


def write_confusion(confusion, classes, path):
    """Writes a CSV: a row per true class, a column per answer; counts of images."""
    with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *classes])
        writer.writerows([name, *row] for name, row in zip(classes, confusion.tolist()))


def draw_confusion(confusion, classes, path):
    """Draws the shares of each true class's answers into ``path``. Returns ``False`` where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    side = min(4 + 0.25 * len(classes), 14)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    picture = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="answer", ylabel="class")
    if len(classes) <= 60:
        axes.set_xticks(range(len(classes)), classes, rotation=90)
        axes.set_yticks(range(len(classes)), classes)
    figure.colorbar(picture, label="share of the class's validation images", shrink=0.8)
    figure.savefig(path, dpi=120, bbox_inches="tight")  # long names of classes would be cut
    return True


def confused_pairs(confusion, names, limit):
    """
    Args:
        confusion (`np.ndarray`): of [`confusion_matrix`].
        names (`list[str]`): of the classes.
        limit (`int`)

    Returns:
        `list[tuple[str, str, int]]`: class, answer and how often, of the most frequent wrong answers.
    """
    wrong = confusion - np.diag(confusion.diagonal())
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    rows, columns = np.unravel_index(order, wrong.shape)
    counts = wrong[rows, columns].tolist()
    return [(names[row], names[column], count) for row, column, count in zip(rows, columns, counts) if count]
