"""Damage that would make the HDF5 library run for ever or fill the memory, found before it does.

Text of variable length is kept in *global heaps*, collections of objects with the size of each before it; in its place stand
a length, the address of a collection and the number of an object (HDF5 File Format Specification, version 3, sections III.E
and IV.A.2.m). The library goes from object to object without asking whether it moves, and clears memory for a text of any
length before it looks for it: a free space of size 0 keeps it for ever, a damaged length takes 4 GB.
"""

from __future__ import annotations

import mmap
import os
import struct
from pathlib import Path
from typing import Any

from ..errors import FileFormatError

__all__ = ["check_heaps", "check_text"]

#: Files up to twice this size are looked through; of a larger one as much at its start and at its end.
LOOKED_AT = 1 << 28
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEAD = 16  # bytes before the first object of a collection, and before the content of an object
# of a datatype message, all but its first four bytes: 16 bytes each, of variable length, made of single bytes
_TEXT = b"\x10\0\0\0" + b"\x10\0\0\0\x01\0\0\0\0\0\x08\0"
_DATATYPE = 4 + len(_TEXT)
_ELEMENTS = 4096  # texts of one array that are looked at


def check_heaps(path: str | os.PathLike) -> None:
    """Refuse an HDF5 file with a global heap that does not end, or an attribute with a text longer than the file.

    Parameters
    ----------
    path : str or path-like
        Of a file that HDF5 takes for one of its own.

    Raises
    ------
    FileFormatError
    """
    path = Path(path)
    if path.stat().st_size == 0:
        return
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as view:
        base, width = _superblock(view)
        size = len(view)
        spans = ((0, size),) if size <= 2 * LOOKED_AT else ((0, LOOKED_AT), (size - LOOKED_AT, size))
        for start, stop in spans:
            for at in _places(view, b"GCOL\x01", start, stop):
                # what only looks like a heap, or is left of one that was freed, is named by nothing in the file
                if not _ends(view, at, width) and view.find((at - base).to_bytes(8, "little", signed=True)) >= 0:
                    raise _damaged(path.name)
            for at in _places(view, _TEXT, start, stop):
                if _longest(_texts_of_attribute(view, at + len(_TEXT) - _DATATYPE)) > size:
                    raise _damaged(path.name)


def check_text(node: Any) -> None:
    """Refuse a data set with a text that is longer than its file; see `check_heaps` for attributes.

    Parameters
    ----------
    node : h5py.Dataset

    Raises
    ------
    FileFormatError
    """
    import h5py

    kind = h5py.check_string_dtype(node.dtype)
    if kind is None or kind.length is not None or not node.size or not os.path.isfile(node.file.filename):
        return
    place = node.id.get_offset()
    if place is None:  # in chunks
        return
    with open(node.file.filename, "rb") as stream:
        stream.seek(place)
        texts = stream.read(16 * min(node.size, _ELEMENTS))
        if _longest(texts) > os.fstat(stream.fileno()).st_size:
            raise _damaged(os.path.basename(node.file.filename))


def _damaged(name: str) -> FileFormatError:
    return FileFormatError(f"{name}: the text in this HDF5 file is damaged; expected a whole file.")


def _places(view: mmap.mmap, what: bytes, start: int, stop: int):
    at = start - 1
    while (at := view.find(what, at + 1, stop)) >= 0:
        yield at


def _superblock(view: mmap.mmap) -> tuple[int, int]:
    """Where the addresses of a file count from, and how many bytes a size in it takes."""
    at = 0
    while view[at : at + 8] != _SIGNATURE:
        at = at * 2 or 512
        if at >= len(view):
            return 0, 8
    place = at + (14 if view[at + 8 : at + 9] in (b"\0", b"\1") else 10)
    width = view[place] if place < len(view) else 8
    return at, width if width in (2, 4, 8) else 8


def _ends(view: mmap.mmap, start: int, width: int) -> bool:
    """Whether the library, going from object to object, reaches the end of the collection at ``start``."""
    end = start + int.from_bytes(view[start + 8 : start + 8 + width], "little")
    if end > len(view):
        return True  # cut off, which the library says
    at = start + _HEAD
    while end - at >= _HEAD:
        number = int.from_bytes(view[at : at + 2], "little")
        size = int.from_bytes(view[at + 8 : at + 8 + width], "little")
        step = size if number == 0 else _HEAD + _padded(size)
        if not 0 < step <= end - at:
            return False
        at += step
    return True


def _padded(size: int) -> int:
    return -(-size // 8) * 8


def _texts_of_attribute(view: mmap.mmap, datatype: int) -> bytes:
    """Lengths and addresses of the texts of an attribute whose datatype message begins there; empty if there is none."""
    for version, head, align in ((1, 8, _padded), (3, 9, int)):
        # the message: version, flags, sizes of name, datatype and dataspace; in version 3 a character set; then these three
        for length in range(1, 256):
            start = datatype - head - align(length)
            if start < 0:
                break
            if view[start] == version and struct.unpack_from("<HH", view, start + 2) == (length, _DATATYPE):
                space = datatype + align(_DATATYPE)
                (size,) = struct.unpack_from("<H", view, start + 6)
                texts = space + align(size)
                return view[texts : texts + 16 * _elements(view[space : space + size])]
    return b""


def _elements(dataspace: bytes) -> int:
    """How many texts a dataspace message says there are, at most those that are looked at."""
    if len(dataspace) < 4 or dataspace[0] not in (1, 2):
        return 0
    head = 8 if dataspace[0] == 1 else 4
    sizes = dataspace[head : head + 8 * dataspace[1]]
    count = 1
    for (size,) in struct.iter_unpack("<Q", sizes[: len(sizes) // 8 * 8]):
        count = min(count * size, _ELEMENTS)
    return count


def _longest(texts: bytes) -> int:
    return max((length for length, _, _ in struct.iter_unpack("<IQI", texts[: len(texts) // 16 * 16])), default=0)
