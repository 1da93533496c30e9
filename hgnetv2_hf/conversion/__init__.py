"""From other programs' weight files to Transformers folders, and back."""

from ..errors import ConversionError
from .convert import ConversionReport, convert_checkpoint
from .export import ExportReport, export_weights


__all__ = ["ConversionError", "ConversionReport", "ExportReport", "convert_checkpoint", "export_weights"]
