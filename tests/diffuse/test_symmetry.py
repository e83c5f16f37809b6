"""Laue classes against spglib, and averaging against brute force over gemmi's operations."""

from __future__ import annotations

from collections import defaultdict

import gemmi
import numpy as np
import pytest
import spglib

from crystaldl.diffuse.symmetry import LAUE_CLASSES, compatible, laue_operations, plane_operations
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import DataError, PlausibilityWarning

HEX, TET, CUB = (5, 5, 8, 90, 90, 120), (5, 5, 8, 90, 90, 90), (5, 5, 5, 90, 90, 90)
MONO, ORTHO = (5, 6, 7, 90, 103, 90), (5, 6, 7, 90, 90, 90)
# name: (order, point group, a lattice that has it, one that has not)
CLASSES = {
    "-1": (2, "-1", (5, 6, 7, 80, 95, 110), None),
    "2/m": (4, "2/m", MONO, (5, 6, 7, 90, 90, 103)),
    "112/m": (4, "2/m", (5, 6, 7, 90, 90, 103), MONO),
    "2/m11": (4, "2/m", (5, 6, 7, 103, 90, 90), MONO),
    "mmm": (8, "mmm", ORTHO, MONO),
    "4/m": (8, "4/m", TET, ORTHO),
    "4/mmm": (16, "4/mmm", TET, ORTHO),
    "-3": (6, "-3", HEX, TET),
    "-3m1": (12, "-3m", HEX, TET),
    "-31m": (12, "-3m", HEX, TET),
    "6/m": (12, "6/m", HEX, TET),
    "6/mmm": (24, "6/mmm", HEX, TET),
    "m-3": (24, "m-3", CUB, TET),
    "m-3m": (48, "m-3m", CUB, (5, 6, 6, 90, 90, 90)),
}


@pytest.mark.parametrize("laue", CLASSES)
def test_operations(laue):
    order, symbol, lattice, other = CLASSES[laue]
    ops = laue_operations(laue, lattice)
    assert len(ops) == order
    assert np.array_equal(ops[0], np.eye(3))
    assert spglib.get_pointgroup(ops)[0].strip() == symbol
    closed = {m.tobytes() for m in ops}
    assert all((a @ b).astype(ops.dtype).tobytes() in closed for a in ops for b in ops)
    assert (-ops[0]).tobytes() in closed
    # |Q| of any point is kept by the lattice's symmetry
    if other is not None:
        with pytest.raises(DataError, match="does not have to within"):
            laue_operations(laue, other)
    hkl = np.random.default_rng(0).normal(size=(5, 3))
    cell = np.array(gemmi.UnitCell(*lattice).frac.mat.tolist())
    moved = np.linalg.norm(np.einsum("ni,mij->mnj", hkl, ops) @ cell, axis=-1)
    assert moved == pytest.approx(np.tile(np.linalg.norm(hkl @ cell, axis=1), (order, 1)))


def test_the_two_settings_of_3bar_m_differ():
    """-3m1 makes hkl and khl̄ equivalent, -31m hkl and khl (International Tables A, hexagonal axes)."""
    hkl = np.array([3, 1, 2])
    for laue, yes, no in [("-3m1", (1, 3, -2), (1, 3, 2)), ("-31m", (1, 3, 2), (1, 3, -2))]:
        stars = {tuple(v) for v in (hkl @ laue_operations(laue)).tolist()}
        assert yes in stars
        assert no not in stars
    assert np.array_equal(laue_operations("-3m"), laue_operations("-3m1"))


@pytest.mark.parametrize(
    ("laue", "lattice", "order", "symbol"),
    [
        ("m-3m", (5.68, 5.68, 5.68, 60, 60, 60), 48, "m-3m"),
        ("m-3", (5.68, 5.68, 5.68, 60, 60, 60), 24, "m-3"),
        ("m-3m", (4, 4, 4, 109.4712, 109.4712, 109.4712), 48, "m-3m"),
        ("-3m", (5, 5, 5, 75, 75, 75), 12, "-3m"),
        ("-3", (5, 5, 5, 75, 75, 75), 6, "-3"),
    ],
)
def test_primitive_settings(laue, lattice, order, symbol):
    ops = laue_operations(laue, lattice)
    assert len(ops) == order
    assert spglib.get_pointgroup(ops)[0].strip() == symbol
    assert compatible(ops, lattice)


@pytest.mark.parametrize("bad", ["4mm", "", "m3bar", 7, None, ["mmm"]])
def test_unknown_class(bad):
    with pytest.raises(DataError, match="expected one of -1, 2/m"):
        laue_operations(bad)
    assert "-3m" in LAUE_CLASSES


# -- averaging -----------------------------------------------------------------------------------------------------


