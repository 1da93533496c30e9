"""Downloads of published weights: with progress, resumed after a break, checked against the announced size, cached."""

import contextlib
import os
import re
import time
import urllib.error
import urllib.request
from pathlib import Path

from huggingface_hub import constants
from tqdm.auto import tqdm

from ..errors import HubError
from ..wording import sentence
from .network import NETWORK_ERRORS, is_offline


try:
    import fcntl
except ImportError:  # Windows: two downloads of one file at a time are the user's own doing
    fcntl = None

ATTEMPTS = 5  # without a byte of progress
TIMEOUT_SECONDS = 30
_CHUNK_BYTES = 2**18


def cache_folder():
    """Where downloads are kept: `HGNETV2_HF_CACHE`, or `hgnetv2_hf` inside of Hugging Face's own folder."""
    return Path(os.environ.get("HGNETV2_HF_CACHE") or Path(constants.HF_HOME) / "hgnetv2_hf")


def fetch(row):
    """
    The local file of a published checkpoint, downloaded unless it is there already.

    Args:
        row ([`Published`]): a row with an address.

    Returns:
        `str`: its path.

    Raises:
        `HubError`: there is no network, the server refuses, or what arrives is not what it announced; the sentence
        says which file to put where.
    """
    path = cache_folder() / row.file_name
    if path.is_file():
        return str(path)
    by_hand = f"download {row.url} yourself and put it at {path}"
    if is_offline():
        raise HubError(f"{row.file_name} is not here and HF_HUB_OFFLINE forbids the network; {by_hand}.")
    try:
        return _from_hub(row) if row.repo_id else _from_address(row.url, path)
    except (OSError, ValueError, *NETWORK_ERRORS) as error:
        reason = sentence(error)[:200].rstrip(".")
        raise HubError(f"Cannot download {row.file_name} ({reason}); {by_hand}.") from error


def _from_hub(row):
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError
    from huggingface_hub.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # without a line for each of its attempts
    try:
        return hf_hub_download(row.repo_id, "model.safetensors")
    except LocalEntryNotFoundError as error:  # pages of advice around the reason
        raise ConnectionError(f"the Hub cannot be reached: {sentence(error.__cause__ or error)}") from error
    finally:
        logging.set_verbosity(verbosity)


def _from_address(url, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_name(f".{path.name}.lock")):
        if not path.is_file():
            partial = path.with_name(f"{path.name}.partial")
            _download(url, partial)
            os.replace(partial, path)
            _validator(partial).unlink(missing_ok=True)
    return str(path)


@contextlib.contextmanager
def _lock(path):
    """One download of a file at a time; the others wait and then find it."""
    with open(path, "w") as file:
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _download(url, partial):
    failures, before = 0, -1
    while True:
        try:
            return _receive(url, partial)
        except urllib.error.HTTPError as error:
            if error.code == 416:  # what we hold does not fit what the server has now
                partial.unlink(missing_ok=True)
            elif error.code < 500:
                raise
            failure = error
        except (urllib.error.URLError, *NETWORK_ERRORS) as error:
            failure = error
        reached = partial.stat().st_size if partial.exists() else 0
        failures = failures + 1 if reached <= before or not reached else 1
        before = reached
        if failures >= (ATTEMPTS if reached or isinstance(failure, urllib.error.HTTPError) else 2):
            raise failure
        time.sleep(min(2 ** (failures - 1), 8))


def _receive(url, partial):
    """One connection: continues ``partial`` where it ends, if the server still has the same file."""
    validator = _validator(partial)
    start = partial.stat().st_size if partial.exists() and validator.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "hgnetv2-hf"})
    if start:
        request.add_header("Range", f"bytes={start}-")
        request.add_header("If-Range", validator.read_text(encoding="utf-8"))
    with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
        if response.status != 206:
            start = 0
        elif not re.match(rf"bytes {start}-", response.headers.get("Content-Range", "")):
            raise ValueError("the server continued at another place than it was asked to")
        if response.headers.get_content_type() == "text/html":
            raise ValueError("the server sent a web page")
        _remember(response, validator)
        announced = response.headers.get("Content-Length")
        total = start + int(announced) if announced is not None else None
        with (
            open(partial, "ab" if start else "wb") as file,
            tqdm(
                total=total, initial=start, unit="B", unit_scale=True, desc=partial.stem, mininterval=0.5
            ) as progress,
        ):
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
    size = partial.stat().st_size
    if total is not None and size < total:
        raise ConnectionError(f"the connection ended after {size} of {total} bytes")
    if not size:
        raise ValueError("the server sent an empty file")


def _validator(partial):
    return partial.with_name(f"{partial.name}.validator")


def _remember(response, validator):
    """A resumed download must be of the same file, so what identifies it is kept beside the beginning."""
    identity = response.headers.get("ETag") or response.headers.get("Last-Modified")
    if identity and not identity.startswith("W/"):
        validator.write_text(identity, encoding="utf-8")
    else:
        validator.unlink(missing_ok=True)
