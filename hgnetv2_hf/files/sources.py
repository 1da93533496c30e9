"""Images wherever they lie: files, folders and globs, here or of a URL; rows of Parquet; WebDataset's tars."""

import contextlib
import functools
import io
import json
import os
import tarfile
import tempfile
import threading
from typing import Any, NamedTuple, Optional

import PIL.Image

from ..errors import DataError, HGNetV2Error
from ..wording import counted, sentence
from .images import file_stamp, find_images, is_image_name
from .storage import detail, filesystem, is_url, resolved, stamp_of, storage_errors, url_of


_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_GLOB = "*?["
_BEHIND_A_TAR = 1 << 16  # bytes that are looked at: zeros, of a writer's last record
_LISTED_IN_MEMORY = 1 << 24  # bytes
_reading = threading.Lock()


class Found(NamedTuple):
    """An image that was found, and can be read by any process that sees its file."""

    name: str  # a file's path or URL, `photos.parquet#7` (the row, from 0) or `photos.tar#a.jpg`
    stamp: Any  # changes when the file is replaced
    file: str  # that holds it
    # in that file: ("bytes", start, end), ("row", column, row group, row) or ("error", text)
    place: Optional[tuple] = None


class Sources:
    """
    The images that paths name, looked up once and kept in a temporary file, in order.

    Args:
        paths (`list[str]`): files, folders (their images, also in folders inside) and globs, of this machine or of a
            URL that fsspec knows (`s3://`, `gs://`, `hf://`, `file://`, …). A `.parquet` file is its rows, a `.tar`
            file its images.
        image_column (`str`, *optional*): of the Parquet files; by default the only one that holds images.

    Raises:
        `DataError`: a path leads to no image, or a storage cannot be read.
    """

    def __init__(self, paths, image_column=None):
        self.remote = any(is_url(resolved(path)) for path in paths)
        self._length, self._lock = 0, threading.Lock()
        shards = False
        self._listing = tempfile.SpooledTemporaryFile(_LISTED_IN_MEMORY)  # noqa: SIM115
        for found in _find(paths, image_column):
            try:
                self._listing.write(json.dumps(found).encode() + b"\n")
            except OSError as error:
                raise DataError(f"Cannot list images in {tempfile.gettempdir()}: {error.strerror}.") from error
            self._length += 1
            shards |= found.file.lower().endswith(".parquet")
        if image_column is not None and not shards:
            raise DataError(f"The option image_column ({image_column}) is for Parquet files, and none is given.")

    def __len__(self):
        return self._length

    def __iter__(self):
        """Yields [`Found`]; several iterations may go on at once."""
        position = 0
        while True:
            with self._lock:
                self._listing.seek(position)
                lines = self._listing.readlines(1 << 20)
                position = self._listing.tell()
            if not lines:
                return
            yield from (_found(line) for line in lines)


def _found(line):
    name, stamp, file, place = json.loads(line)
    return Found(name, stamp, file, place and tuple(place))


def open_image(found):
    """
    Returns:
        `PIL.Image.Image`: as it is stored, loaded.

    Raises:
        `ValueError`: it cannot be read.
        `DataError`: the storage that it lies in cannot be used.
    """
    with _readable(found), _open(found) as file:
        return _loaded(file)


def read_image(found):
    """As [`open_image`]; returns the encoded bytes too."""
    with _readable(found):
        with _open(found) as file:
            content = file.read()
        return _loaded(_named(content, found.name)), content


@contextlib.contextmanager
def _readable(found):
    try:
        yield
    except HGNetV2Error:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        if isinstance(error, OSError) and error.filename:
            error.filename = found.name
        raise ValueError(f"Cannot read the image {found.name}: {sentence(error)}") from error


def _loaded(file):
    with PIL.Image.open(file) as image:
        image.load()
        return image


def _named(content, name):
    """Bytes as a file that Pillow calls by the name."""
    return _Named(io.BytesIO(content), name)


class _Named(io.BufferedReader):
    def __init__(self, raw, name):
        super().__init__(raw)
        self._called = name

    def __repr__(self):
        return repr(self._called)


