"""The IDX format of MNIST and its relatives.

Big-endian: two zero bytes, a byte for the dtype, a byte for the number of dimensions, their sizes as
uint32, the values in C order. (LeCun, Cortes and Burges, 1998).
"""

import math
import struct
from pathlib import Path

import numpy as np

from jaxnet.data.archive import unzipped

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def idx(path: str | Path) -> np.ndarray:
    """Reads an IDX file, gzipped or not, into an array of the machine's byte order.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is damaged, cut short or not IDX; the message names the file.
    """
    path = Path(path)
    raw = unzipped(path)
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _DTYPES:
        raise ValueError(f"{path} is not an IDX file: it begins with {raw[:4].hex() or 'nothing'}")
    dtype, rank = np.dtype(_DTYPES[raw[2]]), raw[3]
    start = 4 + 4 * rank
    if len(raw) < start:
        raise ValueError(f"{path} is cut short: its header has {len(raw)} bytes of {start}")
    shape = struct.unpack(f">{rank}I", raw[4:start])
    size = math.prod(shape) * dtype.itemsize
    if len(raw) - start != size:
        raise ValueError(f"{path} has {len(raw) - start} bytes of values; its shape {shape} needs {size}")
    return np.frombuffer(raw, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))
