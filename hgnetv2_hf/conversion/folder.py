"""Output folders and files that are complete or absent, whatever stops the program."""

import contextlib
import ctypes
import os
import shutil
import tempfile
from pathlib import Path

from .errors import ConversionError


try:
    import fcntl
except ImportError:  # Windows: leftovers of a killed run stay until somebody deletes them
    fcntl = None

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def check_target(output_dir, source, overwrite, marker="config.json"):
    """Raises ``ConversionError`` unless ``output_dir`` may be written; ``marker`` is in every folder that may be replaced."""
    target = Path(output_dir).absolute()
    if not target.name:
        raise ConversionError(f"{output_dir} is not a folder name.")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ConversionError(f"{output_dir} exists already; choose another folder or pass --overwrite.")
    if not target.is_dir() or target.is_symlink():
        raise ConversionError(f"{output_dir} is not a folder; --overwrite only replaces folders.")
    if any(target.iterdir()) and not (target / marker).is_file():
        raise ConversionError(
            f"{output_dir} holds files but not what is written here (no {marker}); --overwrite refuses to delete it."
        )
    if source is not None and target.resolve() in [Path(source).resolve(), *Path(source).resolve().parents]:
        raise ConversionError(f"{output_dir} contains the source {source}; --overwrite would delete it.")


@contextlib.contextmanager
def atomic_folder(output_dir):
    """
    Gives an empty folder next to ``output_dir`` that takes its name when the block ends without an error.

    An existing ``output_dir`` is exchanged for the new one in a single step where the system can (Linux), and removed
    afterwards. What an earlier, killed run left behind is removed first.
    """
    target = Path(output_dir).absolute()
    created = _make_parents(target.parent)
    staging = None
    try:
        prefix = f".{target.name}.partial-"
        _remove_leftovers(target.parent, prefix)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        with _held(staging):
            yield staging
            _publish(staging, target)
            created = []
    except OSError as error:
        raise ConversionError(f"Cannot write {output_dir}: {error.strerror or error}.") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)
        for folder in reversed(created):
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def atomic_file(path):
    """Gives a path next to ``path`` that takes its name when the block ends without an error; on disk before that.

    What a killed run left behind has the same name, so the next run overwrites it.
    """
    path = Path(path).absolute()
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        os.chmod(partial, 0o666 & ~_umask())  # safetensors writes files that only their owner can read
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _make_parents(parent):
    """Creates missing parents; returns those it created, outermost first."""
    missing = [folder for folder in [parent, *parent.parents] if not folder.exists()][::-1]
    created = []
    try:
        for folder in missing:
            folder.mkdir()
            created.append(folder)
    except OSError as error:
        for folder in reversed(created):
            folder.rmdir()
        raise ConversionError(f"Cannot create {parent}: {error.strerror or error}.") from error
    return created


def _publish(staging, target):
    os.chmod(staging, 0o777 & ~_umask())
    for path in staging.rglob("*"):
        if path.is_dir():
            os.chmod(path, 0o777 & ~_umask())
            continue
        os.chmod(path, 0o666 & ~_umask())  # as above
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    if not target.exists():
        os.rename(staging, target)
    elif not _exchange(staging, target):
        old = target.with_name(f"{staging.name}-old")
        os.rename(target, old)
        os.rename(staging, target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one, other):
    """Swaps two names in one step (Linux ``renameat2``); ``False`` where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    return renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0


@contextlib.contextmanager
def _held(folder):
    """Marks a folder as in use; the system forgets the mark when the process dies."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _remove_leftovers(parent, prefix):
    for folder in parent.glob(f"{prefix}*") if fcntl is not None else ():
        with contextlib.suppress(OSError):
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(handle)


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current
