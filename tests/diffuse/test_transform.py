"""Punching, background, rebinning, planes and the ΔPDF against direct sums and known functions."""

from __future__ import annotations

from itertools import product

import gemmi
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crystaldl.diffuse.delta_pdf import DeltaPDF
from crystaldl.diffuse.geometry import CENTRING
from crystaldl.diffuse.slices import parse_plane
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import DataError

CUB, HEX, TRI = (5, 5, 5, 90, 90, 90), (5, 5, 8, 90, 90, 120), (5.1, 6.3, 7.7, 78.0, 95.0, 112.0)


def flat_volume(n=21, reach=2.0, lattice=CUB, **kwargs):
    axes = [np.linspace(-reach, reach, n)] * 3
    return DiffuseVolume(np.ones((n, n, n)), *axes, lattice, **kwargs)


def linear(volume, slope=(1.0, -2.0, 0.5)):
    return volume.replace(data=volume.hkl() @ np.array(slope) + 3)


# -- Bragg peaks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("centring", CENTRING)
def test_punched_nodes_are_those_gemmi_allows(centring):
    group = gemmi.find_spacegroup_by_name({"R": "R 3:H"}.get(centring, f"{centring} 1")).operations()
    volume = flat_volume(17).punch_bragg(0.05, centring=centring)
    hit = {tuple(v) for v in volume.hkl()[~volume.mask].round().astype(int).tolist()}
    nodes = np.array(list(product(range(-2, 3), repeat=3)), dtype=np.int32)
    allowed = ~np.asarray(group.systematic_absences(nodes), dtype=bool)
    assert hit == {tuple(v) for v in nodes[allowed].tolist()}


@pytest.mark.parametrize(
    ("radius", "centring"), [(0.12, "I"), (0.35, "F"), (0.62, "I"), (0.9, "F"), ((0.1, 0.3, 0.7), "I"), ((0.4, 1.3, 0.2), "F")]
)
def test_ellipsoids_in_rlu_equal_brute_force(radius, centring):
    volume = flat_volume(23, 2.2)
    cut = volume.punch_bragg(radius, centring=centring)
    hkl = volume.hkl()
    near = np.full(volume.shape, np.inf)
    for node in product(range(-5, 6), repeat=3):
        if (centring == "I" and sum(node) % 2) or (centring == "F" and len({v % 2 for v in node}) > 1):
            continue
        near = np.minimum(near, np.sum(((hkl - node) / np.asarray(radius)) ** 2, axis=-1))
    clear = np.abs(near - 1) > 1e-6
    assert np.array_equal(cut.mask[clear], (near > 1)[clear])
    assert np.isnan(cut.data[~cut.mask]).all()
    assert cut.data[cut.mask] == pytest.approx(1.0)


@pytest.mark.parametrize("radius", [0.2, 0.75])
def test_spheres_in_inverse_angstrom(radius):
    volume = flat_volume(21, 1.5, TRI)
    cut = volume.punch_bragg(radius, units="inv_angstrom")
    nodes = np.array(list(product(range(-4, 5), repeat=3)))
    distance = np.full(volume.shape, np.inf)
    q = volume.q_vectors()
    for g in nodes @ volume.reciprocal_basis():
        distance = np.minimum(distance, np.linalg.norm(q - g, axis=-1))
    assert np.array_equal(cut.mask, distance > radius)


def test_planes_and_satellites():
    volume = flat_volume(41)
    layer = volume.plane("hk0.5")
    assert layer.punch_bragg(0.4).mask.all(), "the nodes are half a unit away"
    assert not layer.punch_bragg(0.55).mask.all()
    cut = volume.punch_bragg(0.04, extra=[(0.5, 0.5, 0.5)])
    hit = volume.hkl()[~cut.mask]
    assert np.isin(np.abs(hit % 1).round(6), (0, 0.5, 1)).all()
    halves = (np.abs(hit % 1 - 0.5) < 1e-6).all(axis=1).sum()
    assert halves == 4**3
    assert len(hit) == 5**3 + 4**3


# -- background ----------------------------------------------------------------------------------------------------