def brute_force(volume, laue):
    """Means and numbers of measured equivalents by a dictionary of indices; the operations come from gemmi's Laue group."""
    number = {"mmm": 47, "4/mmm": 123, "6/mmm": 191, "-31m": 162, "2/m": 10}[laue]
    ops = [np.array(op.rot) // 24 for op in gemmi.find_spacegroup_by_number(number).operations().sym_ops]
    hkl = np.round(volume.hkl().reshape(-1, 3), 6)
    where = {tuple(v + 0.0): i for i, v in enumerate(hkl)}
    stars = defaultdict(set)
    for i, v in enumerate(hkl):
        for op in ops:
            j = where.get(tuple(np.round(v @ op, 6) + 0.0))
            if j is not None:
                stars[i].add(j)
    mean, n = np.full(len(hkl), np.nan), np.zeros(len(hkl))
    for i, members in stars.items():
        measured = [j for j in members if volume.mask.ravel()[j]]
        n[i] = len(measured)
        if measured:
            mean[i] = volume.data.ravel()[measured].mean()
    return mean.reshape(volume.shape), n.reshape(volume.shape)


def grid(shape, lattice, seed=0, hidden=0.3, **kwargs):
    rng = np.random.default_rng(seed)
    axes = [np.linspace(-(n - 1) / 4, (n - 1) / 4, n) for n in shape]
    data = rng.normal(10, 1, shape)
    return DiffuseVolume(data, *axes, lattice, mask=rng.random(shape) > hidden, **kwargs)


@pytest.mark.parametrize(
    ("laue", "lattice"), [("mmm", ORTHO), ("4/mmm", TET), ("6/mmm", HEX), ("-31m", HEX), ("2/m", MONO)]
)
def test_mean_and_sigma_equal_brute_force(laue, lattice):
    volume = grid((7, 7, 5), lattice, sigma=np.full((7, 7, 5), 2.0))
    averaged = volume.symmetrize(laue, outlier_sigma=None)
    mean, n = brute_force(volume, laue)
    assert np.array_equal(averaged.mask, n > 0)
    assert averaged.data[n > 0] == pytest.approx(mean[n > 0])
    assert averaged.sigma[n > 0] == pytest.approx(2 / np.sqrt(n[n > 0]))
    assert averaged.mask.sum() > volume.mask.sum(), "gaps are filled"
    again = averaged.symmetrize(laue, outlier_sigma=None)
    assert again.data[n > 0] == pytest.approx(averaged.data[n > 0])


@pytest.mark.parametrize(("laue", "lattice"), [("4/mmm", TET), ("6/mmm", HEX)])
def test_plane_is_averaged_by_what_keeps_it(laue, lattice):
    volume = grid((9, 9, 5), lattice)
    flat = volume.plane("hk0").symmetrize(laue, outlier_sigma=None)
    mean, n = brute_force(volume.plane("hk0"), laue)
    assert flat.data[n > 0] == pytest.approx(mean[n > 0])
    layer = volume.plane("hk0.5")
    assert len(plane_operations(layer, laue)) == len(plane_operations(volume, laue)) // 2
    assert layer.symmetrize(laue).mask.sum() > layer.mask.sum()
    diagonal = volume.plane("hhl").symmetrize(laue, outlier_sigma=None)
    mean, n = brute_force(volume.plane("hhl"), laue)
    assert diagonal.data[n > 0] == pytest.approx(mean[n > 0])


def smooth_truth(axes, laue, lattice, level=100.0):
    """A smooth function with the symmetry, made by adding up over the class."""
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    ops = laue_operations(laue, lattice)
    value = sum(np.exp(-0.2 * np.sum((hkl @ op - [0.3, 0.7, 1.1]) ** 2, axis=-1)) for op in ops) / len(ops)
    return level * (0.5 + value)


@pytest.mark.parametrize(
    ("laue", "lattice"), [("m-3m", CUB), ("6/mmm", HEX), ("mmm", ORTHO), ("m-3m", (5.7, 5.7, 5.7, 60, 60, 60))]
)
@pytest.mark.parametrize("given", [True, False])
def test_outliers_go_and_sigma_is_calibrated(laue, lattice, given):
    rng = np.random.default_rng(5)
    axes = [np.linspace(-4, 4, 41)] * 3
    truth = smooth_truth(axes, laue, lattice)
    data = truth + rng.normal(0, 3, truth.shape)
    outliers = rng.random(truth.shape) < 0.01
    data[outliers] += 500
    sigma = np.full(truth.shape, 3.0) if given else None
    volume = DiffuseVolume(data, *axes, lattice, mask=rng.random(truth.shape) > 0.2, sigma=sigma)
    averaged = volume.symmetrize(laue)
    plain = volume.symmetrize(laue, outlier_sigma=None)
    # where equivalents abound, off the symmetry elements: an outlier among one or two cannot be told
    hkl = volume.hkl()
    meets_itself = sum(np.abs(hkl @ op - hkl).max(axis=-1) < 1e-6 for op in laue_operations(laue, lattice))
    inner = averaged.mask & (meets_itself == 1) & (np.abs(hkl).max(axis=-1) < 2.5)
    z = ((averaged.data - truth) / averaged.sigma)[inner]
    z = z[np.unique(averaged.data[inner], return_index=True)[1]]  # equivalents share one value
    assert z.size > 200
    assert np.sqrt(np.median(z**2) / 0.4549) == pytest.approx(1.0, abs=0.13)
    assert np.mean(np.abs(z) < 1.96) == pytest.approx(0.945, abs=0.03)
    error, loose = ((v.data - truth)[inner] for v in (averaged, plain))
    assert np.sqrt(np.mean(error**2)) < 1.35
    assert np.sqrt(np.mean(loose**2)) > 5 * np.sqrt(np.mean(error**2)), "the outliers matter"
    assert "rejected" in averaged.history[-1]


@pytest.mark.parametrize("given", [True, False])
def test_two_that_contradict_each_other(given):
    """Friedel mates 100 σ apart: the mean is kept, its uncertainty is half their difference."""
    axes = [np.linspace(-1, 1, 11)] * 3
    data = np.random.default_rng(0).normal(50, 1, (11, 11, 11))
    data[2, 3, 4] += 100
    averaged = DiffuseVolume(data, *axes, ORTHO, sigma=np.ones_like(data) if given else None).symmetrize("-1")
    lattice_of_four = DiffuseVolume(data, *axes, ORTHO).symmetrize("mmm")
    assert lattice_of_four.data[2, 3, 4] == pytest.approx(50, abs=3), "of eight, the one is rejected"
    assert averaged.data[2, 3, 4] == pytest.approx(100, abs=3)
    assert averaged.sigma[2, 3, 4] == pytest.approx(50, abs=2)
    assert np.median(averaged.sigma) == pytest.approx(1 / np.sqrt(2), rel=1e-9 if given else 0.2)


def test_clean_noise_is_hardly_rejected():
    volume = grid((21, 21, 21), CUB, hidden=0.1)
    text = volume.symmetrize("m-3m").history[-1]
    assert float(text.split("operations, ")[1].split("%")[0]) < 0.1


def test_grid_that_does_not_map_onto_itself_is_interpolated():
    lattice = HEX
    axes = [np.linspace(-2.03, 1.97, 41), np.linspace(-2, 2, 41), np.linspace(-1, 1, 21)]
    truth = smooth_truth(axes, "6/mmm", lattice)
    rng = np.random.default_rng(2)
    mask = rng.random(truth.shape) > 0.3
    volume = DiffuseVolume(truth, *axes, lattice, mask=mask)
    averaged = volume.symmetrize("6/mmm")
    assert averaged.mask.mean() > 0.98
    # holes shift the linear interpolation by part of a step
    assert np.nanmax(np.abs(averaged.data - truth)) < 0.02 * np.ptp(truth)
    assert np.sqrt(np.nanmean((averaged.data - truth) ** 2)) < 0.003 * np.ptp(truth)


def test_interpolated_and_exact_agree():
    """The same volume cut off by half a step on one side: linear data are interpolated exactly."""
    axes = [np.linspace(-2, 2, 17), np.linspace(-2.0, 2.0, 17), np.linspace(-1, 1, 9)]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)
    moved = DiffuseVolume(np.abs(hkl[..., 2]) + 3, axes[0] + 0.125, axes[1], axes[2], TET)
    averaged = moved.symmetrize("4/mmm")
    inner = np.abs(moved.hkl()[..., :2]).max(axis=-1) < 1.8
    assert averaged.data[inner] == pytest.approx(moved.data[inner])


