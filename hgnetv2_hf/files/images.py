"""Image files as commands name them: files, folders and globs."""

import glob
import os
from pathlib import Path

import PIL.Image
import PIL.ImageOps

from ..errors import DataError
from ..wording import printable


IMAGE_SUFFIXES = tuple(PIL.Image.registered_extensions())
_LONGEST_STEM = 240  # bytes, which leaves room for a number and an ending
UNREADABLE = (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError)  # what Pillow raises for a bad file


def is_image_name(name):
    """Whether a file in a folder is taken for an image: by its ending, unless hidden, as macOS's `._photo.jpg` is."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def find_images(paths):
    """
    Args:
        paths (`list[str]`): files, folders (their images, also in folders inside) or globs.

    Yields:
        `str`: files in the given order, those of a folder or glob sorted; one folder's names are in memory at a time.
        Links to folders are followed, each folder once.

    Raises:
        `DataError`: a path leads to no file.
    """
    for path in paths:
        empty = True
        for file in _files(path):
            empty = False
            yield file
        if empty:
            raise DataError(f"There is no image {path}.")


def walk(path):
    """
    Args:
        path (`str` or `os.PathLike`): a folder.

    Yields:
        `tuple[str, list[str]]`: the folder and those inside, in order, with the names of their files; hidden ones are
        left out, links followed, each folder once.
    """
    seen = set()
    for folder, inside, names in os.walk(path, followlinks=True):
        if (place := os.path.realpath(folder)) in seen:  # a link back to a folder above would never end
            inside.clear()
            continue
        seen.add(place)
        inside[:] = sorted(name for name in inside if not name.startswith("."))
        yield folder, names


def _files(path):
    if os.path.isdir(path):
        for folder, names in walk(path):
            yield from (os.path.join(folder, name) for name in sorted(names) if is_image_name(name))
    elif os.path.exists(path):
        yield path
    else:
        yield from sorted(glob.glob(path, recursive=True))


def open_upright(path):
    """An image file in RGB, turned as its EXIF tag says. Raises one of `UNREADABLE`."""
    with PIL.Image.open(path) as image:
        return PIL.ImageOps.exif_transpose(image).convert("RGB")


def unused_name(path, used):
    """A PNG named after its image, and added to the set `used`; images of the same name are numbered."""
    stem = Path(path).stem
    if len(os.fsencode(stem)) > _LONGEST_STEM:
        stem = os.fsencode(stem)[:_LONGEST_STEM].decode("utf-8", "ignore")
    name, number = f"{stem}.png", 2
    while name in used:
        name, number = f"{stem}-{number}.png", number + 1
    used.add(name)
    return name


def file_stamp(path):
    """Changes when a file is replaced; ``None`` of one that cannot be looked at."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def folder_stamp(folder):
    """Changes when a local model changes; empty of one that is on the Hub."""
    files = sorted(file for file in Path(folder).glob("**/*") if file.is_file())
    return [[str(file.relative_to(folder)), *file_stamp(file)] for file in files]


def printable_path(path):
    """
    A path as tables and printed rows show it, always valid UTF-8: as it is, or its `file://` URI where it is not.

    The bytes come back with `os.fsdecode(urllib.parse.unquote_to_bytes(uri.removeprefix("file://")))`. A path that
    itself starts with `file:` becomes a URI too, so that no two files look the same.
    """
    path = os.fspath(path)
    if path == printable(path) and not path.startswith("file:"):
        return path
    return Path(path).absolute().as_uri()
