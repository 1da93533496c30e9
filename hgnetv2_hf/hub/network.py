"""What can go wrong between this machine and a server, in one place for downloads and uploads."""

import http.client
import importlib
import os


# What raises when a server or a connection fails: huggingface_hub itself, the libraries beneath it (requests before
# its version 1, httpx and later httpx2 since), and its storage backend. Which of them are installed depends on its
# version.
_MODULES = (
    "huggingface_hub.errors",
    "requests.exceptions",
    "urllib3.exceptions",
    "httpx",
    "httpx2",
    "httpcore",
    "hf_xet",
)


def _exceptions_of(name):
    """The exception classes that a module of an installed package holds, without those of other packages."""
    try:
        module = importlib.import_module(name)
    except ImportError:
        return []
    package = name.partition(".")[0]
    classes = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, Exception)]
    return [each for each in classes if each.__module__.partition(".")[0] == package]


NETWORK_ERRORS = (
    ConnectionError,
    TimeoutError,
    http.client.HTTPException,
    *(each for name in _MODULES for each in _exceptions_of(name)),
)


def network_failure(error):
    """The failure of a server or a connection that ``error`` is or was raised from, or ``None``."""
    while error is not None and not isinstance(error, NETWORK_ERRORS):
        error = error.__cause__
    return error


def is_offline():
    """Whether `HF_HUB_OFFLINE` forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
