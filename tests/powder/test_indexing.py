"""The lattice search: its tables, its kernels against brute force, and textbook cells from synthetic peak lists."""

from __future__ import annotations

import time

import gemmi
import numpy as np
import pytest

from crystaldl.physics.lattice import cell_volume, inverse_d
from crystaldl.physics.symmetry import space_group
from crystaldl.powder.indexing.bravais import cell_of
from crystaldl.powder.indexing.quick_search import lattice_scores
from crystaldl.powder.indexing.search_kernels import (
    _CENTRING,
    _SYSTEM,
    EPSILON,
    LATTICES,
    MARGIN,
    _distance,
    _falling,
    _hopeful,
    _nearest,
    _score,
    _settings,
    _volume,
)
from crystaldl.powder.indexing.trial_indices import CODES_O, PAIRS_H, PAIRS_T, THIRDS_C, THIRDS_P, ZONES_M
from crystaldl.powder.indexing.trials import metric_of_search
from crystaldl.powder.indexing.zone_kernels import _reduce_zone, find_zones
from crystaldl.powder.prepare import REFERENCE_WAVELENGTH

ROWS = range(len(LATTICES))


# ------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize(("pairs", "count", "hexagonal"), [(PAIRS_T, 168, False), (PAIRS_H, 192, True)])
def test_pairs_are_indices_that_fix_a_cell(pairs, count, hexagonal):
    assert pairs.shape == (count, 4) and len(np.unique(pairs, axis=0)) == count
    assert (pairs[:, 0] * pairs[:, 3] != pairs[:, 1] * pairs[:, 2]).all()
    assert (np.diff(pairs.sum(1)) >= 0).all(), "simple indices come first"
    h, k = np.meshgrid(np.arange(9), np.arange(9))
    in_plane = set((h * h + k * k + hexagonal * h * k).ravel())
    assert set(pairs[:, [0, 2]].ravel()) <= in_plane
    assert set(pairs[:, [1, 3]].ravel()) <= {n * n for n in range(9)}


def test_orthorhombic_codes_invert_their_indices():
    assert CODES_O.shape == (810, 9)
    indices = np.linalg.inv(CODES_O.reshape(-1, 3, 3))
    assert np.abs(indices - indices.round()).max() < 1e-9
    assert set(np.unique(indices.round())) == {0.0, 1.0, 4.0}
    truth = np.array([0.013, 0.029, 0.041])
    assert np.einsum("nij,nj->ni", CODES_O.reshape(-1, 3, 3), indices @ truth) == pytest.approx(np.tile(truth, (810, 1)))
    # simple ones first, and no two that differ in the names of the axes alone
    assert (np.diff(indices.sum((1, 2))) > -1e-6).all()
    assert len({tuple(sorted(map(tuple, m.T))) for m in indices.round()}) == 810


def test_monoclinic_zones_invert_their_indices():
    assert ZONES_M.shape[1] == 9 and len(ZONES_M) >= 18
    indices = np.linalg.inv(ZONES_M.reshape(-1, 3, 3))
    h2, l2, hl = np.moveaxis(indices, -1, 0)
    assert np.abs(indices - indices.round()).max() < 1e-9
    assert hl**2 == pytest.approx(h2 * l2)
    assert (np.sqrt(h2).round() ** 2 == pytest.approx(h2)) and (h2 + l2 > 0).all()


def test_fourth_lines_fix_b():
    for thirds in (THIRDS_P, THIRDS_C):
        assert len(np.unique(thirds, axis=0)) == len(thirds) and (thirds[:, 1] > 0).all()


# ------------------------------------------------------------------------------------------ kernels


def random_cell(rng, row: int) -> np.ndarray:
    """(A, B, C, D) with edges of 3 to 9 Å, β* from 65 to 115°."""
    system = _SYSTEM[row]
    a, b, c = 1 / rng.uniform(3, 9, 3) ** 2
    if system == 0:
        return np.array([a, a, a, 0.0])
    if system < 3:
        return np.array([a, a, c, 0.0])
    return np.array([a, b, c, 0.0 if system == 3 else 2 * np.sqrt(a * c) * np.cos(np.radians(rng.uniform(65, 115)))])


