"""Converts a timm file or folder (.safetensors, .bin) to Transformers: ``hgnetv2-hf convert --layout timm``."""

import sys

from hgnetv2_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:], "--layout", "timm"]))
