"""
A folder of Parquet files that grows part by part, on this machine or in a storage: resumable, with one writer.

On this machine the parts grow in a hidden folder beside the output, which takes the output's name at the end. A
storage renames nothing: parts grow under `_unfinished-KEY/`, which readers of Parquet leave out, and are copied to
their names at the end; what describes them is written last.
"""

import contextlib
import functools
import hashlib
import io
import itertools
import json
import os
import re
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from ..errors import OutputError
from .atomic import claim, resumable_folder
from .storage import filesystem, is_url, resolved, storage_errors


TABLES = (".csv", ".jsonl", ".parquet")  # endings of files, which no folder of parts has
ROWS_PER_PART = 4096
_METADATA = b"hgnetv2_hf"  # of a part: the digest of the images that it was made from, and how many had errors
_LEASE = "_writer.json"
_LEASE_RENEWED, _LEASE_ENDS = 20, 90  # seconds
_held = set()  # identities of this process's leases


class Folder(NamedTuple):
    """A folder of an fsspec file system."""

    name: str  # as it was given
    system: Any
    path: str
    check: Callable = lambda: None  # raises `OutputError` where another process has begun to write

    @property
    def is_local(self):
        return not is_url(self.name)

    def errors(self):
        """What a client raises in one sentence; this machine's errors are [`resumable_folder`]'s."""
        return contextlib.nullcontext() if self.is_local else storage_errors(self.name, OutputError)


@contextlib.contextmanager
def claimed_output(output, sources, overwrite, about):
    """
    Makes this process the only writer of a folder of parts inside the block.

    Args:
        output (`str` or `os.PathLike`): a folder, or the URL of one.
        sources (`list[str]`): what the folder must not contain.
        overwrite (`bool`): whether a folder of parts may be replaced.
        about (`str`): the name of the file that describes them.

    Yields:
        [`Folder`]

    Raises:
        `OutputError`: it exists already, holds other things, is written by another process, or cannot be written.
    """
    output = resolved(output)
    if not is_url(output):
        with claim(output, [resolved(source) for source in sources], overwrite, about):
            yield Folder(output, fsspec.filesystem("file"), os.path.abspath(output))
        return
    if output.startswith("hf://"):
        raise OutputError(f"{output}: every part would be a commit; write a folder here, and upload it (hf upload).")
    system, path = filesystem(output, OutputError)
    folder = Folder(output, system, path.rstrip("/"))
    if "//" in folder.path:
        raise OutputError(f"{output} has a folder without a name (//); leave the second slash out.")
    for source in map(resolved, sources):
        if f"{source}/".startswith(f"{output.rstrip('/')}/"):
            raise OutputError(f"{output} contains the source {source}; choose another place.")
    _check_folder(folder, overwrite, about)
    with _leased(folder) as check:
        _check_folder(folder, overwrite, about)  # another writer may have come and gone
        yield folder._replace(check=check)


def _check_folder(folder, overwrite, about):
    names = _names(folder)
    if about in names and not overwrite:
        raise OutputError(f"{folder.name} exists already; choose another folder or pass --overwrite.")
    begun = about in names or any(map(_is_unfinished, names))
    for name in sorted(names - {about, _LEASE}):
        if not (_is_unfinished(name) or begun and _is_part(name)):
            raise OutputError(f"{folder.name} holds {name}, which is not written here; choose another folder.")


def check_outside(sources, output):
    """Raises `OutputError` where an output that exists, and would be replaced, is or holds one of the images."""
    if not is_url(output) and not os.path.lexists(output):
        return
    place = functools.lru_cache(maxsize=1000)(os.path.realpath)
    target = output.rstrip("/") if is_url(output) else os.path.realpath(output)
    for found in sources:
        file = found.file
        if not is_url(file):
            folder, name = os.path.split(file)
            file = os.path.realpath(file) if os.path.islink(file) else os.path.join(place(folder), name)
        if file == target or file.startswith(f"{target}/"):
            raise OutputError(f"{output} would replace the image {found.file}; choose another place.")


