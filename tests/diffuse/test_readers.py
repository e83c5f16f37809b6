"""Readers on real files, on small files written to the published layouts, and on everything that is neither; writers."""

from __future__ import annotations

import re

import emdfile
import h5py
import numpy as np
import pytest

from crystaldl.diffuse import writers
from crystaldl.diffuse.readers.read import from_emd
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.diffuse.writers import to_emd
from crystaldl.errors import CrystaldlError, DataError, FileFormatError

CELL = (5.0, 6.0, 7.0, 80.0, 95.0, 110.0)
H, K, L = np.linspace(-2, 2, 5), np.linspace(-1.5, 1.5, 7), np.linspace(0, 3, 4)
DATA = np.random.default_rng(0).normal(5, 2, (5, 7, 4))
DATA[1, 2, 3] = np.nan
read = DiffuseVolume.from_file


def assert_is_ours(volume, lattice=CELL):
    assert volume.shape == (5, 7, 4)
    for axis, ours in zip(volume.axes, (H, K, L), strict=True):
        assert axis == pytest.approx(ours, abs=1e-6)
    assert np.array_equal(volume.basis, np.eye(3))
    assert volume.data == pytest.approx(DATA, nan_ok=True, rel=1e-6)
    assert np.array_equal(volume.mask, np.isfinite(DATA))
    assert volume.lattice == pytest.approx(lattice)


# -- real files ----------------------------------------------------------------------------------------------------


@pytest.fixture
def samples(shared_data):
    return shared_data / "diffuse"


def test_meerkat_volume(samples):
    v = read(samples / "real" / "meerkat2_visual-test.h5")
    with h5py.File(samples / "real" / "meerkat2_visual-test.h5") as file:
        raw = file["data"][()]
    assert np.array_equal(v.data, raw.astype(float), equal_nan=True)
    assert v.axes[0][[0, 50, 100]] == pytest.approx([-4, 0, 4], abs=1e-14), "float32 steps become what was meant"
    assert v.lattice == (5.6802, 5.6832, 5.6843, 60.021, 59.989, 59.934)
    assert v.mask.mean() == pytest.approx(0.7049, abs=1e-4)
    assert (v.radiation, v.name) == ("xray", "meerkat2_visual-test")


def test_mantid_plane(samples):
    v = read(samples / "real" / "javelin_ZrO2.nxs")
    with h5py.File(samples / "real" / "javelin_ZrO2.nxs") as file:
        raw, edges = file["MDHistoWorkspace/data/signal"][()], file["MDHistoWorkspace/data/Q1"][()]
    assert v.shape == (200, 200)
    assert np.array_equal(v.basis, [[1, 0, 0], [0, 0, 1]])
    assert np.array_equal(v.data, raw.T), "stored last dimension first"
    assert v.axes[0] == pytest.approx((edges[1:] + edges[:-1]) / 2, abs=1e-6)
    assert v.lattice == pytest.approx((5.1502,) * 3 + (90,) * 3, abs=1e-3)
    assert v.radiation == "neutron"
    # Bragg's law on one pixel, by hand: h = -1.0125, l = 4.025
    i, j = np.argmin(np.abs(v.axes[0] + 1)), np.argmin(np.abs(v.axes[1] - 4))
    assert v.q()[i, j] == pytest.approx(2 * np.pi / 5.1502 * np.hypot(v.axes[0][i], v.axes[1][j]), rel=1e-4)


def test_mantid_volume_without_lattice(samples):
    path = samples / "formats" / "mantid_MDHisto_random_13x7x26.nxs"
    with pytest.raises(DataError, match="has no unit cell; pass lattice="):
        read(path)
    v = read(path, lattice=CELL)
    assert v.shape == (13, 7, 26)
    assert [tuple(np.round(a[[0, -1]], 2)) for a in v.axes] == [(-4.0, 2.0), (-2.0, 4.0), (-3.0, 3.0)]
    with h5py.File(path) as file:
        assert v.data[3, 2, 1] == file["MDHistoWorkspace/data/signal"][1, 2, 3]
        assert v.sigma[3, 2, 1] == pytest.approx(np.sqrt(file["MDHistoWorkspace/data/errors_squared"][1, 2, 3]))


