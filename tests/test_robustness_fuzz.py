"""Damaged files and hostile calls, in small numbers; ``tests/fuzz/run.py`` runs them in large ones.

``CRYSTALDL_FUZZ=full`` runs the full numbers here. The cases are made in a process of its own: what crashes a library of C
fails the test and not the run.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest

from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import DataError, FileFormatError
from crystaldl.files import read
from crystaldl.powder.pattern import PowderPattern
from crystaldl.storage import hdf5

RUN = Path(__file__).parent / "fuzz" / "run.py"
FULL = os.environ.get("CRYSTALDL_FUZZ") == "full"


def fuzz(kind: str, count: int, *extra: str) -> list[dict]:
    command = [sys.executable, str(RUN), kind, "--count", str(count), *extra, *([] if FULL else ["--shared"])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=None if FULL else 280)
    results = [
        entry for line in done.stdout.splitlines() if line.startswith("{") and "cases" in (entry := json.loads(line))
    ]
    assert results, done.stderr[-2000:]
    if not FULL:
        assert done.returncode == 0, f"after {done.stdout.splitlines()[-1]}: {done.stderr[-2000:]}"
    return results


@pytest.mark.slow
@pytest.mark.timeout(0 if FULL else 300)
@pytest.mark.parametrize(("kind", "count"), [("readers", 2000 if FULL else 25), ("calls", 500 if FULL else 8)])
def test_only_documented_exceptions_leave_the_library(kind, count):
    escaped = {result["name"]: result["bad"] for result in fuzz(kind, count) if result["bad"]}
    assert not escaped


def test_the_harness_sees_what_escapes(tmp_path):
    """The supervisor notes an exception, a hang by its clock, a crash, and a write outside its folder."""
    sys.path.insert(0, str(RUN.parents[1]))
    import collections

    from fuzz.run import Hang, attempt

    def fail():
        raise KeyError("x")

    def hang():
        raise Hang

    counts: collections.Counter = collections.Counter()
    assert "KeyError" in attempt(fail, (ValueError,), counts)
    assert "Hang" in attempt(hang, (ValueError,), counts)
    assert attempt(fail, (KeyError,), counts) is None
    code = (
        f"import sys; sys.path.insert(0, {str(RUN.parents[1])!r}); from fuzz.run import confine; "
        f"confine({str(tmp_path)!r}); open('inside.txt', 'w').close(); open({str(tmp_path) + '.outside'!r}, 'w')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "Escape" in done.stderr
    assert (tmp_path / "inside.txt").exists()
    assert not Path(str(tmp_path) + ".outside").exists()


# -- within bounds -------------------------------------------------------------------------------------------------


def declared(path: Path, shape, dtype="f8", **options) -> Path:
    """A Yell file of a few kilobytes that declares data and holds none."""
    with h5py.File(path, "w") as file:
        file.create_dataset("data", shape, chunks=tuple(min(n, 32) for n in shape), dtype=dtype, **options)
        file["lower_limits"], file["step_sizes"], file["unit_cell"] = [0, 0, 0.0], [0.1] * 3, [5, 5, 5, 90, 90, 90.0]
    return path


@pytest.mark.parametrize("shape", [(2**14,) * 3, (2**20, 2**20, 4), (900, 900, 900)])
def test_declared_and_not_there(shape, tmp_path):
    path = declared(tmp_path / "a.h5", shape)
    assert path.stat().st_size < 100_000
    with pytest.raises(FileFormatError, match=r"a\.h5: /data declares .* bytes but the file holds 0 of them"):
        DiffuseVolume.from_file(path)


def test_compressed_zeros_are_no_bomb(tmp_path, monkeypatch):
    """What deflate makes of a volume of zeros, a thousandth, is a whole file."""
    monkeypatch.setattr(hdf5, "FREE_BYTES", 2**20)
    path = tmp_path / "a.h5"
    declared(path, (2, 2, 2))
    data = np.zeros((30, 340, 340), np.float32)
    data[0, 0, 0] = 1
    with h5py.File(path, "r+") as file:
        del file["data"]
        file.create_dataset("data", data=data, compression="gzip", compression_opts=9, chunks=(30, 170, 170))
    assert path.stat().st_size < data.nbytes / 300
    assert DiffuseVolume.from_file(path).shape == data.shape


def test_more_than_the_machine_holds(tmp_path, monkeypatch):
    monkeypatch.setattr(hdf5, "physical_memory", lambda: 2**20)
    monkeypatch.setattr(hdf5, "FREE_BYTES", 2**16)
    with pytest.raises(FileFormatError, match="more than the 0.0 GB of this machine; .*MEMMAP"):
        hdf5.check_size(2**24, 2**24, "a.h5", "/data")
    monkeypatch.undo()
    hdf5.check_size(2**24, 2**24, "a.h5", "/data")
    assert hdf5.physical_memory() is None or hdf5.physical_memory() > 2**28


def emd(path: Path) -> Path:
    from crystaldl.files import save

    sys.path.insert(0, str(RUN.parents[1]))
    from fuzz import objects

    return save(path, objects.volume())


@pytest.mark.parametrize("link", ["circle", "other file", "numbers elsewhere", "many"])
def test_trees_that_are_none(link, tmp_path):
    path = emd(tmp_path / "a.h5")
    (tmp_path / "secret.bin").write_bytes(bytes(800))
    with h5py.File(path, "r+") as file:
        node = file["crystaldl/diffuse_volume"]
        if link == "circle":
            node["again"] = node
        elif link == "other file":
            node["again"] = h5py.ExternalLink("/etc/hostname", "/")
        elif link == "numbers elsewhere":
            node.create_dataset("again", (100,), "f8", external=[(str(tmp_path / "secret.bin"), 0, 800)])
        else:  # each group holds the next one twice: 2^40 paths through 40 groups
            group = node.create_group("many")
            for _ in range(39):
                following = group.create_group("a")
                group["b"] = following
                group = following
    with pytest.raises(
        FileFormatError, match="contain each other or are too many|link to another file|from another file"
    ):
        read(path)


def test_npy_header_that_promises_more(tmp_path):
    stream = io.BytesIO()
    np.save(stream, np.zeros((4, 4)))
    path = tmp_path / "a.npy"
    path.write_bytes(stream.getvalue().replace(b"(4, 4)", b"(4, 9999999999999)"[:18]).replace(b"    ", b"", 3))
    with pytest.raises(FileFormatError, match="damaged"):
        DiffuseVolume.from_file(path)


def test_archives(tmp_path):
    from crystaldl.stem.datacube import DataCube

    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("data.npy", bytes(1000))
    content = bytearray(path.read_bytes())
    size = (1 << 40) - 1 & 0xFFFFFFFE
    at = content.rfind(b"PK\x01\x02")
    content[at + 24 : at + 28] = size.to_bytes(4, "little")  # the size in the directory
    path.write_bytes(bytes(content))
    with pytest.raises(FileFormatError, match=r"declares 4,294,967,294 bytes but the file holds"):
        DataCube.from_file(path)
    with zipfile.ZipFile(tmp_path / "b.brml", "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("Experiment0/RawData0.xml", b"<RawData>" + bytes(20_000_000) + b"</RawData>")
    with pytest.raises(FileFormatError, match="unpacks to 20 MB"):
        PowderPattern.from_file(tmp_path / "b.brml")


def test_no_pickle_is_ever_loaded(tmp_path):
    """A file that would run code on unpickling, under every ending."""
    from crystaldl.models.registry import load_weights
    from crystaldl.stem.datacube import DataCube

    class Payload:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "ran.txt", "x"))

    array = np.array([Payload()], dtype=object)
    for suffix, reader in (
        (".npy", DataCube.from_file),
        (".npz", DataCube.from_file),
        (".npy", DiffuseVolume.from_file),
        (".pkl", read),
    ):
        path = tmp_path / f"a{suffix}"
        with path.open("wb") as stream:
            (np.savez if suffix == ".npz" else np.save)(
                stream, array, **({} if suffix == ".npz" else {"allow_pickle": True})
            )
        with pytest.raises(FileFormatError):
            reader(path)
    assert callable(load_weights)
    assert not (tmp_path / "ran.txt").exists()


# -- text of variable length ---------------------------------------------------------------------------------------


def texts(path: Path, libver: str = "earliest", userblock: int = 0) -> bytearray:
    """A file with text in attributes and in a data set, and its bytes."""
    with h5py.File(path, "w", libver=libver, userblock_size=userblock) as file:
        file.attrs["name"], file.attrs["many"] = "a name of some length", ["a", "bb", "ccc"]
        for i in range(10):  # the later versions of the format then keep them in another place
            file.attrs[f"key {i}"] = f"value {i}"
        file["title"] = "the text of a data set"
    return bytearray(path.read_bytes())


def reference(content: bytes, length: int) -> int:
    """Where the length of a text stands: before the address of the heap and the number of the object."""
    userblock = content.index(b"\x89HDF\r\n\x1a\n")
    address = (content.index(b"GCOL\x01") - userblock).to_bytes(8, "little")
    return content.index(length.to_bytes(4, "little") + address)


@pytest.mark.parametrize("userblock", [0, 1024])
@pytest.mark.parametrize("libver", ["earliest", "latest"])
class TestTexts:
    def test_whole_files_pass(self, libver, userblock, tmp_path):
        texts(tmp_path / "a.h5", libver, userblock)
        with hdf5.open_hdf5(tmp_path / "a.h5", "a file") as file:
            assert list(file.attrs["many"]) == ["a", "bb", "ccc"] and file["title"].asstr()[()].startswith("the text")

    @pytest.mark.parametrize("what", ["free space of no size", "object of no end", "attribute", "array", "data set"])
    def test_damaged_ones_are_refused_before_the_library_runs_for_ever(self, what, libver, userblock, tmp_path):
        path = tmp_path / "a.h5"
        content = texts(path, libver, userblock)
        heap = content.index(b"GCOL\x01")
        if what == "free space of no size":
            at, value = heap + 16, bytes(16)
        elif what == "object of no end":  # the step to the next object wraps around to nothing
            at, value = heap + 24, (2**64 - 16).to_bytes(8, "little")
        else:
            at = reference(content, {"attribute": 21, "array": 3, "data set": 22}[what])
            value = (2**32 - 2).to_bytes(4, "little")
        content[at : at + len(value)] = value
        path.write_bytes(content)
        with (
            pytest.raises(FileFormatError, match=r"^a\.h5: the text in this HDF5 file is damaged"),
            hdf5.open_hdf5(path, "a file", load=False),
        ):
            pass


def test_what_only_looks_like_a_heap_is_no_damage(tmp_path):
    """Numbers that happen to spell one, and nothing in the file names their place."""
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.frombuffer(
            bytes(8) + b"GCOL\x01\0\0\0" + (4096).to_bytes(8, "little") + bytes(8192), np.uint8
        )
    with hdf5.open_hdf5(path, "a file") as file:
        assert file["data"].size == 8216


@pytest.mark.parametrize("shape", [(2**20, 2**20), (10_000, 10_000, 10_000), (4000, 4000, 64, 64)])
def test_mapped_scans_that_are_declared_and_not_there(shape, tmp_path):
    """Of which nothing is written: refused at once, not after a list of a quarter of a billion blocks."""
    from crystaldl.stem.datacube import DataCube

    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("scan", shape, chunks=(64,) * len(shape), dtype="f8")
    with pytest.raises(FileFormatError, match=r"a\.h5: /scan declares .* bytes but the file holds 0 of them"):
        DataCube.from_file(tmp_path / "a.h5", mem="MEMMAP")


def test_a_lattice_that_is_no_group(tmp_path):
    """What stands in its place is not gone through row by row."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_group("MDHistoWorkspace/data")
        data["signal"], data["H"], data["K"] = np.ones((3, 4)), np.arange(5.0), np.arange(4.0)
        data["signal"].attrs["axes"] = "K:H"
        data["H"].attrs["long_name"], data["K"].attrs["long_name"] = "[H,0,0]", "[0,K,0]"
        sample = file.create_group("MDHistoWorkspace/experiment0/sample")
        sample.create_dataset("oriented_lattice", (2**40,), chunks=(64,), dtype="f8")
    with pytest.raises(DataError, match="has no unit cell"):
        DiffuseVolume.from_file(tmp_path / "a.h5")