def bumps(lattice=CUB, n=41, noise=0.0):
    axes = [np.linspace(-3, 3, n)] * 3
    volume = DiffuseVolume(np.zeros((n, n, n)), *axes, lattice)
    q = volume.q()
    hidden = 20 * np.exp(-((q / 1.5) ** 2)) + 5 + 0.3 * q
    # short-range order that reaches zero in every zone
    diffuse = 8 * np.prod(np.sin(np.pi * volume.hkl()) ** 2, axis=-1)
    rng = np.random.default_rng(3)
    data = hidden + diffuse + noise * rng.normal(size=hidden.shape)
    return volume.replace(data=data, mask=rng.random(data.shape) > 0.2), hidden, diffuse


@pytest.mark.parametrize("lattice", [CUB, TRI])
def test_radial_background(lattice):
    volume, hidden, diffuse = bumps(lattice)
    clean = volume.subtract_background()
    assert np.array_equal(clean.mask, volume.mask)
    found = (volume.data - clean.data)[volume.mask]
    wide = volume.q()[volume.mask] > 0.6
    assert np.sqrt(np.mean((found - hidden[volume.mask])[wide] ** 2)) < 0.25
    assert np.corrcoef(clean.data[volume.mask], diffuse[volume.mask])[0, 1] > 0.995
    assert clean.data[volume.mask].min() < 0, "nothing is clipped"
    twice = volume.subtract_background("radial", scale=2.0)
    assert (volume.data - twice.data)[volume.mask] == pytest.approx(2 * found)


def test_background_of_few_or_equal_pixels():
    plane = DiffuseVolume(np.full((4, 4), 7.0), [0, 1, 2, 3], [0, 1, 2, 3], 0, CUB)
    assert plane.subtract_background().data == pytest.approx(0.0)
    pixels = DiffuseVolume.from_pixels(np.add.outer(np.arange(40.0), np.zeros(30)))
    assert np.isfinite(pixels.subtract_background().data).all()


def test_background_from_a_volume_or_an_array():
    volume, hidden, diffuse = bumps()
    volume = volume.replace(sigma=np.full(volume.shape, 3.0))
    empty = volume.replace(data=hidden, mask=np.random.default_rng(0).random(hidden.shape) > 0.1, sigma=np.full(hidden.shape, 4.0))
    clean = volume.subtract_background(empty)
    assert np.array_equal(clean.mask, volume.mask), "holes of the background make none in the data"
    both = volume.mask & empty.mask
    assert clean.data[both] == pytest.approx(diffuse[both], abs=1e-9)
    assert clean.sigma[both] == pytest.approx(5.0)
    assert np.median(np.abs(clean.data - diffuse)[volume.mask & ~empty.mask]) < 0.3
    array = np.where(empty.mask, hidden, np.nan)
    assert volume.subtract_background(array).data[both] == pytest.approx(diffuse[both])
    half = volume.subtract_background(hidden, scale=0.5)
    assert half.data[volume.mask] == pytest.approx((diffuse + hidden / 2)[volume.mask])
    layer = volume.plane("hk0").subtract_background(empty)
    assert np.nanmax(np.abs(layer.data - diffuse[:, :, 20])) < 3


# -- rebinning -----------------------------------------------------------------------------------------------------


def test_rebin_means_and_sigma():
    rng = np.random.default_rng(0)
    data, mask = rng.normal(size=(8, 6)), rng.random((8, 6)) > 0.3
    v = DiffuseVolume(data, np.arange(8) + 0.5, np.arange(6) + 0.5, 0, CUB, mask=mask, sigma=np.full((8, 6), 2.0))
    coarse = v.rebin((2, 3))
    assert coarse.shape == (4, 2)
    assert coarse.axes[0].tolist() == [1, 3, 5, 7]
    assert coarse.axes[1].tolist() == [1.5, 4.5]
    for i, j in product(range(4), range(2)):
        block = np.s_[2 * i : 2 * i + 2, 3 * j : 3 * j + 3]
        n = mask[block].sum()
        if 2 * n < 6:
            assert not coarse.mask[i, j]
            continue
        assert coarse.data[i, j] == pytest.approx(data[block][mask[block]].mean())
        assert coarse.sigma[i, j] == pytest.approx(2 / np.sqrt(n))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(6, 40), f=st.integers(1, 5), start=st.integers(-15, 3))
