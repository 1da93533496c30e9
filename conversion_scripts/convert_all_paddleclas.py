"""Converts PaddleClas's nineteen published classifiers, and pushes them to the Hub if asked to."""

import sys

from hgnetv2_hf.cli.convert_all import main


if __name__ == "__main__":
    sys.exit(main())
