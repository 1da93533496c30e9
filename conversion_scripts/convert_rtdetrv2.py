"""Converts a backbone of RT-DETRv2 (.pth) into a Transformers folder: ``hgnetv2-hf convert --layout rtdetrv2``."""

import sys

from hgnetv2_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:], "--layout", "rtdetrv2"]))
