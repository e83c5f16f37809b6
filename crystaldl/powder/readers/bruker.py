"""Binary files of Bruker (Siemens) and STOE diffractometers.

Layouts are those that open programs agree on (xylib's description of RAW versions 1 to 4, and of STOE's RAW_1.06),
checked on real files.  All numbers are little-endian.
"""

from __future__ import annotations

import struct

import numpy as np

from .scan import MAX_POINTS, Scan, lab_radiation, merge_scans, uniform_axis, unusable

__all__ = ["MAGIC", "read_raw1", "read_raw2", "read_raw3", "read_raw4", "read_stoe"]


class _Bytes:
    """Bounds-checked access: a truncated file fails with a sentence, not with struct.error."""

    def __init__(self, content: bytes, name: str, kind: str):
        self.content, self.name, self.kind = content, name, kind

    def get(self, form: str, offset: int):
        form = "<" + form
        if offset < 0 or offset + struct.calcsize(form) > len(self.content):
            raise self.truncated(offset + struct.calcsize(form))
        return struct.unpack_from(form, self.content, offset)[0]

    def text(self, offset: int, length: int) -> str:
        return self.content[offset : offset + length].split(b"\0")[0].decode("latin-1").strip()

    def array(self, dtype: str, offset: int, count: int, stride: int | None = None) -> np.ndarray:
        stride = stride or np.dtype(dtype).itemsize
        if not 0 < count <= MAX_POINTS:
            raise unusable(self.name, f"its header says {count} points", f"a {self.kind} file with a scan in it")
        if offset + stride * count > len(self.content):
            raise self.truncated(offset + stride * count)
        rows = np.frombuffer(self.content, np.uint8, stride * count, offset).reshape(count, stride)
        return np.ascontiguousarray(rows[:, : np.dtype(dtype).itemsize]).view(dtype)[:, 0].astype(np.float64)

    def truncated(self, needed: int):
        return unusable(
            self.name,
            f"this {self.kind} file ends after {len(self.content)} bytes",
            f"at least {needed} bytes, so it is truncated or damaged",
        )


def read_raw1(content: bytes, name: str) -> Scan:
    """Siemens RAW version 1 (magic ``RAW``): ranges of 156 header bytes and float32 counts."""
    b = _Bytes(content, name, "Siemens RAW version 1")
    scans, offset, follow = [], 0, 1
    while follow:
        n, step, start = b.get("I", offset + 4), b.get("f", offset + 12), b.get("f", offset + 24)
        radiation = lab_radiation(b.get("f", offset + 72), b.get("f", offset + 76))
        follow = b.get("I", offset + 152)
        y = b.array("<f4", offset + 156, n)
        sample = b.text(offset + 40, 32)
        scans.append(Scan(uniform_axis(start, step, n, name), y, None, radiation, sample, {"format": "Siemens RAW 1"}))
        # Following ranges repeat the header without the leading magic.
        offset += 156 + 4 * n - 4
    return merge_scans(scans, name)


def read_raw2(content: bytes, name: str) -> Scan:
    """Siemens RAW version 2 (``RAW2``): 256 header bytes, then ranges."""
    b = _Bytes(content, name, "Siemens RAW version 2")
    ranges = b.get("H", 4)
    radiation = lab_radiation(b.get("f", 190), b.get("f", 194), anode=b.text(188, 2))
    meta = {"format": "Siemens RAW 2", "date": b.text(168, 20)}
    scans, offset = [], 256
    for _ in range(ranges):
        length, n = b.get("H", offset), b.get("H", offset + 2)
        if length < 48:
            raise unusable(name, f"a range header of {length} bytes", "at least 48 in a Siemens RAW version 2 file")
        axis = uniform_axis(b.get("f", offset + 16), b.get("f", offset + 12), n, name)
        scans.append(Scan(axis, b.array("<f4", offset + length, n), None, radiation, "", dict(meta)))
        offset += length + 4 * n
    return merge_scans(scans, name)


