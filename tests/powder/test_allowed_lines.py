"""Scores of lattices with absent lines in mind, and what keeps impossible or superfluous lattices out of the trials."""

from __future__ import annotations

import numpy as np
import pytest

from crystaldl.physics.symmetry import extinction_of_group, space_group
from crystaldl.powder.frequencies import extinction_shares, group_shares
from crystaldl.powder.indexing import trials as trials_module
from crystaldl.powder.indexing.allowed_lines import NEIGHBOURHOOD, _nearest_allowed, allowed_score, multiplicity
from crystaldl.powder.indexing.bravais import cell_of, derivative_index, metric_of, niggli_cell, shortest_vector
from crystaldl.powder.indexing.pools import FLOORS, PRICE, TAIL, IndexOptions, LineTable, Pool
from crystaldl.powder.indexing.search_kernels import LATTICES, SHORTEST, _shortest
from crystaldl.powder.indexing.sieve import make_sieve
from crystaldl.powder.indexing.trials import trial_lattices
from crystaldl.powder.prepare import REFERENCE_WAVELENGTH, common_axis

OPTIONS = IndexOptions(impurities=3.0)


def lines_of_group(number: int, cell, count: int, sigma: float = 0.004, seed: int = 0) -> LineTable:
    """The first lines that a space group allows in its standard setting."""
    g = metric_of(cell)
    axis = np.arange(-9, 10)
    hkl = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), -1).reshape(-1, 3).astype(np.int32)
    hkl = hkl[np.abs(hkl).sum(1) > 0]
    absent = np.asarray(space_group(number).operations().systematic_absences(hkl), bool)
    h, k, l = hkl[~absent].T
    q2 = h * h * g[0] + k * k * g[1] + l * l * g[2] + k * l * g[3] + h * l * g[4] + h * k * g[5]
    x = 2 * np.degrees(np.arcsin(np.clip(np.sqrt(q2) * REFERENCE_WAVELENGTH / 2, 0, 1)))
    x = np.unique(x.round(3))[:count]
    x = x + np.random.default_rng(seed).normal(0, sigma, x.size)
    return LineTable(x, np.full(x.size, sigma), np.ones(x.size), REFERENCE_WAVELENGTH, np.arange(x.size))


@pytest.mark.parametrize(
    ("number", "lattice", "cell"),
    [
        (230, "cI", (12.0, 12.0, 12.0, 90, 90, 90)),
        (61, "oP", (5.19, 8.81, 10.23, 90, 90, 90)),
        (142, "tI", (13.7, 13.7, 11.2, 90, 90, 90)),
        (192, "hP", (9.21, 9.21, 9.6, 90, 90, 120)),
        (14, "mP", (7.6, 5.1, 11.2, 90, 105.6, 90)),
        (221, "cP", (3.9, 3.9, 3.9, 90, 90, 90)),
    ],
)
def test_the_true_extinction_group_is_the_most_likely(number, lattice, cell):
    lines = lines_of_group(number, cell, 24)
    score, groups = allowed_score(lattice, metric_of(cell), 0.0, lines, OPTIONS)
    own = int(extinction_of_group()[number - 1])
    assert groups[own] == 0.0, "no group explains the lines better than the true one"
    # no more than a few groups may be as good, those that extinguish the same lines in the range
    assert sum(v > -1.0 for v in groups.values()) <= 3
    assert np.isfinite(score) and score > 0


def test_absent_lines_speak_for_their_lattice():
    """A garnet's lines fit a cell of a quarter of the volume nearly as well; its absences tell."""
    lines = lines_of_group(230, (12.0, 12.0, 12.0, 90, 90, 90), 14)
    with_absences, _ = allowed_score("cI", metric_of((12.0, 12.0, 12.0, 90, 90, 90)), 0.0, lines, OPTIONS)
    everything = lines_of_group(229, (12.0, 12.0, 12.0, 90, 90, 90), 14)
    plain, _ = allowed_score("cI", metric_of((12.0, 12.0, 12.0, 90, 90, 90)), 0.0, everything, OPTIONS)
    assert with_absences > plain, "fewer lines were to be expected, so each hit counts more"


def test_score_by_hand():
    """One group, one line after the other: the formula of the module, written out."""
    cell = (5.0, 6.0, 7.0, 80.0, 85.0, 95.0)
    lines = lines_of_group(2, cell, 12)
    score, groups = allowed_score("aP", metric_of(cell), 0.0, lines, OPTIONS)
    g = metric_of(cell)
    axis = np.arange(-9, 10)
    h, k, l = (v.ravel() for v in np.meshgrid(axis, axis, axis, indexing="ij"))
    half = (h > 0) | ((h == 0) & (k > 0)) | ((h == 0) & (k == 0) & (l > 0))
    h, k, l = h[half], k[half], l[half]
    q2 = np.sort(h * h * g[0] + k * k * g[1] + l * l * g[2] + k * l * g[3] + h * l * g[4] + h * k * g[5])
    best = -np.inf
    for floor in FLOORS:
        q, sigma, weight, _ = lines.table(floor).T
        top = 1.05 * q[-1]
        total = -PRICE * 6
        for qi, si, wi in zip(q, sigma, weight, strict=True):
            low, high = qi * (1 - NEIGHBOURHOOD), min(qi * (1 + NEIGHBOURHOOD), top)
            density = (((q2 > low) & (q2 < high)).sum() + 1) / (high - low)
            x = np.abs(q2 - qi).min() / si
            hit = (1 - TAIL) * np.exp(-x * x / 2) + TAIL / 3 * np.exp(-x * x / 18)
            hit /= np.sqrt(2 * np.pi) * si * density
            total += wi * np.log(OPTIONS.lost + (1 - OPTIONS.lost) * hit)
        best = max(best, total)
    assert groups == {0: 0.0}
    assert score == pytest.approx(best, abs=1e-6)


