"""Figures: angles and lengths as in reciprocal space, ticks in hkl, masked pixels grey."""

from __future__ import annotations

import matplotlib
import numpy as np
import pytest

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.collections import QuadMesh
from matplotlib.colors import LogNorm, to_rgb

from crystaldl.diffuse.naming import axis_names, plane_name
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import DataError

HEX, ORTHO, TRI = (5, 5, 8, 90, 90, 120), (4, 5, 10, 90, 90, 90), (5, 6, 7, 80, 95, 70)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def volume(lattice=HEX, n=9, **kwargs):
    axes = [np.linspace(-2, 2, n), np.linspace(-1, 1, n), np.linspace(-1, 3, n)]
    data = np.random.default_rng(0).normal(5, 1, (n, n, n))
    data[0, :, :] = np.nan
    return DiffuseVolume(data, *axes, lattice, **kwargs)


def mesh(ax) -> QuadMesh:
    return next(c for c in ax.collections if isinstance(c, QuadMesh))


# -- aspect --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "lattice"), [("hk0", HEX), ("hk0", TRI), ("h0l", (5, 6, 7, 90, 112, 90)), ("hhl", TRI)]
)
def test_oblique_planes_are_drawn_to_scale(name, lattice):
    """Distances between corners of the drawing are distances |ΔQ| in Å⁻¹."""
    plane = volume(lattice).plane(name)
    _, ax = plane.show()
    corners = mesh(ax).get_coordinates()
    centres = 0.25 * (corners[:-1, :-1] + corners[1:, :-1] + corners[:-1, 1:] + corners[1:, 1:])
    q = plane.q_vectors()
    for first, second in [((0, 0), (8, 0)), ((0, 0), (0, 8)), ((1, 2), (7, 5)), ((8, 0), (0, 8))]:
        drawn = np.linalg.norm(centres[first] - centres[second])
        assert drawn == pytest.approx(np.linalg.norm(q[first] - q[second]), rel=1e-6)
    assert ax.get_aspect() == 1


def test_hexagonal_plane_is_at_sixty_degrees():
    _, ax = volume().plane("hk0").show()
    corners = mesh(ax).get_coordinates()
    along, up = corners[-1, 0] - corners[0, 0], corners[0, -1] - corners[0, 0]
    assert along[1] == pytest.approx(0, abs=1e-12)
    assert np.degrees(np.arctan2(up[1], up[0])) == pytest.approx(60)


def test_right_angles_are_an_image_to_scale():
    plane = volume(ORTHO).plane("0kl")
    _, ax = plane.show()
    image = ax.images[0]
    left, right, bottom, top = image.get_extent()
    b, c = 2 * np.pi / 5, 2 * np.pi / 10
    assert (right - left, top - bottom) == pytest.approx((2.25 * b, 4.5 * c))
    assert np.array_equal(image.get_array().filled(np.nan), plane.data.T, equal_nan=True), "k to the right, l upwards"


# -- ticks, names, colours -----------------------------------------------------------------------------------------


def test_ticks_are_indices():
    plane = volume(ORTHO).plane("hk0")
    _, ax = plane.show()
    for position, label in zip(ax.get_xticks(), ax.get_xticklabels(), strict=True):
        assert position * 4 / (2 * np.pi) == pytest.approx(float(label.get_text().replace("−", "-")))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("h (r.l.u.)", "k (r.l.u.)")
    assert ax.get_title("left") == "hk0"
    _, ax = volume(HEX).plane("hk1").show()
    texts = {t.get_text(): t.get_position() for t in ax.texts}
    frame = mesh(ax).get_coordinates()
    assert "k (r.l.u.)" in texts
    low, high = frame[0, 0], frame[0, -1]
    # the tick 0 of k sits half way up the slanted edge, a little to the left
    y = 0.5 * (low[1] + high[1])
    assert texts["0"][1] == pytest.approx(y, abs=1e-9)
    assert texts["0"][0] < low[0] + (y - low[1]) / np.tan(np.radians(60))


@pytest.mark.parametrize(
    ("cut", "names", "title"),
    [
        ("hk0", ("h", "k"), "hk0"),
        ("hk-0.5", ("h", "k"), "hk-0.5"),
        ("0.5kl", ("k", "l"), "0.5kl"),
        ("hhl", ("hh0", "l"), "hhl"),
        ("-hhl", ("-hh0", "l"), "-hhl"),
        ("(h,-2h,l)", ("[h -2h 0]", "l"), ""),
    ],
)
def test_names(cut, names, title):
    plane = volume(ORTHO).plane(cut)
    assert axis_names(plane) == names
    assert plane_name(plane) == title