def test_rebin_keeps_linear_functions_in_place(n, f, start):
    """Whole blocks of a linear function have the value at their centre; odd blocks centre on zero where they can."""
    f = min(f, n // 3)
    axis = start + np.arange(n, dtype=float)
    v = DiffuseVolume(np.add.outer(axis, np.zeros(2)), axis, [0, 1], 0, CUB)
    coarse = v.rebin((f, 1))
    whole = slice(1, -1)
    assert coarse.data[whole, 0] == pytest.approx(coarse.axes[0][whole], abs=1e-9)
    if f % 2 and axis[0] + f / 2 < 0 < axis[-1] - f / 2:
        assert np.abs(coarse.axes[0]).min() < 1e-9


# -- planes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "basis", "origin"),
    [
        ("hk0", [(1, 0, 0), (0, 1, 0)], (0, 0, 0)),
        ("h0l", [(1, 0, 0), (0, 0, 1)], (0, 0, 0)),
        ("0kl", [(0, 1, 0), (0, 0, 1)], (0, 0, 0)),
        ("hk0.5", [(1, 0, 0), (0, 1, 0)], (0, 0, 0.5)),
        ("hk-1.25", [(1, 0, 0), (0, 1, 0)], (0, 0, -1.25)),
        ("hk1/3", [(1, 0, 0), (0, 1, 0)], (0, 0, 1 / 3)),
        ("-1kl", [(0, 1, 0), (0, 0, 1)], (-1, 0, 0)),
        ("HHL", [(1, 1, 0), (0, 0, 1)], (0, 0, 0)),
        ("-hhl", [(-1, 1, 0), (0, 0, 1)], (0, 0, 0)),
        ("h-hl", [(1, -1, 0), (0, 0, 1)], (0, 0, 0)),
        ("hkh", [(1, 0, 1), (0, 1, 0)], (0, 0, 0)),
        ("(h, -2h, l)", [(1, -2, 0), (0, 0, 1)], (0, 0, 0)),
        ("[h k .5]", [(1, 0, 0), (0, 1, 0)], (0, 0, 0.5)),
        ("h, k, −2", [(1, 0, 0), (0, 1, 0)], (0, 0, -2)),
    ],
)
def test_names(name, basis, origin):
    rows, start = parse_plane(name)
    assert rows.tolist() == [list(map(float, row)) for row in basis]
    assert start == pytest.approx(origin)


@pytest.mark.parametrize("name", ["", "hk", "hkl", "h00", "hk0l", "hkx", "xyz", "hk1/0", "0.5", 5, "h,k", "0h,0k,l", "hk0.5.5"])
def test_names_that_mean_nothing(name):
    with pytest.raises(DataError, match="expected three indices of which two letters vary"):
        flat_volume(5).plane(name)


def test_planes_on_the_grid_are_exact():
    rng = np.random.default_rng(1)
    data = rng.normal(size=(9, 11, 7))
    axes = [np.linspace(-2, 2, 9), np.linspace(-2.5, 2.5, 11), np.linspace(-1.5, 1.5, 7)]
    mask, sigma = rng.random(data.shape) > 0.2, np.abs(data) + 0.1
    v = DiffuseVolume(data, *axes, TRI, mask=mask, sigma=sigma, radiation="neutron", name="n")
    layers = {"hk0": np.s_[:, :, 3], "h0l": np.s_[:, 5], "0kl": np.s_[4], "hk-1": np.s_[:, :, 1], "1.5kl": np.s_[7]}
    for name, index in layers.items():
        cut = v.plane(name)
        assert np.array_equal(cut.data, v.data[index], equal_nan=True)
        assert np.array_equal(cut.mask, v.mask[index])
        assert cut.sigma[cut.mask] == pytest.approx(v.sigma[index][cut.mask])
        assert (cut.lattice, cut.radiation, cut.name) == (v.lattice, "neutron", "n")
        assert cut.history == (f"plane {name}",)
        same = DiffuseVolume(data[index], *(0 if i is None else i for i in _hkl_axes(name, axes)), TRI)
        assert cut.q() == pytest.approx(same.q(), abs=1e-7)
    diagonal = v.plane("hhl")
    for i, h in enumerate(diagonal.axes[0]):
        assert np.array_equal(diagonal.data[i], v.data[np.argmin(abs(axes[0] - h)), np.argmin(abs(axes[1] - h))], equal_nan=True)
    assert diagonal.axes[0][[0, -1]].tolist() == [-2, 2]


