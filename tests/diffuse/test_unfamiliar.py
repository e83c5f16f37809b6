"""Planes as other programs and users make them: off the centre, supercells, conventional cells, zeros for what was not measured.

Everything is made here from sums over atoms and cosines, with none of the package's own simulators.
"""
from __future__ import annotations

import numpy as np
import pytest

from crystaldl.diffuse.blank import blank_pixels
from crystaldl.diffuse.factorise import centring
from crystaldl.diffuse.factorise.centring import centred_lattices
from crystaldl.diffuse.factorise.unknowns import RESOLVED, SAME, arrays_of, finest, order_functions, shortest_vector
from crystaldl.diffuse.geometry import plane_lattice
from crystaldl.diffuse.separate import separate
from crystaldl.diffuse.volume import DiffuseVolume

CELL = (7.2, 7.2, 7.0, 90, 90, 90)
FIRST = np.array([[0.0, 0.0], [1.9, 0.4], [-1.1, 1.6], [0.6, -2.2]])
SECOND = np.array([[0.1, 0.2], [-1.7, 0.9], [1.5, 1.3], [-0.3, -2.3]])


def factor(q, first=FIRST, second=SECOND):
    """|ΔF|² of two sets of equal atoms, Q (..., 2) in Å⁻¹."""
    amplitude = np.exp(1j * q @ first.T).sum(-1) - np.exp(1j * q @ second.T).sum(-1)
    return 30.0 * np.abs(amplitude) ** 2 * np.exp(-0.05 * np.square(q).sum(-1))


def mean_field(x, y, vectors):
    """S = C / (1 + Σ 2 V cos), mean 1 over the cell, indices x and y."""
    def plain(u, v):
        return 1.0 / (1.0 + 2.0 * sum(e * np.cos(2 * np.pi * (u * r + v * s)) for (r, s), e in vectors.items()))

    grid = np.arange(96) / 48.0
    return plain(x, y) / plain(*np.meshgrid(grid, grid, indexing="ij")).mean()


def plane(h, k, vectors, cell=CELL, **atoms):
    """A plane hk0 with its D and S."""
    x, y = np.meshgrid(h, k, indexing="ij")
    d = factor(2 * np.pi * np.stack([x / cell[0], y / cell[1]], -1), **atoms)
    s = mean_field(x, y, vectors)
    return DiffuseVolume(d * s, h, k, 0.0, cell), d, s


ORDER = {(1, 0): 0.2, (0, 1): 0.15, (1, 1): 0.06, (1, -1): 0.04}


def close(parts, d, s, *, rms, correlation=0.9999, where=np.s_[:]):
    assert np.corrcoef(parts.sro.data[where].ravel(), s[where].ravel())[0, 1] > correlation
    assert np.sqrt(np.mean((parts.form_factor.data - d)[where] ** 2) / np.mean(d[where] ** 2)) < rms


@pytest.mark.parametrize(("h", "k"), [((-1.3, 4.2), (-3.0, 2.4)), ((0.5, 5.1), (0.4, 4.6))])
def test_a_plane_off_the_centre(h, k):
    """An even D repeats its mirror image, which must find room beside the data."""
    volume, d, s = plane(np.linspace(*h, 84), np.linspace(*k, 80), ORDER)
    close(separate(volume, progress=False), d, s, rms=0.01)


def test_room_for_the_mirror_image():
    volume, _, _ = plane(np.linspace(-1.0, 4.0, 60), np.linspace(-2.0, 2.0, 50), ORDER)
    arrays = arrays_of(volume, plane_lattice(volume), "cpu")
    assert arrays.even[0] and arrays.grid.divisions == (10, 6)
    volume, _, _ = plane(np.linspace(1.0, 6.0, 60), np.linspace(1.0, 5.0, 50), ORDER)
    arrays = arrays_of(volume, plane_lattice(volume), "cpu")
    assert not arrays.even[0] and max(arrays.grid.divisions) < 8


def test_one_atom_for_another():
    """The Patterson function of a single atom is narrow: a wide support would take modulations from S."""
    cell, one, none = (3.8, 3.8, 3.8, 90, 90, 90), np.zeros((1, 2)), np.zeros((0, 2))
    volume, d, s = plane(np.linspace(-3, 3, 97), np.linspace(-3, 3, 97), ORDER, cell, first=one, second=none)
    counts = np.random.default_rng(3).poisson(d * s * 20.0) / 20.0
    close(separate(volume.replace(data=counts), progress=False), d, s, rms=0.03, correlation=0.999)


