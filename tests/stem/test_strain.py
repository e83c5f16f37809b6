"""Strain maps of lattices whose strain is known, and against py4DSTEM's own route."""

from __future__ import annotations

import h5py
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import py4DSTEM
import pytest
from synthetic_lattices import G, Lattices, bragg_vectors, deformation, lattices

from crystaldl.errors import DataError, FileFormatError, PlausibilityWarning
from crystaldl.stem.bragg import save_bragg, table_of
from crystaldl.stem.plot import plot_basis, plot_intensity, show_strain
from crystaldl.stem.strain.deformation import rotated, strain_from_change, strain_jacobian
from crystaldl.stem.strain.files import read_strain, save_strain
from crystaldl.stem.strain.fit import StrainOptions, fit_strain

SHAPE = (12, 15)


@pytest.fixture(autouse=True)
def no_windows():
    matplotlib.use("Agg")
    yield
    plt.close("all")


def known(rng, size=0.01, shape=SHAPE):
    """e_xx, e_yy, e_xy and theta (py4DSTEM's sign) of every position."""
    return rng.normal(0, size, (4, *shape))


def model_of(strain, **options):
    e_xx, e_yy, e_xy, theta = (v.ravel() for v in strain)
    return lattices(deformation(e_xx, e_yy, e_xy, -theta), strain.shape[1:], **options)


def test_strain_is_exact_without_noise():
    truth = known(np.random.default_rng(0), 0.02)
    strain = fit_strain(bragg_vectors(model_of(truth), sigma=False), reference=tuple(G))
    assert np.abs(strain.data[:4] - truth).max() < 1e-6
    assert strain.data[4].all() and strain.data[5].max() < 1e-6


@pytest.mark.parametrize(("component", "value", "closer"), [(0, 0.02, 0), (1, 0.02, 1)])
def test_tension_is_positive_and_brings_disks_closer(component, value, closer):
    truth = np.zeros((4, 2, 4))
    truth[component, 1] = value
    model = model_of(truth, basis=np.diag([15.0, 17.0]), descan=0.0)
    assert np.linalg.norm(model.vectors[-1, closer]) < np.linalg.norm(model.vectors[0, closer])
    reference = np.zeros((2, 4), dtype=bool)
    reference[0] = True
    strain = fit_strain(bragg_vectors(model, sigma=False), reference=reference)
    assert strain.data[component, 1] == pytest.approx(value, abs=1e-9)
    others = np.delete(strain.data[:4, 1], component, axis=0)
    assert np.abs(others).max() < 1e-9


def test_theta_turns_from_y_towards_x():
    truth = np.zeros((4, 1, 6))
    truth[3, 0, 3:] = 0.03
    strain = fit_strain(bragg_vectors(model_of(truth), sigma=False), reference=tuple(G))
    g1 = strain.details.g1[0]
    angle = np.arctan2(g1[:, 1], g1[:, 0])
    assert angle[5] - angle[0] == pytest.approx(-0.03, abs=1e-9)
    assert strain.data[3, 0, 5] == pytest.approx(0.03, abs=1e-9)
    assert np.abs(strain.data[:3]).max() < 1e-9  # a rotation is no strain


def test_agrees_with_py4dstem():
    """The same clean vectors through py4DSTEM's own indexing, fit and formula."""
    truth = known(np.random.default_rng(3), 0.004)
    model = model_of(truth, descan=2.0)
    bragg = bragg_vectors(model, sigma=False)
    bragg.calibration.set_origin(tuple(model.origin.T.reshape(2, *SHAPE)))
    bragg.setcal(center=True, ellipse=False, pixel=False, rotate=False)
    own = py4DSTEM.StrainMap(bragg.copy())
    nodes = np.array([(h, k) for h in range(-3, 4) for k in range(-3, 4)])
    from emdfile import PointList

    directions = np.zeros(len(nodes), dtype=[("qx", float), ("qy", float), ("g1_ind", int), ("g2_ind", int)])
    directions["qx"], directions["qy"] = (nodes @ G).T
    directions["g1_ind"], directions["g2_ind"] = nodes.T
    own.braggdirections = PointList(directions)
    own.g1, own.g2, own.max_peak_spacing = tuple(G[0]), tuple(G[1]), 3.0
    own.fit_basis_vectors()
    own.get_strain()
    infinitesimal = fit_strain(bragg, basis=G, options=StrainOptions(measure="infinitesimal"))
    assert np.abs(infinitesimal.data[:4] - own.data[:4]).max() < 1e-7
    polar = fit_strain(bragg, basis=G)
    assert np.abs(polar.data[:4] - own.data[:4]).max() < 4e-4  # second order in strain and rotation
    assert np.median(np.abs(polar.data[:4] - own.data[:4])) < 5e-5