@contextlib.contextmanager
def growing(output, key, about):
    """
    Args:
        output ([`Folder`]): of [`claimed_output`].
        key (`str`): changes with what the parts depend on, images apart.
        about (`str`): the name of the file that describes them.

    Yields:
        [`Folder`], whose files become those of the output when the block ends without an error; otherwise they stay
        for the next run with this key.
    """
    if output.is_local:
        with resumable_folder(output.path, key) as folder:
            yield output._replace(path=str(folder))
        return
    folder = output._replace(path=f"{output.path}/_unfinished-{key}")
    yield folder
    with output.errors():
        _publish(output, folder, about)


def fill(folder, sources, rows_of, table_of, progress):
    """
    Writes the parts that are missing.

    Args:
        folder ([`Folder`]): of [`growing`].
        sources (iterable of [`Found`]): the images, which can be gone through more than once.
        rows_of (callable): an iterator of [`Found`] to as many rows, dictionaries with `error`.
        table_of (callable): a list of rows to a `pyarrow.Table`.
        progress (`tqdm`)

    Returns:
        `tuple[int, int, str | None]`: how many rows were there already, how many of all have an error, and the first
            error of those that were made now.
    """
    resumed, unreadable, done, first = 0, 0, 0, None
    names = _names(folder)
    for chunk in _chunks(sources, ROWS_PER_PART):
        about = _about(folder, done) if part_name(done) in names else None
        if about is None or about["images"] != _digest(chunk):
            break
        names.discard(part_name(done))
        done += 1
        resumed, unreadable = resumed + len(chunk), unreadable + about["errors"]
    with folder.errors():
        for name in names:
            folder.system.rm_file(f"{folder.path}/{name}")
    progress.update(resumed)
    rows = rows_of(itertools.islice(sources, resumed, None))
    remaining = itertools.islice(sources, resumed, None)
    for number, chunk in enumerate(_chunks(remaining, ROWS_PER_PART), done):
        made = []
        for row in itertools.islice(rows, len(chunk)):
            made.append(row)
            progress.update()
        errors = [row["error"] for row in made if row["error"] is not None]
        _write(folder, number, table_of(made), {"images": _digest(chunk), "errors": len(errors)})
        unreadable, first = unreadable + len(errors), first or next(iter(errors), None)
    return resumed, unreadable, first


def put(folder, name, content):
    """Writes a file of [`growing`], which is there whole or not at all."""
    if not folder.is_local:
        with folder.errors():
            folder.check()
            folder.system.pipe_file(f"{folder.path}/{name}", content)
        return
    partial = Path(folder.path, name).with_suffix(".partial")
    partial.write_bytes(content)
    partial.rename(Path(folder.path, name))


def part_name(number):
    return f"part-{number:05}.parquet"


def _is_part(name):
    return re.fullmatch(r"part-\d{5,}\.parquet", name) is not None


def _chunks(sources, size):
    sources = iter(sources)
    while chunk := list(itertools.islice(sources, size)):
        yield chunk


def _digest(chunk):
    rows = [[found.name, found.stamp] for found in chunk]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _is_unfinished(name):
    return re.fullmatch("_unfinished-[0-9a-f]{12}", name) is not None


def _names(folder):
    with folder.errors():
        try:
            found = folder.system.ls(folder.path, detail=True)
        except FileNotFoundError:
            return set()
    paths = {info["name"].rstrip("/") for info in found} - {folder.path}  # which an empty object may stand for
    return {path.rpartition("/")[2] for path in paths}


def _about(folder, number):
    """What a part says of itself; ``None`` of one that is damaged."""
    import pyarrow.parquet

    with folder.errors():
        content = folder.system.cat_file(f"{folder.path}/{part_name(number)}")
    try:
        about = json.loads(pyarrow.parquet.read_schema(io.BytesIO(content)).metadata[_METADATA])
        return {"images": about["images"], "errors": int(about["errors"])}
    except (ValueError, KeyError, TypeError, OSError):  # the last one is Arrow's, of a damaged footer
        return None