def test_a_conventional_cell_of_a_centred_lattice():
    order = {(0.5, 0.5): 0.13, (0.5, -0.5): 0.13, (0.5, 0.0): 0.2, (0.0, 0.5): 0.2, (1.0, 0.0): -0.04, (0.0, 1.0): -0.04}
    cell, atoms = (10.1, 10.1, 10.1, 90, 90, 90), {"first": 1.1 * FIRST, "second": 1.1 * SECOND}
    volume, d, s = plane(np.linspace(-5, 5, 121), np.linspace(-5, 5, 121), order, cell, **atoms)
    volume = volume.replace(data=np.random.default_rng(4).poisson(d * s * 4.0) / 4.0)
    found = separate(volume, progress=False)
    close(found, d, s, rms=0.03, correlation=0.998)
    assert found.centring == "F"


def test_a_primitive_lattice_stays_primitive(monkeypatch):
    volume, d, s = plane(np.linspace(-2, 2, 61), np.linspace(-2, 2, 61), ORDER)
    volume = volume.replace(data=np.random.default_rng(5).poisson(d * s * 3.0) / 3.0)
    assert separate(volume, progress=False).centring == "P"
    monkeypatch.setattr("crystaldl.diffuse.separate.factorise_centred", None)       # not asked where the centring is given
    assert separate(volume, centring="P", background=0, links=("linear",), progress=False).centring == "P"


def test_a_centring_that_falls_behind_is_given_up(monkeypatch):
    """A brief fit may like another lattice by chance; the full one is not made where the search already says no."""
    volume, d, s = plane(np.linspace(-2, 2, 61), np.linspace(-2, 2, 61), ORDER)
    volume = volume.replace(data=np.random.default_rng(5).poisson(d * s * 3.0) / 3.0)
    asked, whole, brief = [], [], centring.coarse_fit

    def liked(own, lattice, *rest, **options):
        if not options.get("whole"):
            asked.append(lattice)
            return float(len(asked)), lattice.nodes
        whole.append(brief(own, lattice, *rest, **options)[0])
        return whole[-1], lattice.nodes

    monkeypatch.setattr(centring, "promising", lambda *_: True)
    monkeypatch.setattr(centring, "coarse_fit", liked)
    monkeypatch.setattr(centring, "factorise", None)
    parts = separate(volume, links=("linear",), background=0, progress=False)
    assert parts.centring == "P" and len(asked) > 1 and len(whole) == 1
    close(parts, d, s, rms=0.2, correlation=0.99)


def test_a_centring_without_order_of_its_own_is_none(monkeypatch):
    """Where nothing is ordered along the vectors that it adds, S repeats on the primitive lattice too, whatever the evidence."""
    volume, d, s = plane(np.linspace(-2, 2, 61), np.linspace(-2, 2, 61), ORDER)
    volume = volume.replace(data=np.random.default_rng(5).poisson(d * s * 3.0) / 3.0)
    monkeypatch.setattr(centring, "promising", lambda *_: True)
    monkeypatch.setattr(centring, "_keeps_up", lambda *_: True)
    monkeypatch.setattr(centring, "SUPPORT_GAIN", -1e9)
    monkeypatch.setattr(centring, "coarse_fit", lambda own, lattice, *_: (-np.linalg.det(lattice.nodes), lattice.nodes))
    parts = separate(volume, links=("linear",), background=0, progress=False)
    assert parts.centring == "P"
    close(parts, d, s, rms=0.2, correlation=0.99)


def test_centrings_that_a_plane_tells_apart():
    def names(plane_, cell):
        axes = {"h": np.linspace(-3, 3, 31), "k": np.linspace(-3, 3, 31), "l": np.linspace(-3, 3, 31)} | plane_
        volume = DiffuseVolume(np.ones((31, 31)), axes["h"], axes["k"], axes["l"], cell)
        return list(centred_lattices(volume, plane_lattice(volume)))

    # hk0: C and I both have h + k even; A has k even, B h even, F both
    assert names({"l": 0.0}, CELL) == ["C", "A", "B", "F"]
    assert names({"l": 0.0}, (7.0, 7.0, 9.0, 90, 90, 120)) == ["C", "A", "B", "F", "R"]
    assert "R" not in names({"l": 0.0}, (7.0, 7.1, 9.0, 90, 90, 120))


def test_a_supercell_is_rough_but_repeats():
    """|Σ x exp|² of a random arrangement: its S has detail up to the size of the supercell, the same in all zones."""
    n, zones = 16, 3
    rng = np.random.default_rng(6)
    x = (rng.random((24, n, n)) < 0.5).astype(float)
    x -= x.mean((1, 2), keepdims=True)
    power = np.square(np.abs(np.fft.fft2(x))).mean(0)
    h = np.arange(-zones * n, zones * n + 1)
    s = (power / power.mean())[np.ix_(h % n, h % n)]
    gx, gy = np.meshgrid(h / n, h / n, indexing="ij")
    d = factor(2 * np.pi * np.stack([gx / CELL[0], gy / CELL[1]], -1))
    parts = separate(DiffuseVolume(d * s, h / n, h / n, 0.0, CELL), progress=False)
    clear = (h[:, None] % n != 0) | (h[None] % n != 0)       # at the nodes the composition is fixed: S = 0 there
    close(parts, d, s, rms=0.03, correlation=0.999, where=clear)
    assert parts.r_factor < 0.01


