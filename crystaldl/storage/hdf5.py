"""Reading HDF5 files within bounds: a damaged or hostile one fails with a sentence, before memory or time run out.

HDF5 lets a file of a few kilobytes declare terabytes of data, link its groups in circles, or take its data from other
files. So the tree is walked first, and what no measurement holds is refused before anything is loaded.
"""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CrystaldlError, FileFormatError
from .heaps import check_heaps, check_text

__all__ = [
    "check_archive", "check_dataset", "check_members", "check_size", "checked_path", "first_line", "load", "load_npy",
    "open_hdf5", "physical_memory",
]  # fmt: skip

log = logging.getLogger(__name__)

#: Declared data up to this many bytes are loaded whatever the file holds of them.
FREE_BYTES = 1 << 28
#: Beyond that, a file must hold at least one byte of so many: deflate packs zeros a thousandfold, nothing packs better.
MAX_RATIO = 2000
MAX_NODES, MAX_DEPTH = 100_000, 40


def first_line(error: BaseException) -> str:
    """The first line of a message, without quotes, at most 120 characters."""
    text = (str(error).splitlines() or [""])[0].strip().strip("'\"")
    return text[:120] or type(error).__name__


def physical_memory() -> int | None:
    """Bytes of memory of this machine; None where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return None


def check_size(declared: int, stored: int | None, name: str, what: str, *, mapped: bool = False) -> None:
    """Refuse data that a file declares but cannot hold, or that this machine cannot.

    Parameters
    ----------
    declared : int, bytes in memory
    stored : int or None, bytes in the file; None where they are elsewhere (a virtual data set)
    name, what : str, of the file and the data, for the message
    mapped : bool
        Whether the data are left in the file: then they may be larger than the memory.

    Raises
    ------
    FileFormatError
    """
    if declared <= FREE_BYTES:
        return
    if stored is not None and declared > MAX_RATIO * stored:
        raise FileFormatError(
            f"{name}: {what} declares {declared:,} bytes but the file holds {stored:,} of them; expected a whole file."
        )
    memory = None if mapped else physical_memory()
    if memory is not None and declared > memory:
        raise FileFormatError(
            f"{name}: {what} takes {declared / 1e9:.1f} GB, more than the {memory / 1e9:.1f} GB of this machine; "
            "expected data that fit, or a reader that leaves them in the file (mem='MEMMAP')."
        )


def check_members(file: Any, name: str, *, load: bool = True, links: bool = True) -> None:
    """Walk an open HDF5 file or group and refuse what no measurement holds.

    Parameters
    ----------
    file : h5py.File or Group
    name : str, of the file, for messages
    load : bool
        Whether the data are going to be loaded: then their sizes are checked.
    links : bool
        Whether links to other files are allowed (NeXus files of big experiments have them).

    Raises
    ------
    FileFormatError
        Groups in a circle or too many, links where none belong, data larger than the file can hold.
    """
    import h5py

    count, todo = 0, [(file, 0)]
    while todo:
        group, depth = todo.pop()
        for key in group:
            count += 1
            if depth >= MAX_DEPTH or count > MAX_NODES:
                raise FileFormatError(
                    f"{name}: its groups contain each other or are too many; expected a tree of data sets."
                )
            link = group.get(key, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                if not links:
                    raise FileFormatError(f"{name}: {key} is a link to another file; expected all data in one file.")
                continue
            if isinstance(link, h5py.SoftLink) and links:
                continue  # readers of such files take nodes by name and do not follow these through the tree
            node = group.get(key)
            if isinstance(node, h5py.Group):
                todo.append((node, depth + 1))
            elif isinstance(node, h5py.Dataset):
                check_text(node)
                if load:
                    check_dataset(node, name)


def load(node: Any) -> Any:
    """The values of an HDF5 data set whose size was checked first.

    Raises
    ------
    FileFormatError
        Not a data set, or one that the file or this machine cannot hold.
    """
    import h5py

    name = os.path.basename(str(node.file.filename))
    if not isinstance(node, h5py.Dataset):
        raise FileFormatError(f"{name}: {node.name} is a group; expected an array.")
    check_dataset(node, name)
    return node[()]


def check_dataset(node: Any, name: str, *, mapped: bool = False) -> None:
    """Refuse a data set that the file cannot hold, that this machine cannot, or whose numbers are in another file."""
    if node.external:
        raise FileFormatError(
            f"{name}: {node.name} takes its numbers from another file; expected all data in one file."
        )
    if node.size is not None:
        stored = None if node.is_virtual else int(node.id.get_storage_size())
        check_size(int(node.size) * int(node.dtype.itemsize), stored, name, node.name, mapped=mapped)


@contextlib.contextmanager
def open_hdf5(path: str | os.PathLike, expected: str, *, load: bool = True, links: bool = True) -> Iterator[Any]:
    """An HDF5 file open for reading, its tree checked; whatever goes wrong in the body becomes one sentence.

    Parameters
    ----------
    path : str or path-like
    expected : str
        What the messages say was expected.
    load, links
        As in `check_members`.

    Yields
    ------
    h5py.File

    Raises
    ------
    TypeError
        ``path`` is no path.
    FileNotFoundError
    FileFormatError
        A folder, not HDF5, or damaged. Errors of crystaldl from the body pass as they are.
    """
    import h5py

    path = checked_path(path, expected)
    try:
        if not h5py.is_hdf5(path):
            found = (
                "the file is empty" if path.stat().st_size == 0 else "this is not an HDF5 file, or its start is damaged"
            )
            raise FileFormatError(f"{path.name}: {found}; expected {expected}.")
        check_heaps(path)
        with h5py.File(path, "r") as file:
            check_members(file, path.name, load=load, links=links)
            yield file
    except (CrystaldlError, ImportError):
        raise
    except MemoryError:
        raise FileFormatError(f"{path.name}: there is not enough memory for it; expected {expected}.") from None
    except Exception as error:  # over damaged files h5py and emdfile raise anything, emdfile Exception itself
        found = f"this HDF5 file is truncated, damaged or incomplete ({first_line(error)})"
        log.debug("%s cannot be read", path, exc_info=error)
        raise FileFormatError(f"{path.name}: {found}; expected {expected}.") from None


def load_npy(path: str | os.PathLike) -> np.ndarray:
    """The array of an .npy file, without objects. A header that promises more than the file holds is found out first.

    Raises
    ------
    ValueError, OSError, EOFError
        Damaged, or an array of objects.
    """
    try:  # mapped first: that compares the header with the length of the file and allocates nothing
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError, MemoryError):
        raise
    except Exception as error:  # a damaged header is taken for Python and raises anything
        raise ValueError(first_line(error)) from None


def check_archive(path: str | os.PathLike) -> None:
    """Refuse an .npz archive whose members unpack to more than they can hold, or than this machine can.

    Raises
    ------
    FileFormatError
    """
    name = os.path.basename(path)
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError, struct.error) as error:
        raise FileFormatError(f"{name}: a damaged archive ({first_line(error)}); expected a whole .npz file.") from None
    for member in members:
        check_size(member.file_size, member.compress_size, name, member.filename)


def checked_path(path: str | os.PathLike, expected: str) -> Path:
    """The path of a file that exists."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path is a {type(path).__name__}; expected text or a pathlib.Path.")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {expected}.")
    if path.is_dir():
        raise FileFormatError(f"{path.name}: this is a folder; expected {expected}.")
    return path
