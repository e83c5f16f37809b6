"""`DataCube` is py4DSTEM's in every respect; files both ways; what cannot be one."""

from __future__ import annotations

import subprocess
import sys

import dask.array as da
import h5py
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import py4DSTEM
import pytest
from synthetic_lattices import deformation, disk, lattices, patterns

import crystaldl.stem.datacube as module
from crystaldl.errors import DataError, DeviceError, FileFormatError, UnknownModelError
from crystaldl.stem.bragg import table_of
from crystaldl.stem.datacube import DataCube
from crystaldl.stem.options import DiskOptions
from crystaldl.stem.strain.fit import fit_strain

BASIS = np.array([[15.0, 1.0], [2.0, 16.0]])


@pytest.fixture(scope="module")
def model():
    f = deformation(np.linspace(-0.01, 0.01, 6).repeat(2).reshape(2, 6).ravel())
    return lattices(f, (3, 4), basis=BASIS, descan=1.0, radius=2.4, origin=(47.2, 48.9))


@pytest.fixture(scope="module")
def counts(model):
    return patterns(model)


@pytest.fixture
def cube(counts):
    return DataCube(counts)


@pytest.fixture(autouse=True)
def no_windows():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def nearest(found, truth):
    return np.sqrt(((found[:, None] - truth[None]) ** 2).sum(2)).min(1)


# -- the class -----------------------------------------------------------------------------------------------------


def test_it_is_a_py4dstem_datacube(cube, counts):
    assert isinstance(cube, py4DSTEM.DataCube) and type(cube).__name__ == "DataCube"
    assert not hasattr(module, "_emd_hook")
    assert np.allclose(cube.get_dp_mean().data, counts.mean((0, 1)))
    cube.get_virtual_image(mode="circle", geometry=((48, 48), 5), name="bright field")
    assert cube.tree("bright field").data.shape == (3, 4)
    assert DataCube.find_Bragg_disks is py4DSTEM.DataCube.find_Bragg_disks
    assert type(cube.copy()) is DataCube and np.array_equal(cube.copy().data, cube.data)
    cube.crop_R((0, 2, 0, 3))
    assert type(cube) is DataCube and cube.Rshape == (2, 3)


def test_its_own_disk_detection_still_works(cube):
    probe = py4DSTEM.Probe(disk())
    probe.get_kernel(mode="flat", origin=(48, 48))
    found = cube.find_Bragg_disks(
        template=probe.kernel, data=(1, 1), minPeakSpacing=8, edgeBoundary=5, minRelativeIntensity=0.05
    )
    assert len(found.qx) > 5


def test_files_open_in_plain_py4dstem_and_the_reverse(cube, tmp_path):
    cube.calibration.set_R_pixel_size(2.5)
    cube.calibration.set_R_pixel_units("nm")
    cube.save(tmp_path / "ours.h5")
    plain = py4DSTEM.read(str(tmp_path / "ours.h5"))
    assert type(plain) is py4DSTEM.DataCube and np.array_equal(plain.data, cube.data)
    assert plain.calibration.get_R_pixel_size() == 2.5
    py4DSTEM.save(str(tmp_path / "theirs.h5"), plain)
    again = DataCube.from_file(tmp_path / "theirs.h5")
    assert type(again) is DataCube and np.array_equal(again.data, cube.data)
    assert again.calibration.get_R_pixel_units() == "nm"
    # reading through py4DSTEM still gives its own class
    assert type(py4DSTEM.read(str(tmp_path / "theirs.h5"))) is py4DSTEM.DataCube


def test_the_tree_travels_with_the_file(cube, tmp_path):
    cube.get_dp_mean()
    cube.save(tmp_path / "a.h5")
    again = DataCube.from_file(tmp_path / "a.h5")
    assert np.allclose(again.tree("dp_mean").data, cube.tree("dp_mean").data)


def test_upgrade(counts):
    plain = py4DSTEM.DataCube(counts)
    plain.get_dp_mean()
    cube = DataCube.upgrade(plain)
    assert cube is plain and type(cube) is DataCube and cube.tree("dp_mean") is not None
    with pytest.raises(TypeError, match="expected a py4DSTEM.DataCube"):
        DataCube.upgrade(counts)