def test_masked_pixels_are_grey():
    plane = DiffuseVolume(np.where(np.eye(3), np.nan, 1.0), [0, 1, 2], [0, 1, 2], 0, ORTHO)
    hexagonal = DiffuseVolume(np.where(np.eye(3), np.nan, 1.0), [0, 1, 2], [0, 1, 2], 0, HEX)
    for p in (plane, hexagonal):
        figure, ax = p.show(colorbar=False)
        figure.canvas.draw()
        pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3].reshape(-1, 3) / 255
        grey = np.abs(pixels - to_rgb("#b4b4b4")).max(axis=1) < 0.02
        assert grey.mean() > 0.05


def test_colour_scale():
    plane = volume().plane("hk0")
    values = plane.data[plane.mask]
    _, ax = plane.show(percentile=(10, 90))
    assert mesh(ax).get_clim() == pytest.approx(tuple(np.percentile(values, (10, 90))))
    _, ax = plane.show(vmin=-1, vmax=3, cmap="magma")
    assert mesh(ax).get_clim() == (-1, 3)
    _, ax = plane.replace(data=plane.data - 5).show(log=True)
    assert isinstance(mesh(ax).norm, LogNorm)
    assert mesh(ax).norm.vmin > 0
    _, ax = plane.replace(data=np.full(plane.shape, 2.0), mask=None).show()
    assert np.ptp(mesh(ax).get_clim()) > 0, "constant data can be drawn"


def test_volume_shows_three_planes():
    v = volume(name="crystal")
    figure, axes = v.show()
    assert [ax.get_title("left") for ax in axes] == ["hk0", "h0l", "0kl"]
    assert figure.get_suptitle() == "crystal"
    assert len(figure.axes) == 4, "and one colour bar"
    assert np.allclose(mesh(axes[0]).get_array().filled(-9).reshape(9, 9), np.nan_to_num(v.data[:, :, 2], nan=-9))
    away = DiffuseVolume(np.ones((4, 4, 4)), [1, 2, 3, 4], [0, 1, 2, 3], [-3, -2, -1, 0], ORTHO)
    assert [ax.get_title("left") for ax in away.show()[1]] == ["hk0", "h0l", "3kl"]
    figure, axes = plt.subplots(1, 3)
    assert v.show(axes)[0] is figure


def test_pixels_and_given_axes():
    figure, ax = plt.subplots()
    plane = DiffuseVolume.from_pixels(np.random.default_rng(0).normal(size=(6, 9)), name="demo")
    assert plane.show(ax) == (figure, ax)
    assert ax.get_xlabel() == "row (pixels)"
    assert ax.get_title("left") == "demo"


def test_delta_pdf_figures():
    h = np.linspace(-2, 2, 41)
    x, y = np.meshgrid(h, h, indexing="ij")
    pdf = DiffuseVolume(1 + 0.4 * np.cos(2 * np.pi * x), h, h, 0, HEX).delta_pdf()
    _, ax = pdf.show(maximum=2)
    corners = mesh(ax).get_coordinates()
    up = corners[0, -1] - corners[0, 0]
    assert np.degrees(np.arctan2(up[1], up[0])) == pytest.approx(120), "direct space"
    low, high = mesh(ax).get_clim()
    assert low == -high
    assert ax.get_xlabel() == "u (lattice units)"
    _, axes = volume().delta_pdf().show(vmax=0.1)
    assert [a.get_title("left") for a in axes] == ["w = 0", "v = 0", "u = 0"]
    with pytest.raises(DataError, match="leaves no grid"):
        pdf.show(maximum=0.01)


BAD = [
    ({"percentile": 5}, "percentile is 5; expected two numbers"),
    ({"percentile": (90, 10)}, "the lower first"),
    ({"vmin": "a"}, "vmin is 'a'"),
    ({"vmin": 3, "vmax": 1}, "vmin must be the smaller"),
    ({"log": True, "vmin": 0}, "expects a number above 0"),
    ({"ax": [1, 2]}, "ax has 2 axes; expected 1"),
    ({"cmap": "rainbows"}, "cmap is 'rainbows'"),
]


@pytest.mark.parametrize(("kwargs", "message"), BAD)
def test_bad_arguments(kwargs, message):
    plane = volume().plane("hk0")
    with pytest.raises(DataError, match=message):
        plane.show(**kwargs)
    with pytest.raises(DataError, match="no measured intensity is above zero"):
        plane.replace(data=-np.ones(plane.shape)).show(log=True)


def test_measured_files(shared_data):
    for name in ("meerkat2_visual-test.h5", "javelin_ZrO2.nxs"):
        figure, _ = DiffuseVolume.from_file(shared_data / "diffuse" / "real" / name).show()
        figure.canvas.draw()
