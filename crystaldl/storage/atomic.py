"""Writing files so that an old one stays whole until the new one is.

A file is written beside its place, seen onto the disk and renamed. An interruption at any moment leaves the old file or
the new one, and of two processes that write the same file one wins whole. Everything in the package that replaces a file
does so through here.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["plain", "replacing", "write_bytes", "write_figure", "write_json", "write_text"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """A place to write a file that then takes the place of ``path``.

    Parameters
    ----------
    path : str or path-like
        What is to be replaced. A symbolic link is followed: the file that it points to is replaced. Permissions of an
        existing file are kept.

    Yields
    ------
    Path
        An empty file of its own in the same folder and with the same ending, for the body to write or to replace. When
        the body raises (or is interrupted), it is removed and ``path`` stays as it was.

    Raises
    ------
    TypeError
        ``path`` is no path.
    FileNotFoundError
        The folder does not exist.
    IsADirectoryError
        ``path`` is a folder.
    OSError
        The folder cannot be written in, or the disk is full.

    Examples
    --------
    >>> with replacing("fit.json") as beside:
    ...     beside.write_text("{}")
    """
    target = _checked(path)
    # short and with the same ending: names have a limit of 255 bytes, and HDF5 libraries know files by their endings
    prefix = "." + target.name.encode()[:40].decode(errors="ignore").lstrip(".") + "."
    suffix = ".part" + (target.suffix if len(target.suffix.encode()) < 20 else "")
    beside = target.parent / f"{prefix}{secrets.token_hex(8)}{suffix}"
    try:
        os.close(os.open(beside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # as open() would: the umask decides
        yield beside
        with contextlib.suppress(FileNotFoundError):
            os.chmod(beside, target.stat().st_mode & 0o777)
        _flush(beside)
        os.replace(beside, target)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink()
        raise
    with contextlib.suppress(OSError):  # not every file system can flush a folder
        _flush(target.parent)


def write_bytes(path: str | os.PathLike, content: bytes) -> Path:
    """Replace a file by ``content``; see `replacing`."""
    with replacing(path) as beside:
        beside.write_bytes(content)
    return Path(path)


def write_text(path: str | os.PathLike, text: str) -> Path:
    """Replace a file by ``text`` in UTF-8, line ends as they are; see `replacing`."""
    return write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, content: Any, indent: int | None = None) -> Path:
    """Replace a file by strict JSON; arrays become lists, numbers that are not finite become null. See `replacing`.

    Raises
    ------
    TypeError
        Something that JSON does not hold.
    """
    return write_text(path, json.dumps(plain(content), ensure_ascii=False, allow_nan=False, indent=indent))


def write_figure(path: str | os.PathLike, figure: Any, dpi: int = 150) -> Path:
    """Replace a file by a picture of a matplotlib figure (as PNG, the same bytes for the same figure); see `replacing`."""
    with replacing(path) as beside:
        figure.savefig(beside, dpi=dpi, metadata={"Software": None} if beside.suffix == ".png" else None)
    return Path(path)


def plain(value: Any) -> Any:
    """Only what strict JSON knows: arrays become lists, and numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    if hasattr(value, "tolist"):  # NumPy arrays and numbers
        return plain(value.tolist())
    if isinstance(value, float) and not (-float("inf") < value < float("inf")):
        return None
    return value


def _checked(path: str | os.PathLike) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path is a {type(path).__name__}; expected text or a pathlib.Path.")
    path = Path(path)
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; expected a folder to write {path.name} in.")
    if target.is_dir():
        raise IsADirectoryError(f"path is {path}, which is a folder; expected the name of a file.")
    return target


def _flush(path: Path) -> None:
    """See onto the disk what the system still holds of a file or a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
