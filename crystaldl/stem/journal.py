"""A journal of finished scan blocks: append-only, so that whatever stops a run, the blocks before it are kept.

A record is (magic, length, CRC-32) and an uncompressed npz; a record that was cut short is dropped when the journal is
opened again. The first record holds the settings' hash, under which alone a run may go on.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np

from ..errors import DataError, FileFormatError

_HEAD = struct.Struct("<4sQI")
_MAGIC = b"CDLB"


def journal_path(out) -> Path:
    """Where the journal of a run lies whose result goes to ``out``."""
    return Path(out).with_name(Path(out).name + ".partial")


class Journal:
    """Finished blocks of one run, in the file beside ``out``.

    Parameters
    ----------
    out : Path
        The file that the whole result will have.
    key : str
        Hash of everything that decides the result.

    Attributes
    ----------
    path : Path
    records : list of dict of arrays, the blocks that were finished before
    blocks : int, finished blocks in the file

    Raises
    ------
    DataError
        The journal belongs to a run with other settings.
    """

    def __init__(self, out: Path, key: str):
        self.path = journal_path(out)
        self.records: list[dict[str, np.ndarray]] = []
        good = self._read(key) if self.path.exists() else 0
        self._file = open(self.path, "r+b" if good else "wb")  # noqa: SIM115 (open for as long as the run)
        self._file.truncate(good)
        self._file.seek(good)
        if not good:
            self._write(key=np.frombuffer(key.encode(), dtype=np.uint8))
        self.blocks = len(self.records)

    def append(self, **arrays) -> None:
        """Write the record of one block and see it onto the disk."""
        self._write(**arrays)
        self.blocks += 1

    def _write(self, **arrays) -> None:
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        content = buffer.getvalue()
        self._file.write(_HEAD.pack(_MAGIC, len(content), zlib.crc32(content)) + content)
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file; one without any finished block is of no use and goes."""
        self._file.close()
        if not self.blocks:
            self.path.unlink(missing_ok=True)

    def _read(self, key: str) -> int:
        """Load the whole records; returns the length of the file up to the last of them."""
        good = 0
        with open(self.path, "rb") as file:
            while len(head := file.read(_HEAD.size)) == _HEAD.size:
                magic, length, check = _HEAD.unpack(head)
                if magic != _MAGIC:
                    if good == 0:
                        raise FileFormatError(f"{self.path} is no journal of a scan; expected one, or no such file.")
                    break
                content = file.read(length)
                if len(content) != length or zlib.crc32(content) != check:
                    break
                with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                    record = dict(arrays)
                if good == 0 and bytes(record.get("key", b"")).decode() != key:
                    raise DataError(
                        f"out names a run that was begun with other settings or data ({self.path}); expected the same "
                        "ones to go on, or another name, or that file removed."
                    )
                if good:
                    self.records.append(record)
                good = file.tell()
        return good
