"""What this package raises for the person who reads it: one sentence each, and nothing half-written is left behind."""

import contextlib


class HGNetV2Error(Exception):
    """Something could not be done. The message is one sentence: what was found, what was expected, what to do."""


class ConversionError(HGNetV2Error):
    """A checkpoint could not be converted, or weights could not be written in another program's format."""


class DataError(HGNetV2Error):
    """Images or annotations cannot be found, or not be read."""


class ExportError(HGNetV2Error):
    """A model could not be exported to another runtime, or computes something else there."""


class HubError(HGNetV2Error):
    """A download or an upload did not succeed."""


class InferenceError(HGNetV2Error):
    """A model could not be loaded or run."""


class OutputError(HGNetV2Error):
    """An output exists already, cannot be written, or is being written by another process."""


class TrainingError(HGNetV2Error):
    """A training cannot start or go on."""


@contextlib.contextmanager
def raised_as(kind):
    """Decorator of public functions, which raise one kind of [`HGNetV2Error`], whichever room an error comes from."""
    try:
        yield
    except kind:
        raise
    except HGNetV2Error as error:
        raise kind(str(error)) from error
