"""From other programs' weight files to Transformers folders, and back."""

from .convert import ConversionReport, convert_checkpoint
from .errors import ConversionError
from .export import ExportReport, export_weights


__all__ = ["ConversionError", "ConversionReport", "ExportReport", "convert_checkpoint", "export_weights"]
