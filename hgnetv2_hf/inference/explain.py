"""Heat maps of many image files, as pictures to look at and a table."""

import csv
import os
from functools import partial

import numpy as np
import PIL.Image
import torch
from tqdm.auto import tqdm

from ..backbone import load_image_processor
from ..data.drawing import draw_heat
from ..errors import InferenceError, raised_as
from ..files.atomic import atomic_folder, claim
from ..files.images import UNREADABLE, find_images, printable_path, unused_name
from ..wording import counted, printable, sentence
from .grad_cam import class_index, find_layer, maps_and_logits
from .predictors import UNLOADABLE, load_whole, prepare, recognise
from .runtime import top_labels
from .stages import in_stages


TABLE = "explained.csv"
_COLUMNS = ("image", "picture", "label", "score", "explained", "x", "y", "error")


@raised_as(InferenceError)
def explain(
    paths, model, output_dir, target=None, layer="stage4", batch_size=8, workers=None, device=None, overwrite=False,
    show=print,
):  # fmt: skip
    """
    Writes a folder with one picture per image (left what the network sees, right where it sees the class) and a table.

    Args:
        paths (`list[str]`): files, folders (with those inside) or globs.
        model (`str` or `os.PathLike`): the folder or repository of a classifier with HGNetV2; not an exported one,
            which has no gradients.
        output_dir (`str` or `os.PathLike`): the folder to write; complete or absent.
        target (`str` or `int`, *optional*): the label or index of the class to look for; by default each image's best.
        layer (`str`, defaults to `"stage4"`): see [`grad_cam`].
        batch_size (`int`, defaults to 8): images per call of the network.
        workers (`int`, *optional*): threads that decode and draw; by default one per core.
        device (`str`, *optional*): such as `"cpu"` or `"cuda"`; by default the GPU, if there is one.
        overwrite (`bool`, defaults to `False`): replace an existing folder of this command.
        show (callable, defaults to `print`): receives the summary.

    Returns:
        `dict`: `images` and `unreadable`. The table `explained.csv` has a row per image: the best label and its score,
            the label that was looked for, and the strongest place of its map in pixels of what the network sees.

    Raises:
        `InferenceError`: there are no images, the model is no such classifier, or the folder cannot be written. An
            image that cannot be read is no error: its row says why.
    """
    for name, value in (("batch_size", batch_size), ("workers", workers)):
        if value is not None and value < 1:
            raise InferenceError(f"Unsupported {name} {value}: expected a positive whole number.")
    with claim(output_dir, [*paths, model], overwrite, TABLE):
        total = sum(1 for _ in find_images(paths))
        network, processor = load_network(recognise(model), device)
        try:
            find_layer(network, layer)
            target = None if target is None else class_index(target, network.config)
        except ValueError as error:
            raise InferenceError(str(error)) from error
        compute = partial(_answers, network, target, layer)
        unreadable, used = 0, set()

        def finish(file, decoded, answer):
            return partial(_finish, processor, decoded[0], answer, folder / unused_name(file, used))

        with atomic_folder(output_dir) as folder, open(folder / TABLE, "w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, _COLUMNS)
            writer.writeheader()
            staged = in_stages(
                find_images(paths), partial(_decode, processor), compute, finish, batch_size,
                workers or os.cpu_count() or 1,
            )  # fmt: skip
            for file, error, row in tqdm(staged, total=total, desc="explain", unit="image", mininterval=0.5):
                unreadable += error is not None
                row = {"error": printable(error)} if row is None else row
                writer.writerow({"image": printable_path(file), **row})
    show(
        f"{counted(total - unreadable, 'heat map')} -> {printable_path(output_dir)} (pictures and {TABLE})"
        + (f"; {counted(unreadable, 'image')} could not be read" if unreadable else "")
    )
    return {"images": total, "unreadable": unreadable}


def load_network(recognised, device=None):
    """
    The classifier in float32 as it is, because an optimised one has no gradients, and its image processor.

    Raises:
        `InferenceError`: it is no classifier, an exported folder, or cannot be loaded.
    """
    if recognised.task != "classifier":
        raise InferenceError(f"{recognised.name} is a detector, whose boxes say where; use detect.")
    if recognised.runtime != "torch":
        raise InferenceError(
            f"{recognised.name} is an exported folder, which has no gradients; pass the model's own folder."
        )
    try:
        network = load_whole(recognised.model, "classifier", dtype=torch.float32).eval()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        return network.to(device), load_image_processor(recognised.model)
    except (*UNLOADABLE, RuntimeError, AssertionError) as error:  # the last two: no such device
        raise InferenceError(f"{recognised.name} cannot be loaded: {sentence(error)[:300]}") from error


def _decode(processor, file):
    """The pixels for the network `(1, channels, height, width)`, or the error as text."""
    try:
        return (torch.from_numpy(np.moveaxis(prepare(processor, file), -1, 0)[None]),)
    except UNREADABLE as error:
        return sentence(error)


def _answers(network, target, layer, decoded):
    """Per image the row and the heat map; those of different sizes are computed one by one."""
    pixel_values = [each for (each,) in decoded]
    if len({each.shape for each in pixel_values}) > 1:
        return [_answers(network, target, layer, [each])[0] for each in decoded]
    try:
        maps, logits = maps_and_logits(network, torch.cat(pixel_values).to(network.device), target, layer)
    except (RuntimeError, ValueError) as error:
        raise InferenceError(f"The model cannot be explained: {sentence(error)[:300]}") from error
    return [_answer(network.config, target, *each) for each in zip(maps.cpu().numpy(), logits.float().cpu().numpy())]


def _answer(config, target, heat, logits):
    (best,) = top_labels(logits, config, 1)
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    explained = best["label"] if target is None else config.id2label[target]
    row = {"label": printable(best["label"]), "score": round(best["score"], 6), "explained": printable(explained)}
    return {**row, **({"x": int(x), "y": int(y)} if heat.max() > 0 else {})}, heat


def _finish(processor, pixel_values, answer, picture):
    """Draws; returns the row."""
    row, heat = answer
    draw_explained(processor, pixel_values, heat).save(picture)
    return {**row, "picture": printable(picture.name)}


def draw_explained(processor, pixel_values, heat):
    """
    Args:
        processor: the image processor.
        pixel_values (`torch.Tensor` of shape `(1, channels, height, width)`): what it prepared.
        heat (`np.ndarray` of shape `(height, width)`): from 0 to 1.

    Returns:
        `PIL.Image.Image`: left what the network sees, right the same under the heat map.
    """
    visible = pixel_values[0].numpy()
    if getattr(processor, "do_normalize", False):
        mean, std = (np.reshape(each, (-1, 1, 1)) for each in (processor.image_mean, processor.image_std))
        visible = visible * std + mean
    factor = getattr(processor, "rescale_factor", 1 / 255) if getattr(processor, "do_rescale", True) else 1
    levels = np.clip(np.rint(visible / factor), 0, 255).astype("uint8")
    return draw_heat(PIL.Image.fromarray(np.moveaxis(np.broadcast_to(levels, (3, *levels.shape[1:])), 0, -1)), heat)