def test_light_modules_do_without_py4dstem():
    names = ("bragg", "scan", "plot", "readers", "checks", "journal")
    names += tuple(f"strain.{room}" for room in ("fit", "lattice", "deformation", "basis"))
    code = f"import sys, importlib\nfor n in {names!r}: importlib.import_module('crystaldl.stem.' + n)\n"
    code += "print([m for m in ('py4DSTEM', 'emdfile', 'matplotlib.pyplot', 'dask') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


# -- reading -------------------------------------------------------------------------------------------------------


def write(path, counts):
    if path.suffix == ".npy":
        np.save(path, counts)
    elif path.suffix == ".npz":
        np.savez(path, scan=counts, name=np.zeros(3))
    elif path.suffix == ".bin":
        path.write_bytes(b"0123456789" + counts.tobytes())
    else:
        with h5py.File(path, "w") as file:
            file["some/where/data"] = counts
            file["some/sum"] = counts.sum((2, 3))
    return path


@pytest.mark.parametrize("mem", ["RAM", "MEMMAP"])
@pytest.mark.parametrize("name", ["a.npy", "a.npz", "a.h5", "a.bin", "a.emd"])
def test_from_file(name, mem, counts, tmp_path):
    path = tmp_path / name
    if name == "a.emd":
        DataCube(counts).save(path)
    else:
        write(path, counts)
    raw = {"shape": counts.shape, "dtype": "uint16", "offset": 10} if name == "a.bin" else None
    cube = DataCube.from_file(path, mem=mem, raw=raw)
    assert type(cube) is DataCube and cube.shape == counts.shape
    assert np.array_equal(np.asarray(cube.data[1, 2]), counts[1, 2])
    in_memory = type(cube.data) is np.ndarray
    assert in_memory == (mem == "RAM" or name == "a.npz")


def test_other_shapes_get_scan_axes(counts, tmp_path):
    assert DataCube(counts[0]).shape == (1, 4, 96, 96)
    assert DataCube(counts[0, 0]).shape == (1, 1, 96, 96)
    assert DataCube(da.from_array(counts[0])).shape == (1, 4, 96, 96)
    with h5py.File(tmp_path / "five.h5", "w") as file:
        file["data"] = counts[:, :, None]
    for mem in ("RAM", "MEMMAP"):
        assert DataCube.from_file(tmp_path / "five.h5", mem=mem).shape == counts.shape


def test_choosing_a_dataset(counts, tmp_path):
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["a"], file["b"] = counts, counts + 1
    with pytest.raises(FileFormatError, match="pass dataset=NAME"):
        DataCube.from_file(tmp_path / "two.h5")
    assert np.array_equal(DataCube.from_file(tmp_path / "two.h5", dataset="b").data, counts + 1)
    with pytest.raises(FileFormatError, match="dataset is 'c' but two.h5 holds a, b"):
        DataCube.from_file(tmp_path / "two.h5", dataset="c")


def test_measured_files(shared_data):
    folder = shared_data / "stem"
    if not folder.is_dir():
        pytest.skip(f"no measured patterns at {folder}")
    dm3 = DataCube.from_file(next(folder.glob("*.dm3")))
    assert dm3.shape == (1, 1, 256, 256) and dm3.data.max() == 33056
    raw = DataCube.from_file(next(folder.glob("*.bin")), raw={"shape": (512, 512), "dtype": "<i4", "offset": 10})
    assert raw.shape == (1, 1, 512, 512) and (raw.data.min(), raw.data.max()) == (-7, 75588)
    fpd = DataCube.from_file(next(folder.glob("*fpd*.hdf5")), mem="MEMMAP")
    assert fpd.shape == (2, 2, 256, 256)
    found = dm3.find_bragg_disks("correlation", data=(0, 0))
    assert 15 < len(found.qx) < 60  # about thirty disks
    assert abs(np.stack([found.qx, found.qy], 1)[np.argmax(found.I)] - [101, 134]).max() < 40


def test_rosettasciio(shared_data):
    blo = next((shared_data / "stem").glob("*.blo"), None)
    if blo is None:
        pytest.skip("no blo file")
    try:
        import rsciio  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match="rosettasciio"):
            DataCube.from_file(blo)
        return
    cube = DataCube.from_file(blo)
    assert cube.shape == (3, 2, 144, 144)
    assert (cube.calibration.get_R_pixel_size(), cube.calibration.get_R_pixel_units()) == (12.8, "nm")