def allowed(hkl, row: int) -> np.ndarray:
    h, k, l = hkl.T
    reverse = (-h + k + l) % 3 == 0, (h - k + l) % 3 == 0
    rules = {
        "P": h == h, "I": (h + k + l) % 2 == 0, "C": (h + k) % 2 == 0, "R": reverse[0] | reverse[1],
        "F": ((h + k) % 2 == 0) & ((k + l) % 2 == 0),
    }  # fmt: skip
    return rules[LATTICES[row][1]] & hkl.any(1)


def q2_of(hkl, cell, row: int) -> np.ndarray:
    h, k, l = hkl.T
    a, b, c, d = cell
    if LATTICES[row][0] == "h":
        return (h * h + h * k + k * k) * a + l * l * c
    return h * h * a + k * k * b + l * l * c + h * l * d


GRID = np.stack(np.meshgrid(*[np.arange(-10, 11)] * 3, indexing="ij"), -1).reshape(-1, 3)


@pytest.mark.parametrize("row", ROWS, ids=LATTICES)
def test_nearest_line_agrees_with_brute_force(row):
    rng = np.random.default_rng(row)
    compared = 0
    for _ in range(6):
        cell = random_cell(rng, row)
        all_lines = q2_of(GRID[allowed(GRID, row)], cell, row)
        for q in rng.uniform(0.02, 0.75, 40):
            brute = np.abs(all_lines - q).min()
            found, h, k, l = _nearest(q, cell, _SYSTEM[row], _CENTRING[row])
            assert found >= brute - 1e-12
            # lines beyond the reach of 6 % may be missed; of R lattices those further than two steps in l too
            if brute < 0.06 * q and (LATTICES[row] != "hR" or brute < cell[2]):
                assert found == pytest.approx(brute, abs=1e-12)
                hkl = np.array([[h, k, l]])
                assert allowed(hkl, row).all()
                assert abs(q2_of(hkl, cell, row)[0] - q) == pytest.approx(found, abs=1e-12)
                compared += 1
    assert compared > 60


def test_distance_in_a_rectangular_cell_agrees_with_brute_force():
    rng, row = np.random.default_rng(7), LATTICES.index("oP")
    for _ in range(10):
        cell = random_cell(rng, row)
        all_lines = q2_of(GRID, cell, row)
        for q in rng.uniform(0.02, 0.75, 40):
            assert _distance(q, _falling(cell)) == pytest.approx(np.abs(all_lines - q).min(), abs=1e-12)


@pytest.mark.parametrize("row", ROWS, ids=LATTICES)
def test_a_line_of_the_lattice_is_hit_exactly(row):
    rng = np.random.default_rng(100 + row)
    cell = random_cell(rng, row)
    hkl = GRID[allowed(GRID, row) & (np.abs(GRID).max(1) <= 4)]
    for q in q2_of(hkl[rng.choice(len(hkl), 60)], cell, row):
        assert _nearest(q, cell, _SYSTEM[row], _CENTRING[row])[0] < 1e-12


@pytest.mark.parametrize("row", ROWS, ids=LATTICES)
def test_volume_is_that_of_the_conventional_cell(row):
    rng = np.random.default_rng(row)
    for _ in range(20):
        cell = random_cell(rng, row)
        volume = cell_volume(cell_of(metric_of_search(LATTICES[row], cell)))
        assert _volume(cell, _SYSTEM[row]) == pytest.approx(volume, rel=1e-9)


def zone_lines(a, c, d, reach: int = 8) -> np.ndarray:
    h, l = np.meshgrid(np.arange(-reach, reach + 1), np.arange(-reach, reach + 1))
    return np.unique((h * h * a + h * l * d + l * l * c).ravel().round(10))


