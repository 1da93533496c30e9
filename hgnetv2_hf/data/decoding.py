"""Images to RGB, as PaddleClas decodes them."""

import io

import PIL.Image

from ..model.image_processing_hgnetv2 import to_rgb


def open_image(file):
    """A file's image, decoded to RGB. Raises one of `files.images.UNREADABLE` where it is none."""
    with PIL.Image.open(file) as image:
        return to_rgb(image).copy()


def decode(image):
    """An image of the ``datasets`` library, decoded or not, to RGB."""
    if isinstance(image, dict):
        image = open_image(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"])
    return image if image.mode == "RGB" else to_rgb(image)