def _open(found):
    if found.place is None and not is_url(found.file):
        return _Named(open(found.file, "rb", buffering=0), found.name)
    return _named(_content(found), found.name)


def _content(found):
    kind, *place = found.place or ("file",)
    if kind == "error":
        raise ValueError(place[0])
    if kind == "row":
        column, group, row = place
        with _reading:  # so that no two threads read the same rows
            values = _row_group(found.file, json.dumps(found.stamp), column, group)
        if row >= len(values):
            raise ValueError("the file has fewer rows than it had")
        value = values[row].as_py()
        if isinstance(value, dict):
            return _row_content(value.get("bytes"), value.get("path"))
        return _row_content(value, None)
    start, end = place or (None, None)
    if kind == "bytes" and not 0 <= start <= end <= found.stamp[0]:
        raise ValueError("the file ends inside it")
    if start is not None and start == end:
        return b""
    if not is_url(found.file):
        with open(found.file, "rb") as file:
            file.seek(start)
            content = file.read(end - start)
    else:
        system, path = filesystem(found.file)
        with storage_errors(found.file, passing=(FileNotFoundError,)):
            content = system.cat_file(path, start=start, end=end)
    if kind == "bytes" and len(content) != end - start:
        raise ValueError("the file ends inside it")
    return content


def _row_content(content, path):
    """`datasets` stores an image, or where it lies on this machine."""
    if content is not None:
        return content
    if not isinstance(path, str):
        raise ValueError("the row holds no image")
    if not os.path.isfile(path):
        raise ValueError(f"the row holds no image, and there is no file {path}, which it names")
    with open(path, "rb") as file:
        return file.read()


@functools.lru_cache(maxsize=2)
def _row_group(file, stamp, column, group):
    import pyarrow.parquet

    with _open_shard(file) as shard:
        return pyarrow.parquet.ParquetFile(shard).read_row_group(group, columns=[column]).column(column)


def _open_shard(file):
    return io.BufferedReader(_RemoteFile(file)) if is_url(file) else open(file, "rb")


class _RemoteFile(io.RawIOBase):
    """A file of a storage; what its client raises becomes [`DataError`], and no error of the file's content."""

    def __init__(self, url):
        system, path = filesystem(url)
        self._url = url
        with storage_errors(url, passing=(FileNotFoundError,)):
            self._file = system.open(path, "rb")

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, offset, whence=io.SEEK_SET):
        return self._file.seek(offset, whence)

    def tell(self):
        return self._file.tell()

    def readinto(self, buffer):
        with storage_errors(self._url):
            content = self._file.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self):
        if not self.closed:
            self._file.close()
        super().close()


def _find(paths, image_column):
    for given in paths:
        path = resolved(given)
        for file, stamp in _find_remote(path) if is_url(path) else _find_local(path):
            name = file.lower()
            if name.endswith(".parquet"):
                yield from _rows(file, stamp, image_column)
            elif name.endswith(".tar"):
                yield from _members(file, stamp)
            elif name.endswith(_COMPRESSED):
                raise DataError(f"{file} is compressed, and its images cannot be read one by one; expected a .tar.")
            else:
                yield Found(file, stamp, file)


def _find_local(path):
    return ((file, file_stamp(file)) for file in find_images([path]))


def _find_remote(url):
    system, path = filesystem(url)
    empty = True
    try:
        for info in _listed(system, path, url):
            empty = False
            yield url_of(url, info["name"]), stamp_of(info)
    except FileNotFoundError as error:
        reason = "" if path in str(error) else f" ({detail(error)})"
        raise DataError(f"There is no image {url}{reason}.") from error
    if empty:
        raise DataError(f"There is no image {url}.")


