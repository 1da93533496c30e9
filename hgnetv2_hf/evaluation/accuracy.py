"""How many images a classifier gets right: top-1, top-5, per class, and against chance."""

import torch


def five_best(logits: torch.Tensor) -> torch.Tensor:
    """The indices of the five largest logits, best first: `(images, classes)` to `(images, 5)`, or fewer where there
    are fewer."""
    return logits.topk(min(5, logits.shape[-1])).indices


def accuracies(best, labels):
    """
    Args:
        best (`np.ndarray`): `(images, k)`, the classes that a classifier prefers, best first; see [`five_best`].
        labels (`np.ndarray`): `(images,)`, the true classes.

    Returns:
        `dict[str, float]`: `accuracy` and `top5`, 0…1.
    """
    hits = best == labels[:, None]
    return {"accuracy": float(hits[:, 0].mean()), "top5": float(hits.any(1).mean())}


def per_class(confusion, classes):
    """Class -> its images and the share of them that was recognised (``None`` where there are none).

    `confusion` is that of [`confusion_matrix`], `classes` the names in its order.
    """
    images, right = confusion.sum(1).tolist(), confusion.diagonal().tolist()
    return {
        name: {"images": count, "accuracy": hits / count if count else None}
        for name, count, hits in zip(classes, images, right)
    }


def close_to_chance(accuracy, images_per_class):
    """A sentence (without its full stop) where an accuracy is hardly better than naming the most frequent class, else
    ``None``.

    Args:
        accuracy (`float`): 0…1.
        images_per_class (`list[int]`): how many images it was measured on.
    """
    if not sum(images_per_class):
        return None
    chance = max(images_per_class) / sum(images_per_class)
    if (accuracy - chance) / (1 - chance + 1e-9) > 0.1:
        return None
    return f"This is close to chance ({chance:.1%}, the most frequent class)"
