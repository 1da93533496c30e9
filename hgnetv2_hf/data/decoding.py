"""Images to RGB, as PaddleClas decodes them."""

import io

import PIL.Image

from ..model.image_processing_hgnetv2 import to_rgb


_ORIENTATION = 0x0112  # EXIF's tag
_TURNED = (5, 6, 7, 8)  # its values where width and height change places


def open_image(file):
    """A file's image, decoded to RGB. Raises one of `files.images.UNREADABLE` where it is none."""
    with PIL.Image.open(file) as image:
        return to_rgb(image).copy()


def decode(image):
    """An image of the ``datasets`` library, decoded or not, to RGB."""
    if isinstance(image, dict):
        image = open_image(io.BytesIO(image["bytes"]) if image.get("bytes") is not None else image["path"])
    return image if image.mode == "RGB" else to_rgb(image)


def open_sized(file, size):
    """
    An image of which the annotations say how large it is.

    Args:
        file (`str` or file object): an image.
        size (`(int, int)`): width and height in pixels. They say which pixels the boxes are of: those of the upright
            image (EXIF rotation applied), or, where only these have this size, the pixels as they are stored.

    Returns:
        `PIL.Image.Image`: RGB, of this size.

    Raises:
        One of `files.images.UNREADABLE`: the file is no image; `ValueError` where the size is another.
    """
    with PIL.Image.open(file) as image:
        width, height = upright_size(image)
        if size != (width, height):
            if size != image.size:
                raise ValueError(
                    f"the image has {width}×{height} pixels, and {size[0]}×{size[1]} stands in the annotations"
                )
            image.getexif()[_ORIENTATION] = 1
        rgb = to_rgb(image).copy()
    if rgb.size != size:
        raise ValueError(f"the image has {rgb.width}×{rgb.height} pixels once decoded, not {size[0]}×{size[1]}")
    return rgb


def upright_size(image):
    """Width and height of an opened image once its EXIF rotation is applied; only TIFF is decoded for it."""
    if image.format == "TIFF":
        image.load()  # which rotates it; whether its size was turned before that depends on Pillow's version
        return image.size
    turned = image.getexif().get(_ORIENTATION, 1) in _TURNED
    return image.size[::-1] if turned else image.size


def measure(file):
    """Width and height of an image file, upright, from its header. Raises one of `files.images.UNREADABLE`."""
    with PIL.Image.open(file) as image:
        return upright_size(image)