def random_zones(count: int = 30):
    rng = np.random.default_rng(0)
    for a, c in 1 / rng.uniform(3, 9, (count, 2)) ** 2:
        yield a, c, 2 * np.sqrt(a * c) * rng.uniform(-0.85, 0.85)


def test_reduced_zones_have_the_same_lines():
    for zone in random_zones():
        a, c, d = _reduce_zone(*zone)
        assert 0 <= d <= a + 1e-12 and a <= c
        assert a * c - d * d / 4 == pytest.approx(zone[0] * zone[1] - zone[2] ** 2 / 4)
        assert zone_lines(a, c, d)[:25] == pytest.approx(zone_lines(*zone, reach=25)[:25], abs=1e-9)
        assert _reduce_zone(a, c, d) == pytest.approx((a, c, d))


@pytest.mark.parametrize(("row", "shares"), [(11, [1, 2, 2, 2]), (12, [2, 2, 2, 4, 4, 4])])
def test_every_setting_of_a_zone_contains_its_lines(row, shares):
    """P cells show all lines of the zone h0l or, with a glide, half of them; C cells half or a quarter."""
    for zone in random_zones(10):
        a, c, d = _reduce_zone(*zone)
        wanted = zone_lines(a, c, d)[:12]
        settings = _settings(a, c, d, row)
        assert len(settings) == len(shares)
        for (aa, cc, dd), share in zip(settings, shares, strict=True):
            assert (a * c - d * d / 4) / (aa * cc - dd * dd / 4) == pytest.approx(share**2)
            lines = zone_lines(aa, cc, dd, reach=30)
            assert np.abs(lines[None] - wanted[:, None]).min(1).max() < 1e-9


def test_zones_are_found_from_exact_lines():
    for a, c, d in [(0.02, 0.031, 0.011), (0.015, 0.05, 0.0)]:
        q = zone_lines(a, c, d)
        q = q[q > 0.005][:16]
        zones = find_zones(table(q), q[:9], ZONES_M, 20)
        assert np.abs(zones - [a, c, d]).max(1).min() < 1e-9
        assert zones[:, 0].all() and (zones[:, 2] <= zones[:, 0] * (1 + 1e-9)).all() and (zones[:, 0] <= zones[:, 1]).all()


def table(q, sigma_two_theta: float = 0.035) -> np.ndarray:
    """Lines (Q, σ, weight 1, perfect gain) as `_score` reads them."""
    q = np.asarray(q, float)
    two_theta = 2 * np.arcsin(np.sqrt(q) * REFERENCE_WAVELENGTH / 2)
    sigma = np.radians(sigma_two_theta) * 2 * np.sin(two_theta) / REFERENCE_WAVELENGTH**2
    return np.stack([q, sigma, np.ones(len(q)), np.log(1 / (np.sqrt(2 * np.pi) * sigma * np.sqrt(q)))], 1)


def first_lines(cell, row: int, count: int = 16) -> np.ndarray:
    q = np.unique(q2_of(GRID[allowed(GRID, row)], cell, row).round(9))
    return q[(q > 0.01) & (q < 1.2)][:count]


@pytest.mark.parametrize("row", ROWS, ids=LATTICES)
def test_the_true_cell_beats_random_ones_and_its_superlattice(row):
    rng = np.random.default_rng(row)
    cell = random_cell(rng, row)
    lines = table(first_lines(cell, row))
    true = _score(lines, cell, row, -1e6)
    assert true > 10
    assert true > max(_score(lines, random_cell(rng, row), row, -1e6) for _ in range(200))
    # every edge doubled explains the lines too, and pays for the lines it predicts beside them: ln 8 for every hit
    doubled = _score(lines, cell / 4, row, -1e6)
    assert doubled < true - 0.7 * len(lines)