def _write(folder, number, table, about):
    import pyarrow.parquet

    content = io.BytesIO()
    pyarrow.parquet.write_table(
        table.replace_schema_metadata({**(table.schema.metadata or {}), _METADATA: json.dumps(about)}), content
    )
    put(folder, part_name(number), content.getvalue())


def _publish(output, folder, about):
    """Can be done again after an interruption: what was copied is copied once more."""
    folder.check()
    system, old, new = output.system, _names(output), sorted(_names(folder) - {about})
    if about in old:
        system.rm_file(f"{output.path}/{about}")  # it says that the parts are whole, which they are not meanwhile
    system.copy([f"{folder.path}/{name}" for name in new], [f"{output.path}/{name}" for name in new])
    for name in old - set(new):
        if _is_part(name):
            system.rm_file(f"{output.path}/{name}")
    if lost := set(new) - _names(output):
        raise OutputError(f"{output.name} lacks {min(lost)} after it was copied; the same command tries again.")
    system.copy([f"{folder.path}/{about}"], [f"{output.path}/{about}"])
    for name in filter(_is_unfinished, old | _names(output)):
        for path in system.find(f"{output.path}/{name}"):
            system.rm_file(path)
        with contextlib.suppress(Exception):  # a storage has no folders, and this one is empty
            system.rmdir(f"{output.path}/{name}")


@contextlib.contextmanager
def _leased(folder):
    """
    A file that says who writes. It is renewed while somebody does, for a storage has no locks.

    Yields:
        A function that raises `OutputError` where another process has taken over, which this one's pause of minutes
        allows.
    """
    system, lease, mine = folder.system, f"{folder.path}/{_LEASE}", uuid.uuid4().hex

    def renew(**mode):
        about = {"id": mine, "host": _host(), "process": os.getpid(), "count": time.time_ns()}
        system.pipe_file(lease, json.dumps(about).encode(), **mode)

    def check():
        holder = _holder(folder, lease)
        if holder is None or holder["id"] != mine:
            raise OutputError(f"{folder.name} is being written by another process, which took over from this one.")

    def keep():
        while not ended.wait(_LEASE_RENEWED):
            with contextlib.suppress(Exception):  # what comes next says so
                check()
                renew()

    with folder.errors():
        if (holder := _holder(folder, lease)) is not None:
            _refuse_living(folder, lease, holder)
            system.rm_file(lease)
        with contextlib.suppress(FileExistsError):  # another came first, as the next line sees
            renew(mode="create")
        check()
    ended = threading.Event()
    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    _held.add(mine)
    try:
        yield check
    finally:
        _held.discard(mine)
        ended.set()
        keeper.join()
        with contextlib.suppress(Exception):  # it ends by itself
            check()
            system.rm_file(lease)


def _host():
    """The machine, and its table of processes, of which containers have their own."""
    try:
        return f"{socket.gethostname()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _holder(folder, lease):
    try:
        content = folder.system.cat_file(lease)
    except FileNotFoundError:
        return None
    try:
        holder = json.loads(content)
        return {name: holder[name] for name in ("id", "host", "process", "count")}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{folder.name} holds {_LEASE}, which is not written here; choose another folder."
        ) from error


def _refuse_living(folder, lease, holder):
    """No clock is compared: whoever writes renews the lease, and one that was killed does not."""
    who = f"process {holder['process']} of {str(holder['host']).split()[0]}"
    if holder["host"] == _host():
        living = _is_running(holder)
    else:
        print(f"{folder.name} was left by {who}; waiting {_LEASE_ENDS} seconds for a sign of it.", file=sys.stderr)
        deadline = time.monotonic() + _LEASE_ENDS
        while not (living := _holder(folder, lease) != holder) and time.monotonic() < deadline:
            time.sleep(min(2, _LEASE_ENDS / 10))
    if living:
        raise OutputError(
            f"{folder.name} is being written by {who}; wait until it has ended, or choose another output."
        )


def _is_running(holder):
    if holder["process"] == os.getpid():
        return holder["id"] in _held  # by another thread; or it is of an earlier process with this number
    try:
        os.kill(holder["process"], 0)
    except PermissionError:
        return True
    except (OSError, TypeError, OverflowError):
        return False
    return True
