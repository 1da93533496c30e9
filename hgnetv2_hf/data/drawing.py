"""Pictures of images with the boxes and names of what is in them, or with a heat map."""

import zlib

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from ..files.atomic import atomic_file
from .objects import Objects


_COLOURS = ((0, 0, 128), (0, 128, 255), (128, 255, 128), (255, 160, 0), (200, 0, 0))  # of heat, from 0 to 1
_TILE = 320  # pixels of the longer side of an image on a contact sheet
_GAP = 6


def draw_objects(image, objects, classes):
    """
    Args:
        image (`PIL.Image.Image`): RGB, left as it is.
        objects ([`Objects`]): what is in it.
        classes (`list[str]`): the name of each class.

    Returns:
        `PIL.Image.Image`: the image with a box and the class's name per object, small ones on top, a colour per class;
        of a crowd, the name says so.
    """
    order = np.argsort(-np.asarray(objects.areas), kind="stable")
    names = [classes[label] for label in objects.labels[order]]
    captions = [f"{name} (crowd)" if crowd else name for name, crowd in zip(names, objects.crowd[order])]
    return draw_boxes(image.copy(), objects.boxes[order].tolist(), names, captions)


def draw_boxes(image, boxes, names, captions):
    """
    Draws boxes and captions into an image, as large as its short side needs to be read.

    Args:
        image (`PIL.Image.Image`): RGB; changed.
        boxes (list of four numbers each): left, top, right, bottom in pixels; the last is on top.
        names (`list[str]`): decide each one's colour.
        captions (`list[str]`): what is written.

    Returns:
        `PIL.Image.Image`: the same image.
    """
    side = min(image.size)
    width, font = max(1, side // 200), PIL.ImageFont.load_default(max(11, side // 28))
    drawing = PIL.ImageDraw.Draw(image)
    for (left, top, right, bottom), name, caption in zip(boxes, names, captions):
        colour = f"hsl({zlib.crc32(name.encode('utf-8', 'replace')) % 360}, 80%, 38%)"
        drawing.rectangle((left, top, max(left, right), max(top, bottom)), outline=colour, width=width)
        _draw_label(drawing, caption, (left, top), font, colour)
    return image


def _draw_label(drawing, text, corner, font, colour):
    """On the box's upper edge, moved into the image where it would leave it."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    left, top, right, bottom = drawing.textbbox((0, 0), text, font=font)
    width, height = right + left, bottom + top
    x = max(0, min(corner[0], drawing.im.size[0] - width))
    y = max(0, corner[1] - height)
    drawing.rectangle((x, y, x + width, y + height), fill=colour)
    drawing.text((x, y), text, fill="white", font=font)


def draw_heat(image, heat, side=320):
    """
    Args:
        image (`PIL.Image.Image`): RGB.
        heat (`np.ndarray` of shape `(height, width)`): from 0 to 1, of the image's size.
        side (`int`, defaults to 320): smaller images are enlarged to it, by whole pixels.

    Returns:
        `PIL.Image.Image`: the image, and beside it the same in grey under the heat: blue is 0, red is 1.
    """
    places = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(heat, places, channel) for channel in zip(*_COLOURS)], axis=-1)
    mixed = PIL.Image.blend(image.convert("L").convert("RGB"), PIL.Image.fromarray(colours.astype("uint8")), 0.5)
    scale = max(1, side // max(image.size))
    size = (image.width * scale, image.height * scale)
    pair = PIL.Image.new("RGB", (2 * size[0] + _GAP, size[1]), "white")
    for number, each in enumerate((image, mixed)):
        pair.paste(each.resize(size, PIL.Image.Resampling.NEAREST), (number * (size[0] + _GAP), 0))
    return pair


def draw_contact_sheet(pairs, classes, path, columns=4):
    """
    Writes one PNG of many images with their objects, say training images as they come out of the augmentation.

    Args:
        pairs (iterable of `(PIL.Image.Image, Objects)`): in the order of reading.
        classes (`list[str]`): the name of each class.
        path (`str` or `os.PathLike`): the PNG to write; complete or absent.
        columns (`int`, defaults to 4): images beside each other.
    """
    tiles = [_tile(image, objects, classes) for image, objects in pairs]
    columns = max(1, min(columns, len(tiles)))
    cell = _TILE + _GAP
    rows = -(-len(tiles) // columns)
    sheet = PIL.Image.new("RGB", (columns * cell + _GAP, max(1, rows) * cell + _GAP), "white")
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        sheet.paste(tile, (column * cell + _GAP, row * cell + _GAP))
    with atomic_file(path) as partial:
        sheet.save(partial, "PNG")


def _tile(image, objects, classes):
    """The image and its boxes at a size to look at; small images grow by whole pixels."""
    scale = _TILE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    how = PIL.Image.Resampling.NEAREST if scale > 1 else PIL.Image.Resampling.LANCZOS
    scales = np.tile(np.array(size) / image.size, 2)
    scaled = Objects(objects.boxes * scales, objects.labels, objects.crowd, objects.areas)
    return draw_objects(image.convert("RGB").resize(size, how), scaled, classes)
