"""Conversions: prepared, run by one or several processes, on one or several machines."""

from protonmf_cli.jobs.conversion.preparing import ConversionPlan, ConversionWords, plan
from protonmf_cli.jobs.conversion.running import (
    Conversion,
    ConvertedShare,
    convert,
    convert_share,
    convert_words,
    convert_words_of_share,
)

__all__ = [
    "Conversion",
    "ConversionPlan",
    "ConversionWords",
    "ConvertedShare",
    "convert",
    "convert_share",
    "convert_words",
    "convert_words_of_share",
    "plan",
]
