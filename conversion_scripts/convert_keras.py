"""Converts a preset of KerasHub into a Transformers folder: ``hgnetv2-hf convert --layout keras``."""

import sys

from hgnetv2_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:], "--layout", "keras"]))
