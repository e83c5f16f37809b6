"""Bragg vectors with uncertainties beside them, in memory and in files, ours and py4DSTEM's."""

from __future__ import annotations

import h5py
import numpy as np
import py4DSTEM
import pytest
from synthetic_lattices import bragg_vectors, deformation, disk_table, lattices

from crystaldl.errors import DataError, FileFormatError, PlausibilityWarning
from crystaldl.stem.bragg import points_of, read_bragg, save_bragg, table_of, to_bragg_vectors
from crystaldl.stem.strain.fit import fit_strain


@pytest.fixture
def model():
    return lattices(deformation(), (4, 5), noise=0.05, missing=0.4, false=0.1)


def same(a, b):
    names = ("offsets", "positions", "sigma", "intensity", "confidence", "fitted", "searched")
    return all(np.array_equal(getattr(a, n), getattr(b, n), equal_nan=n != "searched") for n in names)


def test_vectors_are_py4dstems(model):
    table = disk_table(model)
    bragg = to_bragg_vectors(table)
    assert type(bragg) is py4DSTEM.BraggVectors
    v = bragg.raw[2, 3]
    rows = table.rows(2, 3)
    assert np.array_equal(np.stack([v.qx, v.qy], 1), table.positions[rows])
    assert np.array_equal(v.I, table.intensity[rows])
    assert bragg.histogram(mode="raw").data.sum() == pytest.approx(table.intensity.sum())
    assert table_of(bragg) is table
    assert repr(table).startswith(f"<DiskTable {len(table):,} disks in 4 × 5 patterns; synthetic")


def test_tables_are_sorted_and_read_only(model):
    table = disk_table(model)
    assert np.array_equal(table.counts.ravel(), np.diff(model.offsets))
    assert np.array_equal(np.bincount(table.pattern, minlength=20), table.counts.ravel())
    with pytest.raises(ValueError, match="read-only"):
        table.positions[0] = 0
    with pytest.raises(TypeError):
        table.provenance["method"] = "other"
    with pytest.raises(DataError, match=r"position \(4, 0\) lies outside the scan of 4 × 5"):
        table.rows(4, 0)
    keep = table.confidence > 0.5
    assert len(table.where(keep)) == keep.sum() and table.where(keep).rows(1, 1).stop <= table.rows(1, 1).stop


def test_points_of_one_pattern(model):
    table = disk_table(model)
    points = points_of(table, 1, 2)
    assert type(points).__name__ == "QPoints"
    rows = table.rows(1, 2)
    assert np.array_equal(points.qx, table.positions[rows, 0])
    assert np.array_equal(points.sigma, table.sigma[rows]) and np.array_equal(points.confidence, table.confidence[rows])


def test_file_round_trip(model, tmp_path, capsys):
    bragg = bragg_vectors(model)
    bragg.calibration.set_Q_pixel_size(0.02)
    bragg.calibration.set_Q_pixel_units("A^-1")
    save_bragg(tmp_path / "b.h5", bragg)
    again = read_bragg(tmp_path / "b.h5")
    assert same(table_of(bragg), table_of(again)) and table_of(again).provenance["method"] == "synthetic"
    assert again.calibration.get_Q_pixel_size() == 0.02
    output = capsys.readouterr()
    assert output.out == output.err == ""


def test_plain_py4dstem_opens_ours_and_keeps_the_uncertainties(model, tmp_path):
    bragg = bragg_vectors(model)
    save_bragg(tmp_path / "ours.h5", bragg)
    plain = py4DSTEM.read(str(tmp_path / "ours.h5"))
    assert type(plain) is py4DSTEM.BraggVectors
    py4DSTEM.save(str(tmp_path / "theirs.h5"), plain)
    assert same(table_of(bragg), table_of(read_bragg(tmp_path / "theirs.h5")))


def test_py4dstems_own_vectors(model, tmp_path):
    own = bragg_vectors(model).copy()  # py4DSTEM's copy knows nothing of the uncertainties
    py4DSTEM.save(str(tmp_path / "own.h5"), own)
    table = table_of(read_bragg(tmp_path / "own.h5"))
    assert np.isnan(table.sigma).all() and np.isnan(table.confidence).all() and table.searched.all()
    assert np.array_equal(table.positions, disk_table(model).positions)
    assert fit_strain(own).data[4].mean() > 0.9


def test_empty_patterns_survive_files(tmp_path):
    model = lattices(deformation(), (3, 4), noise=0.05, missing=0.98)
    table = disk_table(model)
    assert (table.counts == 0).any()
    save_bragg(tmp_path / "few.h5", to_bragg_vectors(table))
    assert same(table, table_of(read_bragg(tmp_path / "few.h5")))
    none = table.where(np.zeros(len(table), dtype=bool))
    save_bragg(tmp_path / "none.h5", to_bragg_vectors(none))
    assert len(table_of(read_bragg(tmp_path / "none.h5"))) == 0


def test_changed_vectors_lose_their_uncertainties_aloud(model):
    bragg = bragg_vectors(model)
    bragg._v_uncal[0, 0].data = bragg._v_uncal[0, 0].data[1:]
    with pytest.warns(PlausibilityWarning, match="changed after they were found"):
        assert np.isnan(table_of(bragg).sigma).all()


def test_a_strain_map_in_the_tree_does_not_spoil_the_file(model, tmp_path):
    bragg = bragg_vectors(model)
    strain = fit_strain(bragg)
    save_bragg(tmp_path / "b.h5", strain.braggvectors)  # its tree holds the map, which py4DSTEM cannot read back
    assert read_bragg(tmp_path / "b.h5").calibration.get_origin() is not None


def test_an_interrupted_write_leaves_the_old_file(model, tmp_path, monkeypatch):
    import emdfile

    path = tmp_path / "b.h5"
    save_bragg(path, bragg_vectors(model))
    before = path.read_bytes()

    def stop(target, *_, **__):
        with open(target, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(emdfile, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        save_bragg(path, bragg_vectors(model))
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["b.h5"]


def test_bad_files(tmp_path, model):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_bragg(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("no hdf5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["a"] = np.zeros(3)
    for name in ("text.h5", "other.h5"):
        with pytest.raises(FileFormatError, match=f"{name} cannot be read as a py4DSTEM file"):
            read_bragg(tmp_path / name)
    py4DSTEM.save(str(tmp_path / "cube.h5"), py4DSTEM.DataCube(np.zeros((2, 2, 16, 16))))
    with pytest.raises(FileFormatError, match="holds no Bragg vectors"):
        read_bragg(tmp_path / "cube.h5")
    with pytest.raises(FileNotFoundError, match="the folder"):
        save_bragg(tmp_path / "no" / "b.h5", bragg_vectors(model))
    with pytest.raises(TypeError, match="expected py4DSTEM.BraggVectors"):
        table_of(np.zeros(3))