def _hkl_axes(name, axes):
    token = {"hk0": (axes[0], axes[1], 0), "h0l": (axes[0], 0, axes[2]), "0kl": (0, axes[1], axes[2])}
    return {**token, "hk-1": (axes[0], axes[1], -1), "1.5kl": (1.5, axes[1], axes[2])}[name]


@pytest.mark.parametrize("name", ["hk0.53", "0.77kl", "hhl", "-hhl", "(h,-2h,l)", "hkk", "(h, 0.3h, l)"])
def test_planes_between_the_grid_interpolate_linearly(name):
    v = linear(flat_volume(17, lattice=TRI))
    cut = v.plane(name)
    inside = cut.mask & (np.abs(cut.hkl()).max(axis=-1) <= 2)
    assert inside.sum() > 0.6 * cut.data.size
    assert cut.data[inside] == pytest.approx(cut.hkl()[inside] @ [1.0, -2.0, 0.5] + 3, abs=0.02)


@pytest.mark.parametrize(
    ("lattice", "normal"), [(CUB, (1, 1, 1)), (CUB, (0, 0, 1)), (HEX, (1, 0, 0)), (TRI, (1, 1, 0.3)), (HEX, (1, 1, 2))]
)
def test_plane_by_normal_is_perpendicular(lattice, normal):
    v = linear(flat_volume(21, lattice=lattice))
    cut = v.plane(normal=normal, offset=0.4)
    g = np.array(normal) @ v.reciprocal_basis()
    assert (cut.q_vectors() @ g) / (g @ g) == pytest.approx(0.4)
    inside = cut.mask & (np.abs(cut.hkl()).max(axis=-1) <= 2)
    assert cut.data[inside] == pytest.approx(cut.hkl()[inside] @ [1.0, -2.0, 0.5] + 3, abs=0.02)
    if lattice == CUB:
        assert np.array_equal(cut.basis, cut.basis.round()), "small whole indices where there are such"


def test_interpolation_minds_the_mask():
    v = linear(flat_volume(9, 2.0), (0, 0, 1.0))  # layers at l = 0.5
    mask = np.ones(v.shape, dtype=bool)
    mask[:, :, 5] = False
    v = v.replace(mask=mask, sigma=np.full(v.shape, 2.0))
    assert v.plane("hk0.2").data == pytest.approx(3.0), "only the layer at 0 is left, with more than half of the weight"
    with pytest.raises(DataError, match="holds no measured pixel"):
        v.plane("hk0.3")
    with pytest.raises(DataError, match="holds no measured pixel"):
        v.plane("hk0.5")
    assert v.plane("hk-0.25").sigma == pytest.approx(np.sqrt(2))


def test_thickness():
    v = linear(flat_volume(17), (0, 0, 1.0)).replace(sigma=np.full((17, 17, 17), 3.0))
    thick = v.plane("hk0.25", thickness=0.5)
    assert thick.data == pytest.approx(3.25)
    assert thick.sigma == pytest.approx(3 / np.sqrt(3)), "three layers"
    assert thick.history[-1] == "plane hk0.25, thickness 0.5"
    slanted = linear(flat_volume(17)).plane("hhl", thickness=0.4)
    assert slanted.data[8, 8] == pytest.approx(3.0)
    mask = np.ones(v.shape, dtype=bool)
    mask[3, 4, 7:9] = False  # two of three layers
    assert not v.replace(mask=mask).plane("hk0.0", thickness=0.5).mask[3, 4]


BAD_PLANES = [
    ({}, "exactly one of the two"),
    ({"name": "hk0", "normal": (0, 0, 1)}, "exactly one of the two"),
    ({"name": "hk0", "offset": 1}, "write it as an index"),
    ({"name": "hk9"}, "plane hk9 does not cut this volume"),
    ({"normal": (0, 0, 0)}, "not all zero"),
    ({"normal": (1, 2)}, "expected three indices"),
    ({"normal": (0, 0, 1), "offset": 8}, "does not cut"),
    ({"name": "hk0", "thickness": -1}, "expected 0 or a positive width"),
    ({"name": "hk0", "thickness": "thin"}, "thickness is 'thin'"),
]