@pytest.mark.parametrize("row", ROWS, ids=LATTICES)
def test_an_unexplained_line_costs_ln_epsilon(row):
    cell = random_cell(np.random.default_rng(row), row)
    lines = table(first_lines(cell, row, 12))
    grid = np.linspace(0.03, 0.3, 4000)
    far = [_nearest(q, cell, _SYSTEM[row], _CENTRING[row])[0] / s for q, s in table(grid)[:, :2]]
    stray = table(grid[[int(np.argmax(far))]])
    assert max(far) > 6
    cost = _score(lines, cell, row, -1e6) - _score(np.concatenate([lines, stray]), cell, row, -1e6)
    assert cost == pytest.approx(-np.log(EPSILON))


@pytest.mark.parametrize("row", ROWS, ids=LATTICES)
def test_the_early_stop_changes_no_winner(row):
    rng = np.random.default_rng(200 + row)
    true = random_cell(rng, row)
    q = first_lines(true, row)
    lines = table(q + rng.normal(0, 2e-4, len(q)))
    # near and far from the truth
    cells = [true * (1 + rng.normal(0, s, 4)) for s in (0.0, 1e-4, 1e-3, 1e-2) for _ in range(8)]
    cells = [c for c in cells + [random_cell(rng, row) for _ in range(40)] if c[0] * c[2] > 0.26 * c[3] ** 2]
    for cell in cells:
        exact = _score(lines, cell, row, -1e6)
        for bar in exact - np.array([0.01, 1.0, 10.0]):
            assert _score(lines, cell, row, bar) == exact, "a cell above the bar gets its exact score"
        for bar in exact + np.array([0.01, 1.0, 10.0]):
            assert _score(lines, cell, row, bar) in (exact, -1e9)


@pytest.mark.parametrize(("first", "last"), [(0, 3), (3, 5), (5, 7), (7, 11), (11, 12), (12, 13)])
def test_only_lattices_below_their_bar_are_hopeless(first, last):
    rng, hopeless = np.random.default_rng(first), 0
    for row in range(first, last):
        true = random_cell(rng, row)
        q = first_lines(true, row)
        lines = table(q + rng.normal(0, 2e-4, len(q)))
        rising = np.argsort(lines[:, 0])
        for cell in [true, *(random_cell(rng, row) for _ in range(30))]:
            exact = np.array([_score(lines, cell, r, -1e6) for r in range(first, last)])
            bars = np.full((len(LATTICES), 1), 1e6)
            for gap in (-0.01, 0.01, 10.0):
                bars[first:last, 0] = exact + gap
                hopeful = _hopeful(lines, rising, cell, first, last, bars, -1e3)
                assert gap > 0 or hopeful == 2 ** (last - first) - 1, "a lattice above its bar is scored"
                hopeless += gap == 10.0 and hopeful == 0
    assert hopeless > 15


# ------------------------------------------------------------------------------------------ textbook cells

