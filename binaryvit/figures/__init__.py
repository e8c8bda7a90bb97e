"""The figures: drawn from tables of numbers, never from a training run, in one style, into files that say their origin.

Any figure can so be made again from what is stored. The style itself is in `binaryvit.figures.style`.
"""

from binaryvit.figures.accuracy import accuracy_against_operations
from binaryvit.figures.files import read_provenance, save
from binaryvit.figures.style import DOUBLE_COLUMN, GREY, SINGLE_COLUMN, VariantStyle, styled, variant_style
from binaryvit.figures.training import training_curves

__all__ = [
    "DOUBLE_COLUMN",
    "GREY",
    "SINGLE_COLUMN",
    "VariantStyle",
    "accuracy_against_operations",
    "read_provenance",
    "save",
    "styled",
    "training_curves",
    "variant_style",
]