@pytest.mark.parametrize(("kwargs", "message"), BAD_PLANES)
def test_bad_planes(kwargs, message):
    with pytest.raises(DataError, match=message):
        flat_volume(5).plane(**kwargs)


# -- ΔPDF ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", ["gaussian", "hann", None])
def test_delta_pdf_of_short_range_order_is_alpha(window):
    """S = 1 + Σ α cos(2π hkl·R) over both signs of R: the ΔPDF at R is α, with its sign."""
    h, k = np.linspace(-3, 3, 91), np.linspace(-4, 4, 101)
    x, y = np.meshgrid(h, k, indexing="ij")
    s = 1 + 2 * 0.2 * np.cos(2 * np.pi * x) - 2 * 0.1 * np.cos(2 * np.pi * (x + 2 * y))
    truth = {(1, 0): 0.2, (-1, 0): 0.2, (1, 2): -0.1, (-1, -2): -0.1, (1, -2): 0, (2, 0): 0, (0, 0): 0}
    for axes in [(h, k, 0.0), (h, 0.25, k)]:
        pdf = DiffuseVolume(s, *axes, HEX).delta_pdf(window=window)
        slack = 0.02 if window is None else 0.002
        for vector, alpha in truth.items():
            assert pdf.at(vector) == pytest.approx(alpha, abs=slack)
        assert pdf.data == pytest.approx(pdf.data[::-1, ::-1], abs=1e-12)
        assert all(np.isclose(axis, 1).any() for axis in pdf.axes)