def _listed(system, path, url):
    """What fsspec says of the files that a path names, one folder's in memory at a time."""
    with storage_errors(url, passing=(FileNotFoundError,)):
        try:
            info = system.info(path)
        except FileNotFoundError:
            if not any(sign in path for sign in _GLOB):
                raise
            matches = system.glob(path, detail=True)
            yield from (matches[name] for name in sorted(matches) if matches[name]["type"] == "file")
            return
        if info["type"] == "file" and not url.endswith("/"):
            yield info
            return
        for folder, folders, files in system.walk(path, detail=True, on_error="raise"):
            if files.get("", {}).get("type") == "directory":
                raise DataError(f"{url_of(url, folder)} holds names with an empty part (//); name those one by one.")
            for name in [name for name in folders if name.startswith(".")]:
                del folders[name]
            yield from (files[name] for name in sorted(files) if is_image_name(name))


def _rows(file, stamp, image_column):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError('Parquet needs pyarrow: pip install "hgnetv2-hf[parquet]".') from error
    try:
        with _open_shard(file) as shard:
            metadata = pyarrow.parquet.ParquetFile(shard)
            schema, groups = metadata.schema_arrow, metadata.metadata
            rows = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
    except (OSError, ValueError) as error:  # Arrow's among them
        yield Found(file, stamp, file, ("error", f"it is no Parquet file that can be read: {sentence(error)[:200]}"))
        return
    column, number = _image_column(file, schema, image_column), 0
    stamp = [*(stamp or ()), column]
    if not sum(rows):
        raise DataError(f"There is no image in {file}.")
    for group, length in enumerate(rows):
        for row in range(length):
            yield Found(f"{file}#{number}", stamp, file, ("row", column, group, row))
            number += 1


def _image_column(file, schema, wanted):
    """Binary, or the struct of bytes and path that `datasets` writes."""
    import pyarrow.types as types

    def is_bytes(kind):
        kind = kind.value_type if types.is_dictionary(kind) else kind
        return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)

    def holds_images(kind):
        inside = kind if types.is_struct(kind) else ()
        return is_bytes(kind) or any(each.name == "bytes" and is_bytes(each.type) for each in inside)

    found = [field.name for field in schema if holds_images(field.type)]
    if not found:
        raise DataError(f"No column of {file} holds images (encoded, as bytes); it has {', '.join(schema.names)}.")
    if wanted is not None and wanted not in found:
        raise DataError(f"{file} has no column {wanted} that holds images; those with bytes are {', '.join(found)}.")
    if wanted is None and len(found) > 1:
        raise DataError(
            f"Several columns of {file} hold bytes ({', '.join(found)}); name the one with the images: --image-column."
        )
    return wanted or found[0]


def _members(file, stamp):
    places, wrong = {}, None
    try:
        with _open_shard(file) as shard, tarfile.open(fileobj=shard, mode="r:") as archive:
            position = -1
            for member in archive:
                archive.members = []  # which would keep every one
                if member.size < 0 or archive.offset <= position:
                    raise tarfile.ReadError("a size in it is negative")  # which would be read for ever
                position = archive.offset
                if not is_image_name(member.name.rpartition("/")[2]):
                    continue
                place = ("bytes", member.offset_data, member.offset_data + member.size)
                if member.islnk():
                    place = places.get(
                        member.linkname, ("error", f"it is a link to {member.linkname}, not in the tar")
                    )
                elif not member.isfile() or member.issparse():
                    continue
                if member.name in places:
                    raise DataError(f"{file} holds {member.name} twice; which one it is cannot be told.")
                places[member.name] = place
                yield Found(f"{file}#{member.name}", stamp, file, place)
            shard.seek(archive.offset)
            end, rest = shard.read(tarfile.BLOCKSIZE), shard.read(_BEHIND_A_TAR)
            if any(end):  # a header that is none
                wrong = f"the tar file is damaged after {counted(len(places), 'image')}"
            elif any(rest):
                wrong = f"something follows the end of the tar file, after {counted(len(places), 'image')}"
    except DataError:
        raise
    except Exception as error:  # a hostile header fails in any of the reader's steps
        wrong = f"it is no tar file that can be read: {sentence(error)[:200]}"
    if wrong is not None:
        yield Found(file, stamp, file, ("error", wrong))
    elif not places:
        raise DataError(f"There is no image in {file}.")
