"""Places outside this machine, by their URL: object storage and repositories, through fsspec."""

import contextlib
import os
import re
import urllib.parse
import urllib.request

import fsspec
import fsspec.config

from ..errors import DataError, HGNetV2Error
from ..wording import sentence


_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_EXTRAS = {"s3": "s3", "gs": "gcs"}
_OTHER_NAMES = {"s3a": "s3", "gcs": "gs"}
_SECONDS = 20  # a server that does not answer is asked five times by s3fs
_CHANGES = ("ETag", "etag", "md5Hash", "blob_id", "LastModified", "last_modified", "updated", "mtime", "created")


def is_url(path):
    """Whether a path names a place through its protocol, as `s3://bucket/folder` does."""
    return _SCHEME.match(str(path)) is not None


def resolved(path):
    """
    A path or URL in the one form that is compared and opened: `file://` (and `local://`) as the path of the file, its
    bytes restored; other protocols in small letters, by their first name (`s3a://` is `s3://`).
    """
    path = os.fspath(path)
    match = _SCHEME.match(path)
    if match is None:
        return path
    scheme, rest = match[1].lower(), path[match.end() :]
    if scheme not in ("file", "local"):
        return f"{_OTHER_NAMES.get(scheme, scheme)}://{rest}"
    host, slash, rest = rest.partition("/")
    if host not in ("", "localhost"):
        raise DataError(f"{path} lies on the machine {host}; {scheme}:// names files of this one: {scheme}:///…")
    if os.name == "nt":
        return urllib.request.url2pathname(slash + rest)
    return os.fsdecode(urllib.parse.unquote_to_bytes(slash + rest))


@contextlib.contextmanager
def storage_errors(url, kind=DataError, passing=()):
    """What a storage's client raises inside the block, in one sentence, but for the kinds in ``passing``."""
    try:
        yield
    except (HGNetV2Error, *passing):
        raise
    except FileNotFoundError as error:
        raise kind(f"There is no {url} ({detail(error)}).") from error
    except PermissionError as error:
        raise kind(f"{url}: access is refused ({detail(error)}); check the keys of its client.") from error
    except Exception as error:  # each client has kinds of its own
        raise kind(
            f"{url}: the storage cannot be used ({detail(error)}); once it answers, the same command goes on."
        ) from error


def filesystem(url, kind=DataError):
    """
    Returns:
        `tuple`: the fsspec file system of a URL, and the path within.

    Raises:
        `kind`: there is no such protocol, or its client is not installed.
    """
    scheme = _SCHEME.match(str(url))[1].lower()
    try:
        loaded = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        extra = f'pip install "hgnetv2-hf[{_EXTRAS[scheme]}]"' if scheme in _EXTRAS else sentence(error)
        raise kind(f"{scheme}:// needs its client: {extra}.") from error
    except ValueError as error:
        raise kind(f"There is no storage {scheme}://, which {url} names.") from error
    options = {"use_listings_cache": False}  # which would keep every name in memory
    if scheme == "s3" and "config_kwargs" not in fsspec.config.conf.get("s3", {}):
        options["config_kwargs"] = {
            "connect_timeout": _SECONDS, "read_timeout": _SECONDS, "retries": {"total_max_attempts": 1},
        }  # fmt: skip
    with storage_errors(url, kind):
        return fsspec.filesystem(scheme, **options), loaded._strip_protocol(str(url))


def url_of(url, path):
    """The URL of another path in the same file system."""
    return path if is_url(path) else f"{_SCHEME.match(str(url))[0]}{path.lstrip('/')}"


def stamp_of(info):
    """Changes when a file is replaced; ``info`` is fsspec's dictionary of it."""
    return [info.get("size"), *(str(info[name]) for name in _CHANGES if info.get(name) is not None)][:2]


def detail(error):
    """An error's message as a part of a sentence."""
    return sentence(error)[:300].rstrip(".")
