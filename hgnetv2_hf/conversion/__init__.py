"""From other programs' weight files to Transformers folders."""

from .convert import ConversionReport, convert_checkpoint
from .errors import ConversionError


__all__ = ["ConversionError", "ConversionReport", "convert_checkpoint"]
