"""Converts a detector of DEIMv2, or its backbone, into a Transformers folder.

``hgnetv2-hf convert --layout dfine``
"""

import sys

from hgnetv2_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:], "--layout", "dfine"]))
