"""Outputs that are complete or absent, whatever stops the program, and written by one process at a time."""

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import tempfile
import warnings
from pathlib import Path

from ..errors import OutputError


try:
    import fcntl
except ImportError:  # Windows: nothing is locked, and leftovers of a killed run stay until somebody deletes them
    fcntl = None

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_CANNOT_LOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # some network file systems
_held = set()  # file descriptors of the locks of this process


def check_target(output_dir, source, overwrite, marker="config.json"):
    """Raises ``OutputError`` unless the output may be written; what may be replaced holds a file ``marker``, or one
    of them."""
    markers = (marker,) if isinstance(marker, str) else tuple(marker)
    target = Path(output_dir).absolute()
    if not target.name:
        raise OutputError(f"{output_dir} is not a folder name.")
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise OutputError(f"{output_dir} exists already; choose another folder or pass --overwrite.")
    if not target.is_dir() or target.is_symlink():
        raise OutputError(f"{output_dir} is not a folder; --overwrite only replaces folders.")
    if any(target.iterdir()) and not any((target / each).is_file() for each in markers):
        raise OutputError(
            f"{output_dir} holds files but not what is written here (no {' or '.join(markers)}); --overwrite refuses "
            "to delete it."
        )
    for each in [source] if isinstance(source, (str, os.PathLike)) else source or ():
        if target.resolve() in [Path(each).resolve(), *Path(each).resolve().parents]:
            raise OutputError(f"{output_dir} contains the source {each}; --overwrite would delete it.")


@contextlib.contextmanager
def claim(output_dir, source=None, overwrite=False, marker="config.json"):
    """
    Makes this process the only writer of a folder inside the block.

    Args:
        output_dir (`str` or `os.PathLike`): the folder; parents that are missing are created.
        source, overwrite, marker: as in [`check_target`].

    Raises:
        `OutputError`: see [`check_target`], or another process is writing there.
    """
    check_target(output_dir, source, overwrite, marker)
    target = Path(output_dir).absolute()
    created = _make_parents(target.parent)
    try:
        with lock(target, output_dir):
            check_target(output_dir, source, overwrite, marker)  # another writer may have come and gone
            yield
    finally:
        for folder in reversed(created):
            with contextlib.suppress(OSError):  # not empty: something was written
                folder.rmdir()


@contextlib.contextmanager
def lock(target, name=None):
    """
    Holds the lock on a file or folder inside the block. The system frees it however the process dies.

    Args:
        target (`Path`): what is written; the lock is a hidden file beside it.
        name (`str`, *optional*): how the error calls it.

    Raises:
        `OutputError`: another process, or another thread, holds it; or the folder cannot be written.
    """
    if fcntl is None:
        yield
        return
    path = Path(target).absolute()
    path = path.with_name(f".{path.name}.lock")
    try:
        handle = _locked(path)
    except OSError as error:
        raise OutputError(f"Cannot write {name or target}: {error.strerror or error}.") from error
    if handle is None:
        raise OutputError(
            f"{name or target} is being written by another process{_owner(path)}; wait until it has ended, or choose "
            "another output."
        )
    _held.add(handle)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is held, so that it is nobody else's
        _held.discard(handle)
        os.close(handle)


def _locked(path):
    """An open file that is locked and has this name, or ``None`` where somebody else holds it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        except OSError as error:
            if error.errno not in _CANNOT_LOCK:
                os.close(handle)
                raise
            warnings.warn(
                f"{path.parent} cannot lock files: nothing keeps a second run from writing here.", stacklevel=4
            )
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                os.ftruncate(handle, 0)  # a killed process left its number
                os.write(handle, str(os.getpid()).encode())
                return handle
        os.close(handle)  # its last holder removed it between the two lines above


def _owner(path):
    with contextlib.suppress(OSError, ValueError):
        return f" ({int(path.read_text())})"
    return ""


def _leave_locks_to_the_parent():
    """A forked process, a data loader's worker say, would keep a lock that its killed parent no longer holds."""
    for handle in _held:
        os.close(handle)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


@contextlib.contextmanager
def atomic_folder(output_dir):
    """
    An empty folder next to ``output_dir`` that takes its name when the block ends without an error; inside [`claim`].

    An existing ``output_dir`` is exchanged for the new one in a single step where the system can (Linux), and removed
    afterwards. What an earlier, killed run left behind is removed first.
    """
    target = Path(output_dir).absolute()
    staging = None
    try:
        prefix = f".{target.name}.partial-"
        for leftover in target.parent.glob(f"{glob.escape(prefix)}*") if fcntl is not None else ():
            shutil.rmtree(leftover, ignore_errors=True)
        staging = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        yield staging
        _publish(staging, target)
    except OSError as error:
        raise OutputError(f"Cannot write {output_dir}: {error.strerror or error}.") from error
    finally:
        if staging is not None:
            shutil.rmtree(staging, ignore_errors=True)


@contextlib.contextmanager
def resumable_folder(output_dir, key):
    """
    As [`atomic_folder`], but where the block ends with an error, what it wrote stays for the next run with this key.

    Args:
        output_dir (`str` or `os.PathLike`): the folder.
        key (`str`): what the content depends on.
    """
    target = Path(output_dir).absolute()
    staging = target.with_name(f".{target.name}.{key}.unfinished")
    try:
        staging.mkdir(exist_ok=True)
        try:
            yield staging
        except BaseException:
            if not any(file.stat().st_size for file in staging.rglob("*")):
                shutil.rmtree(staging, ignore_errors=True)  # it had not begun
            raise
        _publish(staging, target)
        for other in target.parent.glob(f".{glob.escape(target.name)}.*.unfinished"):
            shutil.rmtree(other, ignore_errors=True)  # of other keys, and what was replaced: the output is there now
    except OSError as error:
        raise OutputError(f"Cannot write {output_dir}: {error.strerror or error}.") from error


@contextlib.contextmanager
def atomic_file(path):
    """Gives a path next to ``path`` that takes its name when the block ends without an error; on disk before that.

    What a killed run left behind has the same name, so the next run overwrites it. A link keeps pointing where it
    points.
    """
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.partial")
    with lock(path):
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
            with contextlib.suppress(FileExistsError):  # made by somebody else meanwhile
                folder.mkdir()
                created.append(folder)
    except OSError as error:
        for folder in reversed(created):
            folder.rmdir()
        raise OutputError(f"Cannot create {parent}: {error.strerror or error}.") from error
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


def _umask():
    current = os.umask(0)
    os.umask(current)
    return current