def test_counts_without_scatter_stay():
    """Equal values everywhere, and a volume of exact symmetry, come back as they were."""
    axes = [np.linspace(-1, 1, 9)] * 3
    for truth in (np.full((9, 9, 9), 7.0), smooth_truth(axes, "m-3m", CUB)):
        averaged = DiffuseVolume(truth, *axes, CUB).symmetrize("m-3m")
        assert averaged.data == pytest.approx(truth, rel=1e-12)
        assert " 0.00% rejected" in averaged.history[-1]


def test_refusals():
    volume = grid((5, 5, 5), (5, 6, 5, 90, 90, 90))
    with pytest.raises(DataError, match="'m-3m', a symmetry that the lattice"):
        volume.symmetrize("m-3m")
    with pytest.raises(DataError, match="expected one of -1"):
        volume.symmetrize("5/m")
    for bad in (-1, 0, "x", np.nan):
        with pytest.raises(DataError, match="outlier_sigma is"):
            volume.symmetrize("mmm", outlier_sigma=bad)
    with pytest.raises(DataError, match="from_pixels"):
        DiffuseVolume.from_pixels(np.zeros((4, 4))).symmetrize("mmm")
    with pytest.warns(PlausibilityWarning, match="only the identity keeps this plane"):
        assert volume.plane("hk0.5").symmetrize("-1").history == ("plane hk0.5",)


def test_measured_volume(shared_data):
    """A cubic F lattice in its primitive setting, 30 % not measured: symmetry fills most of it."""
    volume = DiffuseVolume.from_file(shared_data / "diffuse" / "real" / "meerkat2_visual-test.h5")
    averaged = volume.symmetrize("m-3m")
    assert volume.mask.mean() == pytest.approx(0.705, abs=0.001)
    assert averaged.mask.mean() > 0.85
    # equivalents now agree exactly: swapping h and k is one of the operations
    assert np.allclose(averaged.data, averaged.data.transpose(1, 0, 2), equal_nan=True)
    assert np.isfinite(averaged.sigma[averaged.mask]).all()
