"""Converts stock Transformers' hgnet_v2, a file or folder: ``hgnetv2-hf convert --layout transformers``."""

import sys

from hgnetv2_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:], "--layout", "transformers"]))