def test_other_formats(samples):
    v = read(samples / "formats" / "yell_format_synthetic_10x11x12.h5")
    assert v.shape == (10, 11, 12)
    assert [a[-1] for a in v.axes] == pytest.approx([1, 2, 3], abs=1e-6)
    flat = read(samples / "formats" / "nexpy_NXdata_2d_sym_hkli.nxs", lattice=CELL)
    assert flat.shape == (100, 150)
    assert np.array_equal(flat.basis, [[1, 0, 0], [0, 1, 0]])
    with pytest.raises(FileFormatError, match="is a link to '15/transform.nxs', which is not there"):
        read(samples / "formats" / "nxrefine_style_hexagonal_15.nxs", lattice=CELL)
    plane = read(samples / "dsfu_net" / "test0.npy", missing=-1)
    assert plane.lattice is None
    assert plane.shape == (256, 256)
    assert 0 < plane.mask.mean() < 1


# -- written to the layouts ----------------------------------------------------------------------------------------


def test_yell_layouts(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"] = "Yell 1.0"
        file["data"], file["lower_limits"], file["unit_cell"] = DATA, [H[0], K[0], L[0]], CELL
        file["step_sizes"], file["is_direct"] = [1.0, 0.5, 1.0], True
    assert_is_ours(read(path))
    with h5py.File(path, "a") as file:  # a single layer is a plane
        del file["data"]
        file["data"] = DATA[:, 3:4]
        file["lower_limits"][1] = 0.25
    flat = read(path)
    assert flat.shape == (5, 4)
    assert flat.origin == pytest.approx([0, 0.25, 0])
    assert np.array_equal(flat.basis, [[1, 0, 0], [0, 0, 1]])


def test_discus_placeholder_cell_and_oblique_section(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file["PROGRAM"], file["format"] = np.bytes_("DISCUS60"), np.bytes_("Yell 1.0")
        file["data"], file["lower_limits"], file["unit_cell"] = DATA[:, :, :1], [-1.0, -1.0, 0.5], [1, 1, 1, 90, 90, 90.0]
        file["step_sizes"], file["is_direct"] = [0.25, 0.25, 0.0], 256
    with pytest.raises(DataError, match="only a placeholder"):
        read(path)
    assert read(path, lattice=CELL).origin == pytest.approx([0, 0, 0.5])
    with h5py.File(path, "a") as file:
        file["step_sizes_abs"], file["step_sizes_ord"], file["step_sizes_top"] = [0.25, 0.25, 0], [0, 0, 0.5], [0.0, 0, 0]
    oblique = read(path, lattice=CELL)
    assert oblique.hkl()[0, 0] == pytest.approx([-1, -1, 0.5])
    assert oblique.hkl()[3, 2] == pytest.approx([-0.25, -0.25, 1.5])


@pytest.mark.parametrize("limits", [True, False])
def test_first_meerkat(tmp_path, limits):
    """Sums and counts; a voxel that no pixel met was not measured."""
    path = tmp_path / "a.h5"
    counts = np.random.default_rng(1).integers(1, 5, DATA.shape)
    counts[1, 2, 3] = 0
    with h5py.File(path, "w") as file:
        file["rebinned_data"], file["number_of_pixels_rebinned"] = np.nan_to_num(DATA * counts), counts
        file["unit_cell"], file["is_direct"], file["space_group_nr"] = CELL, False, 1
        if limits:
            file["lower_limits"], file["step_sizes"] = [H[0], K[0], L[0]], [1.0, 0.5, 1.0]
        else:
            file["maxind"], file["number_of_pixels"] = [2, 1.5, 3.0], DATA.shape
    v = read(path)
    if limits:
        assert_is_ours(v)
    assert v.axes[1] == pytest.approx(K)
    assert v.axes[2][-1] == pytest.approx(3)
    assert not v.mask[1, 2, 3]


@pytest.mark.parametrize("order", ["hkl", "lkh", "unlabelled"])
def test_disorder_scattering(tmp_path, order):
    path = tmp_path / "a.nx5"
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["default"] = "Disorder scattering 1.0", "scattering"
        entry = file.create_group("scattering")
        entry.attrs["NX_class"], entry.attrs["default"] = "NXentry", "data"
        group = entry.create_group("data")
        group.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": ["h", "k", "l"]})
        group.attrs.update({"radiation": "neutrons", "space": "reciprocal"})
        group["h"], group["k"], group["l"], group["unit_cell"] = H, K, L, CELL
        group["data"] = DATA if order == "hkl" else DATA.transpose()
        if order != "unlabelled":
            for i, axis in enumerate(order):
                group.attrs[f"{axis}_indices"] = i
    v = read(path)
    assert_is_ours(v)
    assert v.radiation == "neutron"
    with h5py.File(path, "a") as file:
        file["scattering/data"].attrs["space"] = "direct"
    with pytest.raises(FileFormatError, match="direct space"):
        read(path)


def test_nxrefine(tmp_path):
    """Order l, k, h, the data in another file, the cell in the sample, weights."""
    (tmp_path / "15").mkdir()
    weights = np.random.default_rng(1).integers(1, 9, DATA.shape).astype(float)
    weights[1, 2, 3] = 0
    with h5py.File(tmp_path / "15" / "transform.nxs", "w") as file:
        file["entry/data/v"] = np.nan_to_num(DATA * weights).transpose()
        file["entry/data/n"] = weights.transpose()
    path = tmp_path / "main.nxs"
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        entry.attrs["NX_class"] = "NXentry"
        sample = entry.create_group("sample")
        sample.attrs["NX_class"] = "NXsample"
        for key, value in zip(("a", "b", "c", "alpha", "beta", "gamma"), CELL, strict=True):
            sample[f"unitcell_{key}"] = value
        group = entry.create_group("transform")
        group.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": ["Ql", "Qk", "Qh"]})
        group["Qh"], group["Qk"], group["Ql"], group["title"] = H, K, L, "15.000K Transform"
        group["data"] = h5py.ExternalLink("15/transform.nxs", "/entry/data/v")
        group["data_weights"] = h5py.ExternalLink("15/transform.nxs", "/entry/data/n")
    v = read(path)
    assert_is_ours(v)
    assert v.name == "15.000K Transform"
    assert read(path, dataset="entry/transform").shape == v.shape
    with pytest.raises(DataError, match="dataset is 'nowhere'"):
        read(path, dataset="nowhere")


def mantid(path, labels, frame="HKL", cell=True, w_matrix=None, single=False):
    """A MDHistoWorkspace of DATA on bins around H, K, L; the file's order is last dimension first."""
    edges = [np.append(a - (a[1] - a[0]) / 2, a[-1] + (a[1] - a[0]) / 2) for a in (H, K, L)]
    with h5py.File(path, "w") as file:
        group = file.create_group("MDHistoWorkspace/data")
        signal = np.nan_to_num(DATA, nan=99.0).transpose()
        group["signal"] = signal[None] if single else signal
        group["errors_squared"] = np.full(group["signal"].shape, 4.0)
        group["mask"] = np.isnan(DATA.transpose()).astype(np.int8).reshape(group["signal"].shape)
        for i, (edge, label) in enumerate(zip(edges, labels, strict=True)):
            group[f"D{i}"] = edge
            group[f"D{i}"].attrs.update({"long_name": label, "frame": frame})
        group["signal"].attrs["axes"] = "D2:D1:D0"
        if single:
            group["D3"] = [-1.0, 1.0]
            group["D3"].attrs.update({"long_name": "DeltaE", "frame": "General Frame"})
            group["signal"].attrs["axes"] = "D3:D2:D1:D0"
        if cell:
            lattice = file.create_group("MDHistoWorkspace/experiment0/sample/oriented_lattice")
            from crystaldl.physics.lattice import cell_matrix

            lattice["orientation_matrix"] = np.linalg.inv(cell_matrix(CELL))
        if w_matrix is not None:
            file["MDHistoWorkspace/experiment0/logs/W_MATRIX/value"] = np.ravel(w_matrix)


def test_mantid_layouts(tmp_path):
    path = tmp_path / "a.nxs"
    mantid(path, ["[H,0,0]", "[0,K,0]", "[0,0,L]"], single=True)
    v = read(path)
    assert_is_ours(v)
    assert v.sigma[v.mask] == pytest.approx(2.0)
    mantid(path, ["[H,H,0]", "[H,-H,0]", "[0,0,0.5L]"])
    v = read(path)
    assert v.basis.tolist() == [[1, 1, 0], [1, -1, 0], [0, 0, 0.5]]
    assert v.data == pytest.approx(DATA, nan_ok=True)
    third = np.array([[1, 1 / 3, 0], [1, -1 / 3, 0], [0, 0, 1.0]])  # columns are projections
    mantid(path, ["[H,H,0]", "[0.333H,-0.333H,0]", "[0,0,L]"], w_matrix=third)
    assert read(path).basis[1] == pytest.approx([1 / 3, -1 / 3, 0], abs=1e-12)
    mantid(path, ["[0,0,L]", "[0,K,0]", "[H,0,0]"])
    assert read(path).data == pytest.approx(DATA.transpose(), nan_ok=True), "sorted as h, k, l"
    mantid(path, ["Q_sample_x", "Q_sample_y", "Q_sample_z"], frame="QSample")
    v = read(path)
    q = v.basis @ v.reciprocal_basis()
    assert q @ q.T == pytest.approx(np.eye(3)), "Cartesian axes in 1/Å"
    mantid(path, ["[H,0,0]", "[0,K,0]", "DeltaE"])
    with pytest.raises(FileFormatError, match="'DeltaE' is no direction in h, k and l"):
        read(path)
    mantid(path, ["H", "K", "L"], cell=False)
    assert_is_ours(read(path, lattice=CELL))


def test_npy(tmp_path):
    np.save(tmp_path / "v.npy", DATA)
    np.save(tmp_path / "p.npy", DATA[:, :, 0])
    assert_is_ours(read(tmp_path / "v.npy", lattice=CELL, axes=(H, K, L)))
    flat = read(tmp_path / "p.npy", lattice=CELL, axes=(H, K, 0.5), radiation="electron", name="x")
    assert (flat.radiation, flat.name) == ("electron", "x")
    assert read(tmp_path / "p.npy").lattice is None
    whole = read(tmp_path / "p.npy", missing=DATA[2, 2, 0])
    assert not whole.mask[2, 2]
    for kwargs, message in [
        ({"lattice": CELL}, "lattice is given for v.npy without axes"),
        ({"axes": (H, K, L)}, "axes is given for v.npy without lattice"),
        ({}, "is 3-D and a .npy file has no axes"),
        ({"axes": 3, "lattice": CELL}, "axes is no sequence of three"),
        ({"axes": (K, H, L), "lattice": CELL}, "expected data of the shape"),
    ]:
        with pytest.raises(DataError, match=message):
            read(tmp_path / "v.npy", **kwargs)


# -- bad files -----------------------------------------------------------------------------------------------------


def yell(path, **changes):
    values = {"data": DATA, "lower_limits": [H[0], K[0], L[0]], "step_sizes": [1.0, 0.5, 1.0], "unit_cell": CELL, **changes}
    with h5py.File(path, "w") as file:
        for key, value in values.items():
            if value is not None:
                file[key] = value
    return path


def truncated(path, share):
    content = yell(path, data=np.random.default_rng(0).normal(size=(40, 40, 40)), step_sizes=[0.1, 0.1, 0.1]).read_bytes()
    path.write_bytes(content[: int(share * len(content))])


def other_hdf5(path):
    with h5py.File(path, "w") as file:
        file["something"] = [1, 2, 3]


def nameless(path):
    with h5py.File(path, "w") as file:
        group = file.create_group("entry")
        group.attrs.update({"NX_class": "NXdata", "signal": "data", "axes": ["x", "y", "z"]})
        group["data"], group["x"], group["y"], group["z"], group["unit_cell"] = DATA, H, K, L, CELL


def foreign_emd(path):
    emdfile.save(path, emdfile.Array(np.zeros((3, 3)), name="image"))


BAD_FILES = {
    "empty": (lambda p: p.write_bytes(b""), FileFormatError, "the file is empty"),
    "text": (lambda p: p.write_text("h k l intensity"), FileFormatError, "neither HDF5 nor .npy"),
    "png": (lambda p: p.write_bytes(b"\x89PNG\r\n\x1a\n"), FileFormatError, "looks like a PNG image"),
    "header only": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n"), FileFormatError, "truncated"),
    "truncated 10 %": (lambda p: truncated(p, 0.1), FileFormatError, "truncated"),
    "truncated 99 %": (lambda p: truncated(p, 0.99), FileFormatError, "truncated"),
    "damaged npy": (lambda p: p.write_bytes(b"\x93NUMPY\x01\x00v\x00{'descr'"), FileFormatError, "damaged or holds objects"),
    "objects": (lambda p: np.save(p.open("wb"), np.array([{}]), allow_pickle=True), FileFormatError, "holds objects"),
    "other layout": (other_hdf5, FileFormatError, "layout that is not known .it holds something"),
    "other EMD": (foreign_emd, FileFormatError, "holds no diffuse volume"),
    "nameless axes": (nameless, FileFormatError, "do not say which is h, k and l"),
    "complex": (lambda p: yell(p, data=DATA + 1j), FileFormatError, "is complex; expected real intensities"),
    "text data": (lambda p: yell(p, data=np.full((2, 2, 2), b"x")), FileFormatError, "is not numeric"),
    "1-D": (lambda p: yell(p, data=np.ones(9)), FileFormatError, "expected a plane or a volume"),
    "all NaN": (lambda p: yell(p, data=np.full((5, 7, 4), np.nan)), FileFormatError, "NaN everywhere"),
    "falling axis": (lambda p: yell(p, step_sizes=[-1.0, 0.5, 1.0]), FileFormatError, "not increasing"),
    "bad cell": (lambda p: yell(p, unit_cell=[0, 5, 5, 90, 90, 90.0]), FileFormatError, "positive lengths"),
    "no cell": (lambda p: yell(p, unit_cell=None), DataError, "has no unit cell; pass lattice="),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path, case):
    write, error, message = BAD_FILES[case]
    path = tmp_path / "file.h5"
    write(path)
    with pytest.raises(error, match=message) as caught:
        read(path)
    assert isinstance(caught.value, CrystaldlError)
    assert "file.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_paths_and_arguments(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist; expected a diffuse-scattering volume"):
        read(tmp_path / "none.h5")
    with pytest.raises(FileFormatError, match="this is a folder"):
        read(tmp_path)
    path = yell(tmp_path / "a.h5")
    for kwargs, message in [
        ({"lattice": (1, 2)}, "lattice has the shape"),
        ({"radiation": "light"}, "radiation is 'light'"),
        ({"missing": "zero"}, "missing is 'zero'"),
        ({"axes": (H, K, L)}, "has its own"),
    ]:
        with pytest.raises(DataError, match=message):
            read(path, **kwargs)
    assert read(path, lattice=(9, 9, 9, 90, 90, 90)).lattice[0] == 9, "the argument wins"


# -- writers -------------------------------------------------------------------------------------------------------


def examples():
    rng = np.random.default_rng(3)
    whole = DiffuseVolume(DATA, H, K, L, CELL, sigma=np.abs(DATA) + 0.1, radiation="neutron", name="whole – ü")
    whole = whole.punch_bragg(0.2)
    oblique = whole.plane("hhl")
    pixels = DiffuseVolume.from_pixels(rng.normal(size=(6, 5)), centre=(1.3, 2), mask=rng.random((6, 5)) > 0.3)
    return {"volume": whole, "plane": whole.plane("hk0"), "oblique": oblique, "pixels": pixels}


def assert_same(a, b, history=True):
    assert (a.lattice, a.radiation, a.name) == (b.lattice, b.radiation, b.name)
    assert not history or a.history == b.history
    pairs = [(getattr(a, key), getattr(b, key)) for key in ("data", "mask", "basis", "origin")]
    for one, two in [*pairs, *zip(a.axes, b.axes, strict=True)]:
        assert np.array_equal(one, two, equal_nan=one.dtype.kind == "f")
    assert (a.sigma is None) == (b.sigma is None)
    assert a.sigma is None or np.array_equal(a.sigma, b.sigma, equal_nan=True)


@pytest.mark.parametrize("name", ["volume", "plane", "oblique", "pixels"])
def test_emd_keeps_everything(tmp_path, name):
    volume = examples()[name]
    path = volume.save(tmp_path / "a.h5")
    assert_same(read(path), volume)
    # plain emdfile opens it
    node = emdfile.read(path)
    assert isinstance(node, emdfile.Array)
    assert np.array_equal(node.data, volume.data, equal_nan=True)
    assert node.dims[0] == pytest.approx(volume.axes[0])
    assert node.dim_units[0] == ("pixels" if name == "pixels" else "r.l.u.")
    assert_same(from_emd(node), volume)


def test_emd_trees(tmp_path):
    """Several volumes under one root, as results keep them."""
    root = emdfile.Root(name="result")
    for name, volume in examples().items():
        to_emd(volume, name=name, parent=root)
    path = tmp_path / "a.h5"
    emdfile.save(path, root)
    with pytest.raises(DataError, match="holds 4 diffuse volumes; pass dataset, one of result/"):
        read(path)
    assert_same(read(path, dataset="result/oblique"), examples()["oblique"])
    with pytest.raises(FileFormatError, match="no metadata 'diffuse_volume'"):
        from_emd(emdfile.Array(np.zeros((3, 3))))


@pytest.mark.parametrize("name", ["volume", "plane", "oblique"])
def test_nxdata_round_trip(tmp_path, name):
    volume = examples()[name]
    assert_same(read(volume.save(tmp_path / "a.nxs")), volume)


@pytest.mark.parametrize("name", ["volume", "plane"])
def test_yell_round_trip(tmp_path, name):
    volume = examples()[name]
    again = read(volume.to_file(tmp_path / "a.h5", format="yell"))
    for one, two in zip(again.axes, volume.axes, strict=True):
        assert one == pytest.approx(two, abs=1e-12)
    assert np.array_equal(again.data, volume.data, equal_nan=True)
    assert again.origin == pytest.approx(volume.origin)
    assert (again.lattice, again.radiation, again.name) == (volume.lattice, volume.radiation, volume.name)
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["data"].ndim == 3
        assert bytes(file["format"][()]) == b"Yell 1.0"


def test_writers_refuse(tmp_path):
    some = examples()
    for call, message in [
        (lambda: some["oblique"].save(tmp_path / "a.h5", format="yell"), "axes are not h, k and l"),
        (lambda: some["pixels"].save(tmp_path / "a.h5", format="yell"), "Yell files need one"),
        (lambda: some["pixels"].save(tmp_path / "a.nxs"), "NXdata files need one"),
        (lambda: some["plane"].save(tmp_path / "a.txt"), "path ends in '.txt'"),
        (lambda: some["plane"].save(tmp_path / "a.h5", format="cif"), "format is 'cif'"),
    ]:
        with pytest.raises(DataError, match=message):
            call()
    with pytest.raises(FileNotFoundError, match="the folder .* does not exist"):
        some["plane"].save(tmp_path / "none" / "a.h5")
    assert list(tmp_path.iterdir()) == [], "no leavings"


@pytest.mark.parametrize(("format", "ending"), [("emd", ".h5"), ("yell", ".h5"), ("nxdata", ".nxs")])
def test_interrupted_write_leaves_the_old_file_whole(tmp_path, monkeypatch, format, ending):
    plane = examples()["plane"]
    path = plane.save(tmp_path / f"a{ending}", format=format)
    before = path.read_bytes()

    def interrupted(volume, target):
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(writers, f"_write_{format}", interrupted)
    with pytest.raises(KeyboardInterrupt):
        plane.save(path, format=format)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_errors_name_the_file_once(tmp_path):
    with pytest.raises(FileFormatError) as caught:
        read(yell(tmp_path / "file.h5", step_sizes=[-1.0, 0.5, 1.0]))
    assert len(re.findall(r"file\.h5", str(caught.value))) == 1