def test_zones_that_fall_alike_on_the_pixels():
    """With a whole number of pixels a zone, order vectors beyond half a cycle a pixel are those before it once more."""
    def made(step):
        volume, _, _ = plane(step * np.arange(-30, 31), step * np.arange(-30, 31), ORDER)
        return arrays_of(volume, plane_lattice(volume), "cpu")

    assert finest(made(0.1)) == pytest.approx(SAME) and finest(made(0.0913)) == RESOLVED
    order = order_functions(made(0.1), 1000.0)[0][0]
    assert int(order.abs().max()) == 5


def test_shortest_vector():
    volume, _, _ = plane(np.linspace(-3, 3, 61), np.linspace(-3, 3, 61), ORDER, (9.0, 5.0, 7.0, 90, 90, 90))
    assert shortest_vector(arrays_of(volume, plane_lattice(volume), "cpu")) == pytest.approx(5.0)
    volume = DiffuseVolume(volume.data, *volume.axes, 0.0, (9.0, 9.0, 7.0, 90, 90, 60))
    assert shortest_vector(arrays_of(volume, plane_lattice(volume), "cpu")) == pytest.approx(9.0)


def test_zeros_for_what_was_not_measured():
    volume, d, s = plane(np.linspace(-3, 3, 85), np.linspace(-3, 3, 85), ORDER)
    x, y = np.meshgrid(*volume.axes, indexing="ij")
    stop = (np.hypot(x, y) < 0.6) | (np.hypot(x, y) > 3.4) | (np.abs(x - 1.5) < 0.1)
    data = np.where(stop, 0.0, d * s)
    with pytest.warns(UserWarning, match=f"{int(stop.sum())} pixels lie in areas"):
        parts = separate(volume.replace(data=data), progress=False)
    assert np.array_equal(parts.measured.mask, ~stop) and not parts.used[stop].any()
    close(parts, d, s, rms=0.01, where=~stop)


@pytest.mark.parametrize("peak", [2.0, 20.0])
def test_few_counts_are_no_blank_area(peak):
    """Most pixels of a weak measurement are zeros, and dark ones lie together; so do saturated ones of another kind of data."""
    volume, d, s = plane(np.linspace(-3, 3, 85), np.linspace(-3, 3, 85), ORDER)
    counts = np.random.default_rng(7).poisson(d * s * peak / (d * s).max()).astype(float)
    assert (counts == 0).sum() > 500
    assert not blank_pixels(volume.replace(data=counts)).any()


def test_blank_areas_of_another_value_and_as_told():
    volume, d, s = plane(np.linspace(-3, 3, 61), np.linspace(-3, 3, 61), ORDER)
    data = d * s
    data[10:20, 12:30] = -1.0
    assert blank_pixels(volume.replace(data=data)).sum() == 180
    assert blank_pixels(volume.replace(data=data, mask=data > 0)).sum() == 0
    told = separate(volume.replace(data=data), blank=False, background=0, links=("linear",), centring="P", progress=False)
    assert told.used.all()


def test_order_that_is_zero_in_a_part_of_the_cell():
    """Clipped at zero, as simulations do; the zeros are dark order where they repeat, and a gap where they do not."""
    axis = np.linspace(-3, 3, 85)
    volume, d, _ = plane(axis, axis, ORDER)
    x, y = np.meshgrid(axis, axis, indexing="ij")
    s = np.clip(1.0 + 1.1 * np.cos(2 * np.pi * x) + 0.8 * np.cos(2 * np.pi * y) + 0.3 * np.cos(2 * np.pi * (x + y)), 0.0, None)
    gap = np.abs(volume.axes[0] - 1.3)[:, None] + 0 * d < 0.15
    data = np.where(gap, 0.0, d * s)
    assert 0.1 < (s == 0).mean() < 0.5
    with pytest.warns(UserWarning, match="areas of exactly one value"):
        parts = separate(volume.replace(data=data), progress=False)
    dark = (s == 0) & ~gap
    assert (parts.measured.mask & dark).sum() > 0.75 * dark.sum()
    assert not (parts.measured.mask & gap & (s > 0.2)).any()
    assert parts.link == "positive" and parts.sro.data.min() >= 0.0
    assert np.corrcoef(parts.sro.data.ravel(), s.ravel())[0, 1] > 0.9995
    assert np.corrcoef(parts.form_factor.data.ravel(), d.ravel())[0, 1] > 0.999