@pytest.mark.parametrize(
    ("lattice", "hkl", "expected"),
    [
        ("cF", [(1, 1, 1), (2, 0, 0), (2, 2, 0), (1, 2, 3)], [8, 6, 12, 48]),
        ("hP", [(1, 0, 0), (0, 0, 2), (1, 1, 0), (2, 1, 3)], [6, 2, 6, 24]),
        ("hR", [(1, 0, 4), (1, 1, 0), (0, 0, 3), (2, 1, 4)], [6, 6, 2, 12]),
        ("tI", [(1, 1, 0), (0, 0, 2), (1, 2, 3)], [4, 2, 16]),
        ("mC", [(0, 2, 0), (1, 1, 1), (2, 0, 1)], [2, 4, 2]),
        ("aP", [(1, 0, 0), (1, -2, 3)], [2, 2]),
    ],
)
def test_multiplicities_of_the_tables(lattice, hkl, expected):
    assert multiplicity(lattice, np.array(hkl)).tolist() == expected


def test_a_cell_that_only_looks_cubic_pays_for_its_freedom():
    cell = (4.12, 4.12, 4.12, 90, 90, 90)
    lines = lines_of_group(221, cell, 12)
    cubic, tetragonal, orthorhombic = (
        allowed_score(name, metric_of(cell), 0.0, lines, OPTIONS)[0] for name in ("cP", "tP", "oP")
    )
    assert cubic > tetragonal + 4.0 > orthorhombic + 8.0


def test_nearest_allowed():
    position = np.array([1.0, 1.1, 2.0])
    allowed = np.array([[True, True, True], [True, False, True]])
    out = _nearest_allowed(np.array([1.09, 2.5]), position, allowed, np.array([0.2, 0.2]))
    assert out[0] == pytest.approx([0.01, np.inf]) and out[1] == pytest.approx([0.09, np.inf])


def test_shares_are_of_all_groups():
    assert group_shares().sum() == pytest.approx(1) and (group_shares() > 0).all()
    assert extinction_shares().sum() == pytest.approx(1) and extinction_shares().shape == (99,)


@pytest.mark.parametrize("name", LATTICES)
def test_shortest_vector_is_that_of_the_reduced_cell(name):
    rng = np.random.default_rng(3)
    for _ in range(40):
        a, b, c = rng.uniform(2.0, 14.0, 3)
        a, b, c = {"c": (a, a, a), "t": (a, a, c), "h": (a, a, c)}.get(name[0], (a, b, c))
        cell = (a, b, c, 90.0, rng.uniform(90, 118) if name[0] == "m" else 90.0, 120.0 if name[0] == "h" else 90.0)
        g = metric_of(cell)
        expected = niggli_cell(cell, name[1])[0]
        assert shortest_vector(g[None], [name])[0] == pytest.approx(expected, rel=1e-9)
        compiled = np.sqrt(_shortest(np.array([g[0], g[1], g[2], g[4]]), LATTICES.index(name)))
        assert compiled == pytest.approx(expected, rel=1e-9)


def test_cells_that_no_crystal_has_are_left_out():
    lines = lines_of_group(221, (3.9, 3.9, 3.9, 90, 90, 90), 12)
    cells = np.array([metric_of((a, a, a, 90, 90, 90)) for a in (3.9, 1.95)])
    pool = Pool(cells, np.zeros(2), np.array(["cP", "cP"]), np.zeros(2))
    kept = pool.improve(lines, OPTIONS, (0.012, 0.008), 3.0, 4)
    assert len(kept) == 1 and cell_of(kept.g)[0, 0] == pytest.approx(3.9, abs=0.01)
    assert SHORTEST < 2.28, "beryllium has a = 2.286 Å"


def test_superlattices_that_explain_no_more_are_no_trials(monkeypatch):
    """Rutile's lines are those of many cells of two to six times its volume, too."""
    lines = lines_of_group(136, (4.40, 4.40, 2.87, 90, 90, 90), 20)
    q = 2 * np.sin(np.radians(lines.two_theta / 2)) / REFERENCE_WAVELENGTH
    peaks = np.stack([np.log(q), np.linspace(0, -1.5, q.size), np.full(q.size, 4.5), np.full(q.size, 1.8)], 1)
    true = niggli_cell((4.40, 4.40, 2.87, 90, 90, 90))
    axis = common_axis()
    y = sum(np.exp(h - 0.5 * ((axis - x) / 0.05) ** 2) for x, h in zip(lines.two_theta, peaks[:, 1], strict=True))
    y = y + np.random.default_rng(0).normal(0, 0.003, axis.size)
    sieve = make_sieve(y, np.ones(axis.size), peaks, 0.0)

    def multiples() -> list[int]:
        _, trials = trial_lattices(peaks, lambda: sieve)
        best = max((own[0] for own in trials.found.values()), key=lambda t: t.allowed)
        assert best.bravais == "tP" and np.allclose(niggli_cell(cell_of(best.metric)), true, rtol=0.003)
        same = [t for name, own in trials.found.items() for t in own if name[0] == "t"]
        return [derivative_index(niggli_cell(cell_of(t.metric), t.bravais[1]), true) for t in same]

    assert not any(multiples())
    monkeypatch.setattr(trials_module, "WORTH", -1e9)
    assert any(multiples()), "without the rule there are some"
