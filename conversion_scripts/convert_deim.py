"""Converts a detector of DEIM, or its backbone, into a Transformers folder.

``hgnetv2-hf convert --layout dfine --family deim``
"""

import sys

from hgnetv2_hf.cli import main


if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:], "--layout", "dfine", "--family", "deim"]))
