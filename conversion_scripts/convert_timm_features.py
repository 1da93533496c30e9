"""Converts a backbone of timm's ``features_only`` to Transformers: ``hgnetv2-hf convert --layout timm_features``."""

import sys

from hgnetv2_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:], "--layout", "timm_features"]))