def test_uncertainties_and_false_disks():
    truth = known(np.random.default_rng(5), 0.005, (30, 30))
    model = model_of(truth, noise=0.05, missing=0.3, false=0.1)
    strain = fit_strain(bragg_vectors(model), reference=tuple(G))
    good = strain.data[4] > 0
    assert good.mean() > 0.99
    z = ((strain.data[:4] - truth) / strain.details.sigma)[:, good]
    assert np.all(np.abs(np.sqrt((z**2).mean(1)) - 1) < 0.2)


def test_references_and_masks():
    truth = np.zeros((4, *SHAPE))
    truth[0, :, 8:] = 0.012
    bragg = bragg_vectors(model_of(truth), sigma=False)
    region = np.zeros(SHAPE, dtype=bool)
    region[:, 10:] = True
    median = fit_strain(bragg).data[0]
    assert np.abs(median[:, :8]).max() < 1e-8 and np.abs(median[:, 8:] - 0.012).max() < 1e-8
    of_region = fit_strain(bragg, reference=region).data[0]
    assert np.abs(of_region[:, 8:]).max() < 1e-8 and of_region[0, 0] == pytest.approx(1 / 1.012 - 1, abs=1e-8)
    masked = fit_strain(bragg, mask=region)
    assert np.array_equal(masked.data[4].astype(bool), region)
    assert np.isnan(masked.data[0][~region]).all() and np.abs(masked.data[0][region]).max() < 1e-8


@pytest.mark.parametrize("origin", ["direct", "plane", "parabola", "calibrated", "lattice"])
def test_origins(origin):
    truth = known(np.random.default_rng(8), 0.004, (20, 20))
    model = model_of(truth, noise=0.03, missing=0.2, descan=5.0)
    bragg = bragg_vectors(model)
    bragg.calibration.set_origin(tuple(model.origin.T.reshape(2, 20, 20)))
    strain = fit_strain(bragg, reference=tuple(G), options=StrainOptions(origin=origin))
    assert np.sqrt(np.nanmean((strain.data[:4] - truth) ** 2)) < 6e-4
    assert strain.data[4].mean() > 0.99


def test_ellipse_and_rotation_are_applied_as_py4dstem_does():
    truth = known(np.random.default_rng(9), 0.004)
    model = model_of(truth)
    bragg = bragg_vectors(model, sigma=False)
    bragg.calibration.set_ellipse((1.0, 0.97, 0.4))
    bragg.calibration.set_QR_rotation(0.6)
    bragg.calibration.set_QR_flip(True)
    bragg.calibration.set_origin(tuple(model.origin.T.reshape(2, *SHAPE)))
    bragg.setcal(center=True, ellipse=True, pixel=False, rotate=True)
    strain = fit_strain(bragg)
    v = bragg.get_vectors(3, 4, center=True, ellipse=True, pixel=False, rotate=True)
    lattice = np.stack([strain.details.g1[3, 4], strain.details.g2[3, 4]])
    fraction = np.stack([v.qx, v.qy], 1) @ np.linalg.inv(lattice)
    assert np.abs(fraction - np.rint(fraction)).max() < 1e-7
    assert strain.calstate == {"center": True, "ellipse": True, "pixel": False, "rotate": True}


def test_coordinate_rotation_matches_py4dstem():
    bragg = bragg_vectors(model_of(known(np.random.default_rng(1), 0.005)), sigma=False)
    options = StrainOptions(coordinate_rotation=30, measure="infinitesimal")
    ours = fit_strain(bragg, reference=tuple(G), options=options)
    theirs = fit_strain(bragg, reference=tuple(G))
    theirs.get_strain(gvects=(tuple(G[0]), tuple(G[1])), coordinate_rotation=30)
    assert np.abs(ours.data[:4] - theirs.data[:4]).max() < 1e-9


def test_details():
    model = model_of(np.zeros((4, 4, 5)), missing=0.3, noise=0.02, seed=2)
    bragg = bragg_vectors(model)
    strain = fit_strain(bragg)
    details = strain.details
    assert details.sigma.shape == (4, 4, 5) and details.covariance.shape == (4, 5, 4, 4)
    assert details.intensity.shape == (len(details.hk), 4, 5)
    assert (details.hk[0] == 0).all()
    table = table_of(bragg)
    rows = table.rows(2, 3)
    image = details.intensity_of(0, 0)[2, 3]
    at_centre = np.hypot(*(table.positions[rows] - details.origin[2, 3]).T) < 2
    assert image == pytest.approx(table.intensity[rows][at_centre][0]) if at_centre.any() else np.isnan(image)
    factors = details.structure_factors()
    assert details.fitted.shape == factors.shape == details.intensity.shape
    assert np.isnan(factors[0]).all() and np.nanmax(factors) == 1
    with pytest.raises(DataError, match=r"reflection \(9, 9\) was not seen"):
        details.intensity_of(9, 9)
    with pytest.raises(ValueError, match="read-only"):
        details.sigma[0] = 0
    assert "20 of 20 positions" in repr(details)


