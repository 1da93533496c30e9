"""scikit-learn's handwritten digits: 1,797 real scans of 8×8 pixels (E. Alpaydin, C. Kaynak, UCI "Optical Recognition
of Handwritten Digits"), rendered as 8-bit greyscale. A third is held out; it ships with the package."""

from pathlib import Path

import numpy as np
import PIL.Image


SEED = 0
HELD_OUT_FILE = Path(__file__).parents[1] / "assets" / "digits_held_out.npz"


def load_split():
    """(scans, labels) for training, and for the held-out third: `uint8` (n, 8, 8) and `int64` (n,). Needs
    scikit-learn."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    scans = np.rint(digits.images * 255 / 16).astype("uint8")
    train_scans, held_scans, train_labels, held_labels = train_test_split(
        scans, digits.target, test_size=1 / 3, stratify=digits.target, random_state=SEED
    )
    return (train_scans, train_labels), (held_scans, held_labels)


def load_held_out():
    """The held-out third as it ships with the package: PIL images and their labels."""
    with np.load(HELD_OUT_FILE) as file:
        return [PIL.Image.fromarray(scan) for scan in file["scans"]], file["labels"].tolist()
