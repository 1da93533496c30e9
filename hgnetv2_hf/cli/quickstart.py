"""``hgnetv2-hf quickstart``: from a PaddleClas file to labels, offline, with what ships with the package."""

import os
from pathlib import Path

from ..errors import HGNetV2Error
from ._framework import add_command


def add(commands):
    parser = add_command(commands, "quickstart", "Convert the shipped checkpoint and classify real images, offline.")
    parser.add_argument(
        "--out", default="hgnetv2-digits", metavar="DIR", help="folder to write (default: %(default)s)"
    )
    return parser


def run(arguments):
    quickstart(arguments.out)


def quickstart(output_dir, show=print):
    """
    Converts the shipped checkpoint, classifies the shipped scans through `pipeline`, and measures its accuracy.

    Args:
        output_dir (`str` or `os.PathLike`): the folder to write; that of an earlier run is replaced.
        show (callable, defaults to `print`): receives each line of text.

    Returns:
        `float`: accuracy on the 599 held-out scans, 0…1.

    Raises:
        `HGNetV2Error`: the folder is somebody else's, or cannot be written.
    """
    from transformers import pipeline

    from ..conversion import convert_checkpoint
    from ..data.digits import load_held_out
    from ..hub.published import ASSETS

    if os.path.lexists(output_dir) and not _is_of_an_earlier_run(Path(output_dir)):
        raise HGNetV2Error(f"{output_dir} is there and not of `quickstart`; choose another folder with --out.")
    show("1. Convert a PaddleClas checkpoint (handwritten digits) into a Transformers folder")
    show(str(convert_checkpoint("digits", output_dir, overwrite=True, verify=True)))

    show("\n2. Load it with the Auto classes and classify real scans")
    classify = pipeline("image-classification", model=str(output_dir), device="cpu")
    paths = sorted((ASSETS / "digits").glob("*.png"))
    predictions = classify([str(path) for path in paths], top_k=1)
    show(f"  {'image':<14}{'label':<7}score")
    for path, (best,) in zip(paths, predictions):
        show(f"  {path.name:<14}{best['label']:<7}{best['score']:.4f}")

    show("\n3. Accuracy on the third of the scans that training never saw")
    images, labels = load_held_out()
    predictions = classify(images, top_k=1, batch_size=64)
    right = sum(best["label"] == str(label) for (best,), label in zip(predictions, labels))
    show(f"  {right} of {len(labels)} scans, {right / len(labels):.2%}")

    show(f"\nThe folder is {output_dir}. Use it in Python:")
    show("  import hgnetv2_hf")
    show("  from transformers import pipeline")
    show(f'  classify = pipeline("image-classification", model="{output_dir}")')
    return right / len(labels)


def _is_of_an_earlier_run(folder):
    """Whether a folder's card says that it was converted from the shipped checkpoint, and no more."""
    card = folder / "README.md"
    return card.is_file() and "converted from `hgnetv2_digits.pdparams`" in card.read_text(encoding="utf-8")