def test_the_vectors_stay_as_they_are():
    bragg = bragg_vectors(model_of(np.zeros((4, 3, 4))))
    before = table_of(bragg)
    strain = fit_strain(bragg)
    assert bragg.calibration.get_origin() is None and bragg.calstate["center"] is False
    assert list(bragg._branch.keys()) == ["disk_table"]
    assert table_of(bragg) is before
    assert strain.braggvectors is not bragg and strain.calibration.get_origin() is not None


def test_py4dstem_methods_work_on_the_map():
    bragg = bragg_vectors(model_of(known(np.random.default_rng(1))), sigma=False)
    bragg.calibration.set_QR_rotation(0.0)
    strain = fit_strain(bragg)
    assert isinstance(strain, py4DSTEM.StrainMap)
    strain.show_strain(returnfig=True)
    strain.show_reference_directions(returnfig=True)
    strain.set_max_peak_spacing(3, returnfig=True)
    assert np.array_equal(strain.get_slice("e_yy").data, strain.data[1])
    before = strain.data[0].copy()
    region = np.zeros(SHAPE, dtype=bool)
    region[0] = True
    strain.get_strain(gvects=region)
    assert np.abs(strain.data[0] - before).max() > 1e-5


def test_files(tmp_path):
    truth = known(np.random.default_rng(4))
    bragg = bragg_vectors(model_of(truth, noise=0.03, missing=0.3, false=0.05))
    bragg.calibration.set_R_pixel_size(2.0)
    bragg.calibration.set_R_pixel_units("nm")
    mask = np.ones(SHAPE, dtype=bool)
    mask[2] = False
    options = StrainOptions(coordinate_rotation=20, max_order=3)
    strain = fit_strain(bragg, mask=mask, options=options)
    strain.save(tmp_path / "strain.h5")
    plain = py4DSTEM.read(str(tmp_path / "strain.h5"))
    assert np.array_equal(plain.tree("strainmap").get_slice("e_xy").data, strain.data[2], equal_nan=True)
    assert type(plain.tree("braggvectors")) is py4DSTEM.BraggVectors
    again = read_strain(tmp_path / "strain.h5")
    assert isinstance(again, py4DSTEM.StrainMap) and np.array_equal(again.data, strain.data, equal_nan=True)
    for name in ("sigma", "g1", "covariance", "reference", "hk", "intensity", "fitted", "n_disks"):
        assert np.array_equal(getattr(again.details, name), getattr(strain.details, name), equal_nan=True), name
    assert again.details.options == options and again.details.excess == strain.details.excess
    assert again.calibration.get_R_pixel_size() == 2.0 and again.calstate == strain.calstate
    again.show()[0].canvas.draw()
    with h5py.File(tmp_path / "strain.h5", "a") as file:  # as the first files were
        (root,) = (g for g in file.values() if "strain_fitted" in g)
        del root["strain_fitted"]
    assert np.isnan(read_strain(tmp_path / "strain.h5").details.fitted).all()
    with pytest.raises(DataError, match="expected the result of fit_strain"):
        save_strain(tmp_path / "x.h5", bragg)
    save_bragg(tmp_path / "b.h5", bragg)
    with pytest.raises(FileFormatError, match="no strain map"):
        read_strain(tmp_path / "b.h5")


def test_figures():
    model = model_of(known(np.random.default_rng(1)), noise=0.03, missing=0.2)
    bragg = bragg_vectors(model)
    bragg.calibration.set_R_pixel_size(20.0)
    bragg.calibration.set_R_pixel_units("A")
    mask = np.ones(SHAPE, dtype=bool)
    mask[0, 0] = False
    strain = fit_strain(bragg, mask=mask)
    figure, axes = strain.show(vrange=2)
    assert axes.shape == (2, 3)
    image = axes[0, 0].images[0]
    assert np.ma.getmaskarray(image.get_array())[0, 0] or np.isnan(image.get_array()[0, 0])
    assert image.get_clim() == (-2, 2)
    assert np.nanmax(np.abs(image.get_array())) == pytest.approx(100 * np.nanmax(np.abs(strain.data[0])))
    assert axes[0, 0].get_xlabel() == "y (nm)" and image.get_extent()[1] == pytest.approx(14.5 * 2.0)
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert {"Strain (%)", "Rotation (°)"} <= set(labels)
    figure.canvas.draw()
    assert plot_basis(strain)[1].get_title(loc="left")
    assert plot_intensity(strain, 1, 0)[1].images
    with pytest.raises(DataError, match="vrange"):
        show_strain(strain, vrange=(3, -3))
    with pytest.raises(DataError, match="expected the result of fit_strain"):
        plot_basis(bragg)