def make_bad(tmp_path):
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "text.dm3").write_text("hello")
    (tmp_path / "scan.xyz").write_text("hello")
    (tmp_path / "short.bin").write_bytes(b"0" * 100)
    np.save(tmp_path / "words.npy", np.array([["a", "b"]]))
    np.save(tmp_path / "small.npy", np.zeros((3, 3, 4, 4)))
    np.save(tmp_path / "line.npy", np.zeros(50))
    np.savez(tmp_path / "none.npz", a=np.zeros(3))
    py4DSTEM.save(str(tmp_path / "nocube.h5"), py4DSTEM.Array(np.zeros((4, 4)), name="x"))


@pytest.mark.parametrize(
    ("name", "options", "kind", "message"),
    [
        ("gone.h5", {}, FileNotFoundError, "does not exist"),
        (".", {}, FileFormatError, "is a folder"),
        ("empty.npy", {}, FileFormatError, "is empty"),
        ("text.npy", {}, FileFormatError, "cannot be read"),
        ("text.h5", {}, FileFormatError, "no HDF5 file"),
        ("text.dm3", {}, FileFormatError, "cannot be read"),
        ("scan.xyz", {}, (FileFormatError, ImportError), "xyz"),
        ("short.bin", {"raw": {"shape": (512, 512), "dtype": "i4"}}, FileFormatError, "has 100 bytes; expected 1048576"),
        ("words.npy", {}, DataError, "real numbers"),
        ("small.npy", {}, DataError, "at least 16 × 16"),
        ("line.npy", {}, DataError, "four dimensions"),
        ("none.npz", {}, FileFormatError, "no array of patterns"),
        ("nocube.h5", {}, FileFormatError, "without a DataCube"),
        ("line.npy", {"mem": "DISK"}, DataError, "mem is 'DISK'"),
    ],
)
def test_bad_files(name, options, kind, message, tmp_path):
    make_bad(tmp_path)
    with pytest.raises(kind, match=message) as caught:
        DataCube.from_file(tmp_path / name, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (np.zeros((0, 4, 32, 32)), "is empty"),
        (np.zeros((2, 2, 2, 32, 32)), "four dimensions"),
        (np.zeros((2, 2, 32, 32), dtype=complex), "real numbers"),
        (np.array([["a"]]), "real numbers"),
        ([[1, 2], [3]], "cannot be turned into an array|real numbers"),
        (np.zeros((2, 2, 8, 8)), "at least 16 × 16"),
    ],
)
def test_bad_data(data, message):
    with pytest.raises(DataError, match=message):
        DataCube(data)


# -- finding disks -------------------------------------------------------------------------------------------------


def test_disks_and_strain_of_a_scan(cube, model):
    cube.calibration.set_Q_pixel_size(0.01)
    cube.calibration.set_Q_pixel_units("A^-1")
    bragg = cube.find_bragg_disks("correlation", probe=disk(), progress=False)
    assert type(bragg) is py4DSTEM.BraggVectors and bragg.Rshape == (3, 4) and bragg.Qshape == (96, 96)
    assert bragg.calibration is not cube.calibration and bragg.calibration.get_Q_pixel_size() == 0.01
    table = table_of(bragg)
    for p in range(12):
        found = table.positions[table.offsets[p] : table.offsets[p + 1]]
        truth = model.q[model.offsets[p] : model.offsets[p + 1]]
        assert len(found) >= 0.9 * len(truth)
        assert np.median(nearest(found, truth)) < 0.1
    assert np.isfinite(table.sigma).all() and (table.sigma > 0).all()
    assert table.provenance["method"] == "correlation" and table.provenance["probe"]["radius"] == pytest.approx(4, abs=0.2)
    strain = fit_strain(bragg, reference=tuple(BASIS))
    truth = np.linalg.inv(np.linalg.inv(model.deformation)) - np.eye(2)
    error = strain.data[0].ravel() - truth[:, 0, 0]
    assert np.sqrt(np.mean(error**2)) < 2e-3
    assert list(cube._branch.keys()) == []  # nothing is put into the cube's tree unasked


def test_selected_patterns(cube):
    options = {"method": "correlation", "probe": disk(), "progress": False}
    whole = table_of(cube.find_bragg_disks(**options))
    one = cube.find_bragg_disks(**options, data=(1, 2))
    assert type(one).__name__ == "QPoints"
    rows = whole.rows(1, 2)
    assert np.allclose(np.stack([one.qx, one.qy], 1), whole.positions[rows], atol=5e-3)
    assert one.sigma.shape == (len(one.qx), 2) and one.confidence.shape == (len(one.qx),)
    several = cube.find_bragg_disks(**options, data=([2, 0], [3, 1]))
    assert [len(p.qx) for p in several] == [whole.counts[2, 3], whole.counts[0, 1]]
    mask = np.zeros((3, 4), dtype=bool)
    mask[0, 1] = mask[2, 3] = True
    masked = cube.find_bragg_disks(**options, data=mask)
    assert [len(p.qx) for p in masked] == [whole.counts[0, 1], whole.counts[2, 3]]