SMALL = {
    "CsCl": ("cP", 221, (4.123, 4.123, 4.123, 90, 90, 90)),
    "W": ("cI", 229, (3.165, 3.165, 3.165, 90, 90, 90)),
    "NaCl": ("cF", 225, (5.640, 5.640, 5.640, 90, 90, 90)),
    "ZnO": ("hP", 186, (3.250, 3.250, 5.207, 90, 90, 120)),
}
HIGH = {
    "YAG": ("cI", 230, (12.009, 12.009, 12.009, 90, 90, 90)),
    "spinel": ("cF", 227, (8.083, 8.083, 8.083, 90, 90, 90)),
    "rutile": ("tP", 136, (4.594, 4.594, 2.959, 90, 90, 90)),
    "anatase": ("tI", 141, (3.785, 3.785, 9.514, 90, 90, 90)),
    "zircon": ("tI", 141, (6.607, 6.607, 5.982, 90, 90, 90)),
    "quartz": ("hP", 154, (4.913, 4.913, 5.405, 90, 90, 120)),
    "corundum": ("hR", 167, (4.759, 4.759, 12.992, 90, 90, 120)),
    "calcite": ("hR", 167, (4.990, 4.990, 17.061, 90, 90, 120)),
}
LOW = {
    "forsterite": ("oP", 62, (4.756, 10.207, 5.980, 90, 90, 90)),
    "aragonite": ("oP", 62, (4.961, 7.967, 5.741, 90, 90, 90)),
    "post-perovskite": ("oC", 63, (3.145, 9.863, 7.298, 90, 90, 90)),
    "Imma": ("oI", 74, (5.460, 7.710, 5.500, 90, 90, 90)),
    "Immm": ("oI", 71, (3.550, 4.600, 8.200, 90, 90, 90)),
    "F222": ("oF", 22, (5.200, 7.400, 10.300, 90, 90, 90)),
    "P21": ("mP", 4, (7.800, 6.300, 8.700, 90, 104.0, 90)),
    "P21/m": ("mP", 11, (5.600, 7.300, 8.700, 90, 97.0, 90)),
    "C2": ("mC", 5, (8.200, 5.600, 9.100, 90, 101.0, 90)),
}
#: glides leave few lines of low indices
HARD = {
    "azurite": ("mP", 14, (5.011, 5.850, 10.345, 90, 92.43, 90)),
    "P21/c": ("mP", 14, (6.200, 7.900, 8.600, 90, 106.1, 90)),
    "C2/m": ("mC", 12, (9.800, 8.400, 5.300, 90, 112.0, 90)),
    "baddeleyite": ("mP", 14, (5.150, 5.212, 5.317, 90, 99.23, 90)),
    "diopside": ("mC", 15, (9.746, 8.899, 5.251, 90, 105.63, 90)),
    "tenorite": ("mC", 15, (4.684, 3.423, 5.129, 90, 99.54, 90)),
    "gypsum": ("mC", 15, (6.284, 15.200, 6.523, 90, 127.41, 90)),
    "sulfur": ("oF", 70, (10.467, 12.870, 24.493, 90, 90, 90)),
}
FOUND = SMALL | HIGH | LOW
EXAMPLES = FOUND | HARD