def test_delta_pdf_equals_the_direct_sum():
    rng = np.random.default_rng(0)
    axes = [np.linspace(-1.3, 0.9, 9), np.linspace(0, 2, 6), np.linspace(-1, 1, 5)]
    v = DiffuseVolume(rng.normal(size=(9, 6, 5)), *axes, TRI, mask=rng.random((9, 6, 5)) > 0.3)
    pdf = v.delta_pdf(window=None, finer=2)
    values = v.data[v.mask] - v.data[v.mask].mean()
    for index in [(3, 2, 1), (0, 0, 0), tuple(n - 1 for n in pdf.shape)]:
        u = np.array([axis[i] for axis, i in zip(pdf.axes, index, strict=True)])
        direct = np.mean(values * np.cos(2 * np.pi * (v.hkl()[v.mask] @ u)))
        assert pdf.data[index] == pytest.approx(direct, abs=1e-12)
    assert pdf.data[tuple(n // 2 for n in pdf.shape)] == pytest.approx(0, abs=1e-12), "the mean is gone"


def test_density_of_a_gaussian():
    """∫ exp(-Q²s²/2) cos(Q·r) d³Q / (2π)³ = exp(-r²/2s²) / (2π s²)^(3/2)."""
    s, lattice = 0.9, (5, 6, 7, 80, 95, 110)
    axes = [np.linspace(-6, 6, 73)] * 3
    v = DiffuseVolume(np.zeros((73, 73, 73)), *axes, lattice)
    v = v.replace(data=np.exp(-0.5 * (v.q() * s) ** 2))
    pdf = v.delta_pdf(window=None)
    u = np.stack(np.meshgrid(*pdf.axes, indexing="ij"), axis=-1)
    r2 = np.einsum("...i,ij,...j", u, pdf.metric(), u)
    expected = np.exp(-r2 / (2 * s * s)) / (2 * np.pi * s * s) ** 1.5
    # the mean that was taken off is a spike at the origin, with the ripples of the box along the axes
    near = (r2 < 4) & (u != 0).all(axis=-1)
    assert near.sum() > 100
    assert pdf.density * pdf.data[near] == pytest.approx(expected[near], abs=2e-3 * expected.max())


def test_half_of_reciprocal_space_is_enough():
    """Friedel's law: the cosine transform of one half equals that of the whole."""
    h = np.linspace(-3, 3, 121)
    x, y = np.meshgrid(h, h, indexing="ij")
    s = 1 + 0.4 * np.cos(2 * np.pi * (x - y))
    whole = DiffuseVolume(s, h, h, 0, CUB)
    half = whole.replace(mask=x + y > 0)
    for vector in [(1, -1), (-1, 1), (1, 1), (0, 1)]:
        assert half.delta_pdf().at(vector) == pytest.approx(whole.delta_pdf().at(vector), abs=0.01)


def test_delta_pdf_object():
    axis = np.linspace(-2, 2, 21)
    plane = DiffuseVolume(np.random.default_rng(0).normal(size=(21, 21)), axis, axis, 0, HEX, name="p")
    pdf = plane.delta_pdf(maximum=2)
    assert isinstance(pdf, DeltaPDF)
    assert max(axis.max() for axis in pdf.axes) <= 2
    # the projection along c of a hexagonal lattice: 120° and the lengths of a and b
    assert pdf.metric() == pytest.approx(np.array([[25, -12.5], [-12.5, 25]]))
    assert np.isnan(pdf.at((9, 9)))
    assert not pdf.data.flags.writeable
    assert "DeltaPDF 'p'" in repr(pdf)
    assert "<table>" in pdf._repr_html_()
    assert DiffuseVolume.from_pixels(np.eye(8)).delta_pdf().density is None


# -- bad input -----------------------------------------------------------------------------------------------------

BAD = {
    "punch pixels": (lambda v, p: p.punch_bragg(), "from_pixels"),
    "punch radius": (lambda v, p: v.punch_bragg(-1), "radius is -1; expected a positive number"),
    "punch text": (lambda v, p: v.punch_bragg("big"), "radius is 'big'"),
    "punch sphere": (lambda v, p: v.punch_bragg(0, units="inv_angstrom"), "radius is 0"),
    "punch all": (lambda v, p: v.punch_bragg(3), "masks every measured pixel"),
    "centring": (lambda v, p: v.punch_bragg(centring="X"), "centring is 'X', expected one of P, A"),
    "units": (lambda v, p: v.punch_bragg(units="px"), "units is 'px'"),
    "extra": (lambda v, p: v.punch_bragg(extra=[(1, 2)]), "extra is no list"),
    "background": (lambda v, p: v.subtract_background("flat"), "background is 'flat'"),
    "background shape": (lambda v, p: v.subtract_background(np.zeros(3)), "background has the shape"),
    "background NaN": (lambda v, p: v.subtract_background(np.full(v.shape, np.nan)), "NaN everywhere"),
    "background pixels": (lambda v, p: v.subtract_background(p), "must both have a lattice"),
    "background elsewhere": (
        lambda v, p: v.subtract_background(DiffuseVolume(np.ones((2, 2, 2)), [8, 9], [8, 9], [8, 9], CUB)), "does not overlap"
    ),
    "scale": (lambda v, p: v.subtract_background(scale="x"), "scale is 'x'"),
    "quantile": (lambda v, p: v.subtract_background(quantile=1.5), "between 0 and 1"),
    "smooth": (lambda v, p: v.subtract_background(smooth=0), "smooth is 0"),
    "factors": (lambda v, p: v.rebin(0), "factors is 0"),
    "factors float": (lambda v, p: v.rebin(1.5), "factors is 1.5"),
    "factors number": (lambda v, p: v.rebin((2, 2)), "or 3, one per axis"),
    "factors large": (lambda v, p: v.rebin(9), "two blocks remain"),
    "plane of plane": (lambda v, p: p.plane("hk0"), "expects a 3-D one"),
    "window": (lambda v, p: v.delta_pdf(window="box"), "window is 'box'; expected one of 'gaussian', 'hann', None"),
    "finer": (lambda v, p: v.delta_pdf(finer=0), "finer is 0"),
    "maximum": (lambda v, p: v.delta_pdf(maximum=-1), "maximum is -1"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, message = BAD[case]
    with pytest.raises(DataError, match=message) as caught:
        call(flat_volume(11), DiffuseVolume.from_pixels(np.ones((5, 5))))
    assert "\n" not in str(caught.value)


def test_originals_are_untouched():
    before = np.random.default_rng(0).normal(size=(21, 21, 21))
    volume = DiffuseVolume(before, *[np.linspace(-2, 2, 21)] * 3, CUB)
    before = volume.data.copy()
    done = volume.symmetrize("m-3m").punch_bragg(0.1).subtract_background().rebin(2).plane("hk0")
    assert np.array_equal(volume.data, before, equal_nan=True)
    assert [entry.split("(")[0].split()[0] for entry in done.history] == [
        "symmetrize", "punch_bragg", "subtract_background", "rebin", "plane"
    ]  # fmt: skip