def test_probe_from_vacuum_or_central_disk(counts, caplog):
    vacuum = counts.copy()
    rng = np.random.default_rng(0)
    vacuum[0, :2] = rng.poisson(3 + 1200 * disk(centre=(47.2, 48.9)), (2, 96, 96))
    with caplog.at_level("INFO"):
        probe = DataCube(vacuum).vacuum_probe()
    assert "vacuum" in probe.source and "vacuum" in caplog.text
    assert probe.radius == pytest.approx(4.0, abs=0.25)
    assert np.abs(np.array(probe.centre) - (47.2, 48.9)).max() < 0.6
    assert probe.edge == pytest.approx(0.5, abs=0.15)
    central = DataCube(counts).vacuum_probe()
    assert "central disk" in central.source and central.radius == pytest.approx(4.0, abs=0.6)


def test_probe_may_be_py4dstems_or_an_array(cube):
    a = cube.find_bragg_disks("correlation", probe=py4DSTEM.Probe(disk()), data=(0, 0))
    b = cube.find_bragg_disks("correlation", probe=disk(), data=(0, 0))
    assert np.allclose(a.qx, b.qx, atol=1e-6)


def test_show_disks(cube):
    figure, ax = cube.show_disks(1, 1, method="correlation", probe=disk())
    circles = ax.collections[0]
    assert len(circles.get_offsets()) > 10 and "disks" in ax.get_title(loc="left")
    assert np.allclose(circles.get_widths() if hasattr(circles, "get_widths") else 8, 8, atol=0.5)
    figure.canvas.draw()
    bragg = cube.find_bragg_disks("correlation", probe=disk(), progress=False)
    _, other = cube.show_disks(1, 1, bragg, probe=disk())
    assert len(other.collections[0].get_offsets()) == len(circles.get_offsets())


BAD = {
    "method": ({"method": "cnn"}, ValueError, "method is 'cnn'"),
    "model": ({"method": "fcunet", "model": "powder-npcnn-v2"}, UnknownModelError, "."),
    "model with correlation": ({"model": "stem-x"}, ValueError, "needs no network"),
    "device": ({"device": "tpu"}, DeviceError, "device='tpu'"),
    "options": ({"options": {"degree": 1}}, TypeError, "expected DiskOptions"),
    "probe word": ({"probe": "vacuum"}, DataError, "expected 'auto'"),
    "probe shape": ({"probe": disk((64, 64))}, DataError, "64 × 64 px but the patterns have 96 × 96"),
    "probe flat": ({"probe": np.ones((96, 96))}, DataError, "probe is constant"),
    "probe nan": ({"probe": np.full((96, 96), np.nan)}, DataError, "no finite value"),
    "outside": ({"data": (3, 0)}, DataError, r"position \(3, 0\) outside the scan of 3 × 4"),
    "float position": ({"data": (0.5, 1)}, DataError, "whole numbers"),
    "lists": ({"data": ([0, 1], [0])}, DataError, "lists of 2 and 1"),
    "mask shape": ({"data": np.ones((2, 2), dtype=bool)}, DataError, "bool array of shape"),
    "mask empty": ({"data": np.zeros((3, 4), dtype=bool)}, DataError, "False everywhere"),
    "data word": ({"data": "all"}, DataError, "data is a str"),
    "out with one": ({"data": (0, 0), "out": "x.h5"}, DataError, "whole scan only"),
    "out folder": ({"out": "/no/such/folder/x.h5"}, FileNotFoundError, "does not exist"),
    "out name": ({"out": "result.txt"}, DataError, r"ending in .h5"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case, cube, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    change, kind, message = BAD[case]
    arguments = {"method": "correlation", "probe": disk(), "progress": False} | change
    with pytest.raises(kind, match=message) as caught:
        cube.find_bragg_disks(**arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_options_reach_the_search(cube):
    few = cube.find_bragg_disks("correlation", probe=disk(), data=(0, 0), options=DiskOptions(max_disks=3))
    assert len(few.qx) <= 3
