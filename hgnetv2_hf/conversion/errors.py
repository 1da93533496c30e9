class ConversionError(Exception):
    """A checkpoint could not be converted. The message is one sentence for the person who reads it; nothing was written."""
