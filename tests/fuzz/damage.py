"""Ways to damage a file, each decided by a seed."""

from __future__ import annotations

import contextlib
import io
import re
import zipfile

import h5py
import numpy as np

HOSTILE_NUMBERS = (
    "nan", "inf", "-inf", "1e400", "-1e308", "1e-320", "", "-1", "0", "0x10", "1_000", "\u0663", "1,5", "--3", "1e", "+", "9" * 400,
    "2147483648", "-9223372036854775809", "1.5.2", "(7)", "12(", "?", ".", "\x00", "\ud83d\ude00",
)  # fmt: skip
HOSTILE_INTEGERS = (0, 1, -1, 2**7, 2**15 - 1, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, -(2**63))


def truncated(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(0, len(content)))]


def flipped(content: bytes, rng: np.random.Generator) -> bytes:
    """1 to 64 single bits."""
    out = bytearray(content)
    for at in rng.integers(0, len(out), int(2 ** rng.uniform(0, 6))):
        out[at] ^= 1 << int(rng.integers(8))
    return bytes(out)


def overwritten(content: bytes, rng: np.random.Generator) -> bytes:
    """A block of random bytes, of zeros, or of a copy of another place."""
    out, n = bytearray(content), int(min(len(content), 2 ** rng.uniform(0, 10)))
    at, other = (int(v) for v in rng.integers(0, len(out) - n + 1, 2))
    out[at : at + n] = (rng.bytes(n), bytes(n), content[other : other + n])[int(rng.integers(3))]
    return bytes(out)


def rearranged(content: bytes, rng: np.random.Generator) -> bytes:
    """A block taken out, put in, or doubled."""
    a, b = sorted(int(v) for v in rng.integers(0, len(content) + 1, 2))
    kind = int(rng.integers(3))
    middle = (b"", rng.bytes(min(b - a, 500)), content[a:b] * 2)[kind]
    return content[:a] + middle + content[b:]


def integers(content: bytes, rng: np.random.Generator) -> bytes:
    """Numbers at the edge of their types, over whatever is there; early places more often."""
    out = bytearray(content)
    for _ in range(int(rng.integers(1, 5))):
        size, order = int(rng.choice([1, 2, 4, 8])), str(rng.choice(["little", "big"]))
        limit = min(len(out), 400) if rng.random() < 0.5 else len(out)
        at = int(rng.integers(0, max(1, limit - size)))
        value = int(HOSTILE_INTEGERS[rng.integers(len(HOSTILE_INTEGERS))])
        out[at : at + size] = (value % (1 << (8 * size))).to_bytes(size, order)
    return bytes(out)


def noise(content: bytes, rng: np.random.Generator) -> bytes:
    """Random bytes, after the first bytes of the format or after nothing."""
    head = content[: int(rng.choice([0, 4, 8, 16, 64, 512]))]
    return head + rng.bytes(int(2 ** rng.uniform(0, 13)))


def renumbered(content: bytes, rng: np.random.Generator) -> bytes:
    """Hostile text in place of some numbers, or of some words."""
    pattern = rb"[-+]?\d+\.?\d*(?:[eE][-+]?\d+)?" if rng.random() < 0.8 else rb"[A-Za-z_]{3,}"
    places = list(re.finditer(pattern, content))
    if not places:
        return flipped(content, rng)
    out, last = [], 0
    chosen = sorted(rng.choice(len(places), min(len(places), int(2 ** rng.uniform(0, 5))), replace=False))
    for i in chosen:
        text = HOSTILE_NUMBERS[rng.integers(len(HOSTILE_NUMBERS))].encode("utf-8", "surrogatepass")
        out += [content[last : places[i].start()], text]
        last = places[i].end()
    return b"".join(out) + content[last:]


def lines(content: bytes, rng: np.random.Generator) -> bytes:
    """Lines left out, doubled, moved, cut, joined, or of another encoding."""
    rows = content.split(b"\n")
    for _ in range(int(rng.integers(1, 6))):
        i, j = (int(v) for v in rng.integers(0, len(rows), 2))
        kind = int(rng.integers(6))
        if kind == 0 and len(rows) > 1:
            del rows[i]
        elif kind == 1:
            rows.insert(j, rows[i])
        elif kind == 2:
            rows[i], rows[j] = rows[j], rows[i]
        elif kind == 3:
            rows[i] = rows[i][: int(rng.integers(0, len(rows[i]) + 1))]
        elif kind == 4:
            rows[i] = rows[i] * int(rng.integers(2, 50))
        else:
            rows[i] = rows[i].decode("latin-1").encode("utf-16")
    return b"\n".join(rows)


