"""
A folder of Parquet files that grows part by part, on this machine or in a storage: resumable, with one writer.

On this machine the parts grow in a hidden folder beside the output, which takes the output's name at the end. A
storage renames nothing: parts grow under `_unfinished-KEY/`, which readers of Parquet leave out, and are copied to
their names at the end; what describes them is written last.
"""

import contextlib
import datetime
import hashlib
import io
import itertools
import json
import os
import socket
import threading
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import fsspec

from ..errors import OutputError
from ..wording import counted
from .atomic import claim, resumable_folder
from .storage import filesystem, is_url, local_path, storage_errors


TABLES = (".csv", ".jsonl", ".parquet")  # endings of files, which no folder of parts has
ROWS_PER_PART = 4096
_METADATA = b"hgnetv2_hf"  # of a part: the digest of the images that it was made from, and how many had errors
_LEASE = "_writer.json"
_LEASE_RENEWED, _LEASE_ENDS = 30, 180  # seconds


class Folder(NamedTuple):
    """A folder of an fsspec file system."""

    name: str  # as it was given
    system: Any
    path: str

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
    output = local_path(os.fspath(output))
    if not is_url(output):
        with claim(output, [local_path(source) for source in sources], overwrite, about):
            yield Folder(output, fsspec.filesystem("file"), os.path.abspath(output))
        return
    if output.lower().startswith("hf://"):
        raise OutputError(f"{output}: every part would be a commit; write a folder here, and upload it (hf upload).")
    system, path = filesystem(output, OutputError)
    folder = Folder(output, system, path.rstrip("/"))
    for source in sources:
        if is_url(source) and f"{source}/".startswith(f"{output.rstrip('/')}/"):
            raise OutputError(f"{output} contains the source {source}; choose another place.")
    names = _names(folder)
    if about in names and not overwrite:
        raise OutputError(f"{output} exists already; choose another folder or pass --overwrite.")
    begun = about in names or any(map(_is_unfinished, names))
    for name in sorted(names - {about, _LEASE}):
        if not (_is_unfinished(name) or begun and _is_part(name)):
            raise OutputError(f"{output} holds {name}, which is not written here; choose another folder.")
    with _leased(folder):
        yield folder


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


def fill(folder, sources, rows_of, table_of, progress, rows_per_part=None):
    """
    Writes the parts that are missing.

    Args:
        folder ([`Folder`]): of [`growing`].
        sources (iterable of [`Found`]): the images, which can be gone through more than once.
        rows_of (callable): an iterator of [`Found`] to as many rows, dictionaries with `error`.
        table_of (callable): a list of rows to a `pyarrow.Table`.
        progress (`tqdm`)
        rows_per_part (`int`, *optional*): 4096 by default.

    Returns:
        `tuple[int, int, str | None]`: how many rows were there already, how many of all have an error, and the first
            error of those that were made now.
    """
    rows_per_part = rows_per_part or ROWS_PER_PART
    resumed, unreadable, done, first = 0, 0, 0, None
    names = _names(folder)
    for chunk in _chunks(sources, rows_per_part):
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
    rows = rows_of(itertools.islice(iter(sources), resumed, None))
    remaining = itertools.islice(iter(sources), resumed, None)
    for number, chunk in enumerate(_chunks(remaining, rows_per_part), done):
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
            folder.system.pipe_file(f"{folder.path}/{name}", content)
        return
    partial = Path(folder.path, name).with_suffix(".partial")
    partial.write_bytes(content)
    partial.rename(Path(folder.path, name))


def part_name(number):
    return f"part-{number:05}.parquet"


def _is_part(name):
    return name.startswith("part-") and name.endswith(".parquet")


def _chunks(sources, size):
    sources = iter(sources)
    while chunk := list(itertools.islice(sources, size)):
        yield chunk


def _digest(chunk):
    rows = [[found.name, found.stamp] for found in chunk]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _is_unfinished(name):
    return name.startswith("_unfinished-")


def _names(folder):
    with folder.errors():
        try:
            found = folder.system.ls(folder.path, detail=True)
        except FileNotFoundError:
            return set()
    return {info["name"].rstrip("/").rpartition("/")[2] for info in found} - {""}


def _about(folder, number):
    """What a part says of itself; ``None`` of one that is damaged."""
    import pyarrow.parquet

    with folder.errors():
        content = folder.system.cat_file(f"{folder.path}/{part_name(number)}")
    try:
        about = json.loads(pyarrow.parquet.read_schema(io.BytesIO(content)).metadata[_METADATA])
        return {"images": about["images"], "errors": int(about["errors"])}
    except (ValueError, KeyError, TypeError):
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
    system, old, new = output.system, _names(output), sorted(_names(folder) - {about})
    if about in old:
        system.rm_file(f"{output.path}/{about}")  # it says that the parts are whole, which they are not meanwhile
    system.copy([f"{folder.path}/{name}" for name in new], [f"{output.path}/{name}" for name in new])
    for name in old - set(new):
        if _is_part(name):
            system.rm_file(f"{output.path}/{name}")
    system.copy([f"{folder.path}/{about}"], [f"{output.path}/{about}"])
    for name in filter(_is_unfinished, old | _names(output)):
        system.rm(f"{output.path}/{name}", recursive=True)


@contextlib.contextmanager
def _leased(folder):
    """A file that says who writes; it is renewed while somebody does, for a storage has no locks."""
    system, lease, mine = folder.system, f"{folder.path}/{_LEASE}", uuid.uuid4().hex

    def renew(**mode):
        now = datetime.datetime.now(datetime.timezone.utc).timestamp()
        about = {"id": mine, "host": socket.gethostname(), "process": os.getpid(), "time": now}
        system.pipe_file(lease, json.dumps(about).encode(), **mode)

    def keep():
        while not ended.wait(_LEASE_RENEWED):
            with contextlib.suppress(Exception):  # the next one may succeed; parts that cannot be written say so
                renew()

    with folder.errors():
        _refuse_another(holder := _holder(system, lease), mine, folder.name)
        with contextlib.suppress(FileExistsError):  # another came first, which the next line sees
            renew(**({"mode": "create"} if holder is None else {}))
        _refuse_another(_holder(system, lease), mine, folder.name)
    ended = threading.Event()
    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        with contextlib.suppress(Exception):  # it ends by itself
            system.rm_file(lease)


def _holder(system, lease):
    try:
        return json.loads(system.cat_file(lease))
    except (FileNotFoundError, ValueError):
        return None


def _refuse_another(holder, mine, output):
    try:
        age = datetime.datetime.now(datetime.timezone.utc).timestamp() - holder["time"]
        identity, host, process = holder["id"], holder["host"], holder["process"]
    except (TypeError, KeyError):
        return  # nobody, or nothing that was written here
    if identity == mine or age > _LEASE_ENDS or host == socket.gethostname() and not _is_running(process):
        return
    raise OutputError(
        f"{output} is being written by process {process} of {host}, or was {counted(max(0, int(age)), 'second')} ago; "
        f"wait until it has ended ({_LEASE_ENDS} seconds after one that was killed), or choose another output."
    )


def _is_running(process):
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, TypeError, OverflowError):
        return False
    return process != os.getpid()  # of an earlier process with this number