def read_raw3(content: bytes, name: str) -> Scan:
    """Bruker RAW version 3 (``RAW1.01``): 712 header bytes, then ranges of 304 header bytes or more."""
    b = _Bytes(content, name, "Bruker RAW1.01")
    ranges = b.get("I", 12)
    radiation = lab_radiation(b.get("d", 624), b.get("d", 632), b.get("d", 648), b.text(608, 4))
    meta = {"format": "Bruker RAW1.01", "date": b.text(16, 10), "anode": b.text(608, 4), "comment": b.text(386, 160)}
    sample = b.text(326, 60)
    scans, offset = [], 712
    for _ in range(min(ranges, 10_000)):
        length, n = b.get("I", offset), b.get("I", offset + 4)
        start, step = b.get("d", offset + 16), b.get("d", offset + 176)
        extra = b.get("I", offset + 256)
        y = b.array("<f4", offset + length + extra, n)
        scans.append(Scan(uniform_axis(start, step, n, name), y, None, radiation, sample, dict(meta)))
        offset += length + extra + 4 * n
    return merge_scans(scans, name)


def read_raw4(content: bytes, name: str) -> Scan:
    """Bruker RAW version 4 (``RAW4.00``): tagged segments from byte 61, then ranges of 160 header bytes and segments."""
    b = _Bytes(content, name, "Bruker RAW4.00")
    meta = {"format": "Bruker RAW4.00", "date": b.text(12, 12)}
    radiation, offset, sample = None, 61, ""
    scans = []
    while offset + 8 <= len(content):
        kind = b.get("I", offset)
        if kind in (0, 160):
            scan, offset = _raw4_range(b, offset)
            scan.radiation, scan.name, scan.metadata = radiation, sample, dict(meta)
            scans.append(scan)
            continue
        length = b.get("I", offset + 4)
        if length < 8:
            raise unusable(name, f"a segment of {length} bytes", "segments of at least 8 in a Bruker RAW4.00 file")
        if kind == 10 and b.text(offset + 12, 24) == "SAMPLEID":
            sample = b.text(offset + 36, length - 36)
        elif kind == 30:
            meta["anode"] = b.text(offset + 116, 4)
            radiation = lab_radiation(
                b.get("d", offset + 80), b.get("d", offset + 88), b.get("d", offset + 104), meta["anode"]
            )
        offset += length
    if not scans:
        raise b.truncated(offset)
    return merge_scans(scans, name)


def _raw4_range(b: _Bytes, offset: int) -> tuple[Scan, int]:
    n = b.get("I", offset + 4)
    start, step = b.get("d", offset + 72), b.get("d", offset + 80)
    record, extra = b.get("I", offset + 136), b.get("I", offset + 140)
    if record < 4:
        raise unusable(b.name, f"data records of {record} bytes", "at least 4 in a Bruker RAW4.00 file")
    data = offset + 160 + extra
    return Scan(uniform_axis(start, step, n, b.name), b.array("<f4", data, n, record)), data + record * n


def read_stoe(content: bytes, name: str) -> Scan:
    """STOE WinXPOW ``RAW_1.06Powdat``: blocks of 512 bytes; a range header directly before the uint32 counts."""
    b = _Bytes(content, name, "STOE RAW_1.06")
    if not content.startswith(b"RAW_1.06Powdat"):
        raise unusable(name, "a STOE RAW file without powder data", "RAW_1.06Powdat")
    data = 512 * (b.get("H", 0x1DC) - b.get("H", 0x1DA))
    if data < 1024:
        raise unusable(name, "a STOE RAW file with an unknown layout", "its data to begin after the headers")
    if len(content) < 512 * b.get("H", 0x1DC):
        raise b.truncated(512 * b.get("H", 0x1DC))
    n = b.get("H", data - 0x1DE)
    start, end, step = b.get("f", data - 0x1D4), b.get("f", data - 0x1CC), b.get("f", data - 0x1C4)
    axis = uniform_axis(round(start, 6), round(step, 6), n, name)
    if abs(axis[-1] - end) > 1.5 * abs(step):
        raise unusable(name, f"its header says {n} points but an end at {end:g}°", f"an end at {axis[-1]:g}°")
    radiation = lab_radiation(b.get("f", 0x142), b.get("f", 0x146))
    meta = {"format": "STOE RAW_1.06", "date": b.text(16, 16)}
    return Scan(axis, b.array("<u4", data, n), None, radiation, "", meta)


#: Leading bytes -> reader, longest first.
MAGIC = {
    b"RAW_1.06": read_stoe,
    b"RAW4.00": read_raw4,
    b"RAW1.01": read_raw3,
    b"RAW2": read_raw2,
    b"RAW ": read_raw1,
}