def peak_list(name: str, zero: float, seed: int = 10) -> np.ndarray:
    """Peaks (n, 3) of an example below 90°: random structure factors, 0.01° noise, two lines missing, two of an impurity."""
    bravais, number, cell = EXAMPLES[name]
    rng = np.random.default_rng(seed)
    q_top = np.sqrt(2) / REFERENCE_WAVELENGTH
    axes = [np.arange(-int(q_top * edge) - 1, int(q_top * edge) + 2, dtype=np.int32) for edge in cell[:3]]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    hkl = hkl[hkl.any(1)]
    hkl = hkl[~np.asarray(space_group(number).operations().systematic_absences(hkl), bool)]
    q = inverse_d(hkl, cell)
    q, multiplicity = np.unique(q[q < q_top].round(7), return_counts=True)
    theta = np.arcsin(q * REFERENCE_WAVELENGTH / 2)
    height = multiplicity * (1 + np.cos(2 * theta) ** 2) / (np.sin(theta) ** 2 * np.cos(theta)) * np.exp(-(q**2) / 2)
    height *= rng.gamma(3.0, 1 / 3, len(q))
    position, height = (v[height > 0.005 * height.max()] for v in (np.degrees(2 * theta), height))
    # lines closer than a width are one
    group = np.concatenate([[0], np.cumsum(np.diff(position) > 0.06)])
    position, height = np.bincount(group, position * height) / np.bincount(group, height), np.bincount(group, height)
    lost = rng.choice(len(position), min(2, len(position) // 5), replace=False)
    position = np.concatenate([np.delete(position, lost), rng.uniform(25, 60, 2)])
    height = np.concatenate([np.delete(height, lost), [0.03 * height.max()] * 2])
    strong = np.sort(np.argsort(-height)[:64])
    position, height = position[strong] + rng.normal(0, 0.01, len(strong)) + zero, height[strong] / height.max()
    order = np.argsort(position)
    q = 2 * np.sin(np.radians(position / 2)) / REFERENCE_WAVELENGTH
    return np.stack([np.log(q), np.log(height), np.log(300 * height)], 1)[order]


def reduced_edges(cell, bravais: str) -> np.ndarray:
    """Edges of the Niggli cell: the same for every description of a lattice."""
    vector = gemmi.GruberVector(gemmi.UnitCell(*cell), bravais[1])
    vector.niggli_reduce()
    return np.array(vector.cell_parameters()[:3])


@pytest.fixture(scope="module")
def search():
    """Compiled and warm, with results kept."""
    kept = {}

    def run(name, zero):
        if (name, zero) not in kept:
            kept[name, zero] = lattice_scores(peak_list(name, zero))
        return kept[name, zero]

    run("rutile", 0.0)
    return run


def check_lattice(found, name):
    bravais, _, cell = EXAMPLES[name]
    row = LATTICES.index(bravais)
    assert found.score[row] >= found.score.max() - 3
    assert reduced_edges(cell_of(metric_of_search(bravais, found.cell[row])), bravais) == pytest.approx(
        reduced_edges(cell, bravais), rel=0.003
    )
    assert found.score.max() > 10 and found.score.min() >= found.score.max() - MARGIN
    assert found.lines <= 24 and 0 < found.weight <= found.lines


@pytest.mark.parametrize("zero", [0.0, 0.05, -0.05])
@pytest.mark.parametrize("name", FOUND)
def test_textbook_lattices_are_found(search, name, zero):
    check_lattice(search(name, zero), name)


@pytest.mark.parametrize("name", HARD)
def test_lattices_without_simple_lines_are_found(search, name):
    check_lattice(search(name, 0.0), name)


@pytest.mark.parametrize("name", HIGH)
def test_zero_shifts_are_recovered(search, name):
    """The prior 0 ± 0.06° leaves out up to a third of a shift."""
    row = LATTICES.index(EXAMPLES[name][0])
    none, up, down = (search(name, z).zero[row] for z in (0.0, 0.05, -0.05))
    assert abs(none) < 0.02
    assert up == pytest.approx(0.05, abs=0.025) and down == pytest.approx(-0.05, abs=0.025)
    assert up - down == pytest.approx(0.1, abs=0.035)


@pytest.mark.parametrize("name", SMALL)
def test_zero_shifts_of_few_lines_have_the_right_sign(search, name):
    row = LATTICES.index(EXAMPLES[name][0])
    assert search(name, 0.05).zero[row] > 0.01 and search(name, -0.05).zero[row] < -0.01


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_lines_say_nothing(count):
    found = lattice_scores(peak_list("rutile", 0.0)[:count].reshape(count, 3))
    assert (found.score == 0).all() and (found.cell == 0).all() and (found.zero == 0).all()
    assert found.lines == count and found.weight == 0


def test_the_answer_does_not_depend_on_the_order_of_peaks_and_a_fourth_column(search):
    peaks = peak_list("zircon", 0.0)
    shuffled = np.random.default_rng(0).permutation(np.hstack([peaks, np.ones((len(peaks), 1))]))
    assert lattice_scores(shuffled).score == pytest.approx(search("zircon", 0.0).score)


def test_noise_peaks_weigh_little(search):
    """Peaks below the noise cannot turn the answer."""
    rng = np.random.default_rng(1)
    noise = np.stack([rng.uniform(-1.2, -0.1, 10), np.full(10, -5.0), np.log(rng.uniform(1.5, 2.5, 10))], 1)
    found = lattice_scores(np.concatenate([peak_list("corundum", 0.0), noise]))
    assert LATTICES[found.score.argmax()] == "hR"
    assert found.score.max() == pytest.approx(search("corundum", 0.0).score.max(), abs=4)


def test_a_pattern_takes_less_than_a_second(search):
    for name in ("forsterite", "azurite", "YAG"):
        peaks = peak_list(name, 0.0)
        start = time.thread_time()
        lattice_scores(peaks)
        assert time.thread_time() - start < 1.0