def rezipped(content: bytes, rng: np.random.Generator) -> bytes:
    """An archive whose members are damaged, missing, doubled or enormous, and which is a whole archive itself."""
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            kind = rng.random()
            if kind < 0.1:
                continue
            member = old.read(info)
            if kind < 0.75 and member:
                ways = (truncated, flipped, overwritten, renumbered, lines, integers)
                member = ways[rng.integers(len(ways))](member, rng)
            elif kind < 0.8:
                member = bytes(30_000_000)
            name = info.filename if kind < 0.95 else "../" + info.filename
            new.writestr(name, member)
    return stream.getvalue()


def relaid(content: bytes, rng: np.random.Generator) -> bytes:
    """A whole HDF5 file with another layout: members missing, of other shapes and types, declared and never written, linked."""
    stream = io.BytesIO(content)
    with h5py.File(stream, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(int(rng.integers(1, 4))):
            name = str(rng.choice(names))
            with contextlib.suppress(KeyError, RuntimeError):  # an earlier change took it away
                _change(file, name, rng)
    return stream.getvalue()


def _change(file, name: str, rng: np.random.Generator) -> None:
    node, kind = file[name], int(rng.integers(10))
    if kind <= 2 and len(node.attrs):
        key = str(rng.choice(list(node.attrs)))
        values = (0, -1, 2**40, "", "x", b"\xff\xfe", np.zeros(0), np.full(3, np.nan), ["a", "b"], h5py.Empty("f"))
        del node.attrs[key]
        if rng.random() < 0.8:
            node.attrs[key] = values[rng.integers(len(values))]
        return
    attributes = dict(node.attrs)
    del file[name]
    if kind == 3:
        return
    if kind == 4:
        file.create_group(name)
    elif kind == 5:
        file[name] = h5py.SoftLink(str(rng.choice(["/", "/" + name, "/nowhere", name.split("/")[0]])))
    elif kind == 6:
        file[name] = h5py.ExternalLink("/etc/hostname", "/data")
    elif kind == 7:  # terabytes of which nothing is written
        shape = [(2**40,), (2**20, 2**20), (10_000, 10_000, 10_000), (4000, 4000, 64, 64)][rng.integers(4)]
        file.create_dataset(name, shape, chunks=tuple(min(n, 64) for n in shape), dtype="f8")
    elif kind == 8:
        values = (
            np.zeros(0), np.float64(np.nan), np.full((3, 3), np.inf), np.zeros((2, 2, 2, 2, 2)), np.arange(7) + 1j, b"text", "text",
            np.array([b"a", b"b"]), -(2**63), h5py.Empty("f8"), np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), True,
        )  # fmt: skip
        file[name] = values[rng.integers(len(values))]
    else:
        reference = np.array([file.ref], dtype=h5py.ref_dtype)
        file.create_dataset(name, data=reference)
    if kind != 5 and kind != 6 and rng.random() < 0.7:
        for key, value in attributes.items():
            with contextlib.suppress(UnicodeEncodeError):  # text that an earlier change spoilt
                file[name].attrs[key] = value


BINARY = (truncated, flipped, overwritten, rearranged, integers, noise)
TEXT = (*BINARY, renumbered, renumbered, lines)


def ways(suffix: str, content: bytes) -> tuple:
    """What may happen to a file of this kind."""
    if content.startswith(b"PK"):
        return (*BINARY, rezipped, rezipped, rezipped)
    if content.startswith(b"\x89HDF"):
        return (*BINARY, relaid, relaid, relaid, relaid)
    return BINARY if b"\0" in content else TEXT


def damaged(content: bytes, suffix: str, seed: int) -> tuple[str, bytes]:
    """Name of the way, and the damaged file."""
    rng = np.random.default_rng(seed)
    chosen = ways(suffix, content)
    way = chosen[int(rng.integers(len(chosen)))]
    return way.__name__, way(content, rng)
