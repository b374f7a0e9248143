"""Errors of a leaf's gradient as a picture, and the picture as a PNG without any library."""

import math
import struct
import zlib
from dataclasses import dataclass

import numpy as np

_CELLS = (48, 64)  # rows and columns at most
_LOWEST = -9  # log10 of the smallest error that has a colour
# From the smallest error to 1 and beyond: readable on white and on black, and by the colour-blind.
_COLOURS = np.array([(254, 217, 118), (253, 141, 60), (227, 26, 28), (142, 1, 82)])
_UNKNOWN, _RIGHT, _INFINITE = (128, 128, 128, 40), (46, 160, 90, 70), (0, 112, 243, 255)


@dataclass(frozen=True)
class ErrorMap:
    """Errors of a leaf's gradient as a picture.

    Attributes:
        cells: rows of numbers, each the largest error of a block of elements, relative to the largest right
            element of the leaf; inf where the gradient is not finite, None where the right one is unknown.
        block: elements per cell, down and across.
        folded: whether a vector was folded into rows, as lines of text are.
    """

    cells: tuple[tuple[float | None, ...], ...]
    block: tuple[int, int]
    folded: bool = False

    @classmethod
    def of(cls, errors: np.ndarray) -> "ErrorMap":
        """Errors of the leaf's shape (NaN: unknown); the last axis goes across, all others go down."""
        folded = errors.ndim == 1 and errors.size > _CELLS[1]
        if folded:
            width = max(_CELLS[1], math.isqrt(errors.size))
            errors = np.pad(errors, (0, -errors.size % width), constant_values=np.nan).reshape(-1, width)
        table = errors.reshape(-1, errors.shape[-1] if errors.ndim else 1)
        down, across = (-(-length // most) for length, most in zip(table.shape, _CELLS, strict=True))
        padding = [(0, -table.shape[0] % down), (0, -table.shape[1] % across)]
        table = np.pad(table, padding, constant_values=np.nan)
        blocks = table.reshape(table.shape[0] // down, down, table.shape[1] // across, across)
        cells = np.fmax.reduce(np.fmax.reduce(blocks, axis=3), axis=1)
        shown = tuple(tuple(None if math.isnan(c) else float(f"{c:.2e}") for c in row) for row in cells)
        return cls(shown, (down, across), folded)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the picture."""
        return len(self.cells), len(self.cells[0])

    def caption(self) -> str:
        """What a cell is, in words."""
        down, across = self.block
        cell = "an element" if down * across == 1 else f"the largest error of {down} × {across} elements"
        return f"each cell {cell}" + (", the vector folded into rows" if self.folded else "")

    def png(self) -> bytes:
        """One pixel per cell: RGBA, rows from the top, each after a filter byte 0 (RFC 2083)."""
        rows = b"".join(b"\0" + b"".join(bytes(_colour(c)) for c in row) for row in self.cells)
        header = struct.pack(">2I5B", self.size[1], self.size[0], 8, 6, 0, 0, 0)
        chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
            for kind, data in chunks
        )


def gradient() -> str:
    """The colours of the scale as a CSS gradient."""
    return ", ".join(f"rgb{tuple(int(v) for v in colour)}" for colour in _COLOURS)


def _colour(error: float | None) -> tuple[int, ...]:
    if error is None:
        return _UNKNOWN
    if math.isinf(error):
        return _INFINITE
    if error < 10.0**_LOWEST:
        return _RIGHT
    along = min(1 - math.log10(error) / _LOWEST, 1.0) * (len(_COLOURS) - 1)
    mixed = [np.interp(along, range(len(_COLOURS)), channel) for channel in _COLOURS.T]
    return (*(round(float(v)) for v in mixed), 255)