def flat(value):
    return np.full((3, 4), value)


BAD = {
    "not vectors": ({"bragg": np.zeros((3, 4))}, TypeError, "expected py4DSTEM.BraggVectors"),
    "reference word": ({"reference": "mean"}, DataError, "expected 'median'"),
    "reference shape": ({"reference": np.ones((2, 5), dtype=bool)}, DataError, "scan's shape"),
    "reference type": ({"reference": np.ones((3, 4))}, DataError, "bool array"),
    "reference empty": ({"reference": flat(False)}, DataError, "reference is False everywhere"),
    "reference far": ({"reference": ((50.0, 0.0), (0.0, 50.0)), "basis": tuple(G)}, DataError, "the same basis"),
    "reference parallel": ({"reference": ((14.0, 1.0), (28.0, 2.0))}, DataError, "parallel"),
    "basis": ({"basis": (1, 2, 3)}, DataError, "expected .g1, g2."),
    "basis nan": ({"basis": ((np.nan, 1), (2, 3))}, DataError, "expected .g1, g2."),
    "wrong basis": ({"basis": ((9.1, 5.0), (-4.0, 8.3))}, DataError, "gave no lattice"),
    "mask": ({"mask": flat(1)}, DataError, "mask has the shape"),
    "mask empty": ({"mask": flat(False)}, DataError, "mask is False everywhere"),
    "options": ({"options": {"origin": "plane"}}, TypeError, "expected StrainOptions"),
    "no origin": ({"options": StrainOptions(origin="calibrated")}, DataError, "no calibrated origin"),
    "confidence": ({"options": StrainOptions(min_confidence=1.0)}, DataError, "no disks to fit"),
    "too many": ({"options": StrainOptions(min_disks=500)}, DataError, "smaller min_disks"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    change, kind, message = BAD[case]
    arguments = {"bragg": bragg_vectors(model_of(np.zeros((4, 3, 4)), noise=0.02))} | change
    with pytest.raises(kind, match=message) as caught:
        fit_strain(**arguments)
    text = str(caught.value)
    assert "\n" not in text and text.endswith((".", "…"))


@pytest.mark.parametrize(
    ("name", "value"),
    [("origin", "centre"), ("measure", "biot"), ("tolerance", 0.9), ("min_disks", 2), ("max_order", 0), ("max_change", 3)],
)
def test_bad_options(name, value):
    with pytest.raises(ValueError, match=f"{name} is"):
        StrainOptions(**{name: value})


def test_another_crystal_in_most_of_the_scan_is_said():
    a = lattices(deformation(), (2, 6), noise=0.02)
    b = lattices(deformation(rotation=0.5), (3, 6), noise=0.02)
    q = np.concatenate([a.q, b.q])
    offsets = np.concatenate([a.offsets, a.offsets[-1] + b.offsets[1:]])
    both = Lattices(
        (5, 6), offsets, q, np.full_like(q, 0.02), np.concatenate([a.intensity, b.intensity]), None, None, None,
        np.zeros(len(q), dtype=bool),
    )  # fmt: skip
    with pytest.warns(PlausibilityWarning, match="only 12 of 30 positions"):
        strain = fit_strain(bragg_vectors(both), basis=tuple(G))
    assert strain.data[4][:2].all() and not strain.data[4][2:].any()


def test_empty_vectors_are_said():
    model = model_of(np.zeros((4, 2, 2)), missing=1.0)
    with pytest.raises(DataError, match="no disks"):
        fit_strain(bragg_vectors(model))


def test_polar_decomposition():
    rng = np.random.default_rng(0)
    e_xx, e_yy, e_xy = rng.normal(0, 0.05, (3, 50))
    angle = rng.uniform(-1.5, 1.5, 50)
    change = np.linalg.inv(deformation(e_xx, e_yy, e_xy, angle)).transpose(0, 2, 1)
    assert np.allclose(strain_from_change(change), [e_xx, e_yy, e_xy, -angle], atol=1e-12)
    small = np.eye(2) + 1e-5 * rng.normal(size=(9, 2, 2))
    assert np.allclose(strain_from_change(small), strain_from_change(small, "infinitesimal"), atol=1e-9)


def test_jacobian_is_the_derivative():
    angle = 0.4
    jacobian = strain_jacobian(G, angle)
    for i in range(4):
        step = np.zeros(4)
        step[i] = 1e-6
        change = (np.linalg.inv(G) @ (G + step.reshape(2, 2))).T[None]
        value = rotated(strain_from_change(change), angle)[:, 0]
        assert np.allclose(value / 1e-6, jacobian[:, i], atol=1e-5)
