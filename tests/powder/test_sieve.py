"""The fast fit of intensities: against a dense one, against the right cell, and the search that rests on it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import nnls

from crystaldl.powder.indexing import deep_search
from crystaldl.powder.indexing import trials as trials_module
from crystaldl.powder.indexing.bravais import BRAVAIS, cell_of, derivative_index, metric_of, niggli_cell, same_lattice
from crystaldl.powder.indexing.extinction import predicted_reflections
from crystaldl.powder.indexing.pools import IndexOptions, Pool
from crystaldl.powder.indexing.quick_search import LATTICES, lattice_scores
from crystaldl.powder.indexing.sieve import make_sieve
from crystaldl.powder.indexing.sieve_kernels import exact, reflections
from crystaldl.powder.indexing.trials import line_table_of, trial_lattices
from crystaldl.powder.line_scales import search_lines
from crystaldl.powder.prepare import AXIS_POINTS, CU_DOUBLET, REFERENCE_WAVELENGTH, common_axis

AXIS, MASK = common_axis(), np.ones(AXIS_POINTS)
TRICLINIC = (5.58, 7.15, 8.93, 97.2, 106.5, 91.4)
CELLS = {
    "aP": TRICLINIC, "mC": (9.75, 8.99, 5.26, 90, 105.6, 90), "oP": (4.76, 10.21, 5.98, 90, 90, 90),
    "hR": (4.99, 4.99, 17.06, 90, 90, 120), "cF": (5.43, 5.43, 5.43, 90, 90, 90), "tI": (3.78, 3.78, 9.51, 90, 90, 90),
}  # fmt: skip


def one(bravais: str, cell, zero: float = 0.0) -> Pool:
    return Pool(metric_of(cell)[None], np.array([zero]), np.array([bravais]), np.zeros(1))


def scan(
    bravais: str, cell, zero: float = 0.0, width: float = 0.14, noise: float = 0.002, ratio: float = 0.0, seed: int = 0
):
    """A pattern of all lines of a lattice with random intensities, broader at higher angles: y."""
    rng = np.random.default_rng(seed)
    _, q2 = predicted_reflections(metric_of(cell), bravais, 0.75)
    q2 = np.unique(q2.round(9))
    y = rng.normal(0, noise, AXIS_POINTS)
    for q, height in zip(np.sqrt(q2), rng.exponential(1.0, len(q2)) * np.exp(-4.0 * q2), strict=True):
        for share, stretch in ((1.0, 0.0), (ratio, CU_DOUBLET)):
            at = 2 * np.degrees(np.arcsin(min(q * REFERENCE_WAVELENGTH / 2 * np.exp(stretch), 0.999))) + zero
            u = (AXIS - at) / (width * (1 + 0.5 * np.tan(np.radians(at / 2))))
            y += share * height * (0.8 * np.exp(-4 * np.log(2) * u * u) + 0.2 / (1 + 4 * u * u))
    return y / y.max()


def sieve_of(y, ratio: float = 0.0):
    peaks = search_lines(y, MASK)
    return make_sieve(y, MASK, peaks, ratio), peaks


@pytest.mark.parametrize("bravais", CELLS)
def test_reflections_are_those_of_the_lattice(bravais):
    g = exact(metric_of(CELLS[bravais]), BRAVAIS[bravais][0])
    q, index = np.zeros(5000), np.zeros((5000, 3), np.int64)
    n = reflections(g, BRAVAIS[bravais][1], 0.01, 0.6, q, index)
    hkl, q2 = predicted_reflections(g, bravais, 0.6)
    expected = np.sort(q2[(q2 > 0.01) & (q2 < 0.6)])
    found = np.sort(q[:n])
    assert np.allclose(np.unique(found.round(8)), np.unique(expected.round(8)))
    assert bravais != "aP" or n == len(expected), "one of each Friedel pair"
    assert bravais != "cF" or n < 1.1 * len(np.unique(expected.round(8))), "hardly any that coincide"
    h, k, l = index[:n].T
    assert np.allclose(h * h * g[0] + k * k * g[1] + l * l * g[2] + k * l * g[3] + h * l * g[4] + h * k * g[5], q[:n])


def test_large_cells_are_judged():
    """A cubic zeolite's, and triclinic ones of 1,000 Å³, up to the end of a pattern."""
    sieve, _ = sieve_of(scan("oP", CELLS["oP"]))
    large = ("cF", (24.7, 24.7, 24.7, 90, 90, 90)), ("cP", (22.2, 22.2, 22.2, 90, 90, 90)), ("aP", (8.1, 9.9, 13.1, 82, 77, 86))
    for bravais, cell in large:
        assert len(sieve.refine(one(bravais, cell), 0, 1.0)[0]) == 1, bravais


@pytest.mark.parametrize("bravais, edge", [("cF", 24.7), ("cP", 20.4), ("cI", 23.1)])
def test_large_cubic_cells_are_found(bravais, edge):
    """Half of the lines unseen, as in structures with many atoms."""
    rng = np.random.default_rng(1)
    numbers = np.unique(predicted_reflections(metric_of([edge] * 3 + [90] * 3), bravais, 0.16)[1].round(9))
    q2 = np.sort(rng.choice(numbers, len(numbers) // 2, replace=False))[:40]
    lines = np.stack([0.5 * np.log(q2), np.log(rng.uniform(0.1, 1, len(q2))), np.full(len(q2), 4.0), np.full(len(q2), 1.6)], 1)
    quick = lattice_scores(lines)
    row = LATTICES.index(bravais)
    assert quick.score.argmax() == row
    assert 1 / np.sqrt(quick.cell[row, 0]) == pytest.approx(edge, rel=2e-3)


@pytest.mark.parametrize("bravais, edge, zero", [("cI", 32.9, -0.07), ("cF", 46.0, 0.05), ("cP", 23.4, -0.1), ("cI", 9.7, 0.1)])
def test_cubic_cells_of_any_edge_are_found_by_the_profile(bravais, edge, zero):
    """Though cI of √2 times the edge has the lines of cP and some more, and the first lines have high indices."""
    sieve, peaks = sieve_of(scan(bravais, [edge] * 3 + [90] * 3, zero, 0.15))
    found = deep_search.cubic(line_table_of(peaks), sieve, 4)
    assert found.bravais[0] == bravais
    assert found.g[0, 0] ** -0.5 == pytest.approx(edge, rel=2e-3)
    assert len(found) == 4


def test_trials_hold_a_cubic_cell_that_no_low_indices_make():
    """Edges beyond 30 Å, which are looked for where ``any_edge`` says so."""
    sieve, peaks = sieve_of(scan("cI", [32.9] * 3 + [90] * 3, 0.0, 0.3))
    edges = [
        [t.metric[0] ** -0.5 for t in trial_lattices(peaks, lambda: sieve, any_edge=wanted)[1].found.get("cI", ())]
        for wanted in (False, True)
    ]
    assert any(abs(a / 32.9 - 1) < 2e-3 for a in edges[1])
    assert not any(abs(a / 32.9 - 1) < 2e-3 for a in edges[0])


@pytest.mark.parametrize("ratio", [0.0, 0.5])
def test_gain_is_that_of_a_dense_fit(ratio):
    """Non-negative least squares over the columns of the profile, written out."""
    y = scan("hR", CELLS["hR"], ratio=ratio)
    sieve, _ = sieve_of(y, ratio)
    top = 0.30
    _, gain = sieve.refine(one("hR", CELLS["hR"]), 0, 1.0, top)
    q2 = np.unique(predicted_reflections(metric_of(CELLS["hR"]), "hR", top)[1].round(9))
    _, first, step, n = sieve.axis
    x = first + step * np.arange(int(n))
    noise = 0.002
    near = np.array([y[max(i - 28, 0) : i + 29].max() for i in range(len(y))])
    sigma = np.interp(x, AXIS, np.sqrt(noise**2 + (0.08 * np.abs(y) + 0.03 * near) ** 2))
    columns = []
    shape = sieve.shape
    for q in np.sqrt(q2):
        column = 0.0
        for share, stretch in ((1.0, 0.0), (ratio, CU_DOUBLET)):
            at = 2 * np.degrees(np.arcsin(min(q * REFERENCE_WAVELENGTH / 2 * np.exp(stretch), 0.999)))
            u = (x - at) / shape.widths(np.radians(at / 2))
            column = column + share * (
                (1 - shape.lorentz) * np.exp(-4 * np.log(2) * u * u) + shape.lorentz / (1 + 4 * u * u)
            )
        columns.append(column)
    data = np.interp(x, AXIS, y) / sigma
    left = nnls(np.array(columns).T / sigma[:, None], data)[1]
    inside = x < 2 * np.degrees(np.arcsin(np.sqrt(top) * REFERENCE_WAVELENGTH / 2)) + 0.5
    assert gain[0] == pytest.approx(0.5 * ((data**2).sum() - left**2), rel=0.10), (
        "lines hardly apart share one intensity"
    )
    assert gain[0] > 0.35 * (data[inside] ** 2).sum()


@pytest.mark.parametrize("bravais", CELLS)
def test_cells_are_refined_to_the_right_ones(bravais):
    cell = np.array(CELLS[bravais], float)
    sieve, _ = sieve_of(scan(bravais, cell, zero=0.03))
    off = metric_of(cell) * (1 + 1e-3 * np.array([1.0, 1.0, -1.0, 0.5, 0.5, 1.0]))
    off = metric_of(cell) * 1.001 if bravais == "cF" else off
    start = Pool(off[None], np.zeros(1), np.array([bravais]), np.zeros(1))
    before, _ = sieve.refine(start, 0, 1.0)
    after, _ = sieve.refine(start, 12, 1.0)
    assert after.score[0] > before.score[0] + 20
    assert np.allclose(cell_of(after.g[0]), cell, rtol=8e-4)
    assert after.zero[0] == pytest.approx(0.03, abs=0.02)
    true, _ = sieve.refine(one(bravais, cell, 0.03), 0, 1.0)
    assert after.score[0] > 0.95 * true.score[0]


def test_what_a_cell_has_too_many_of_costs():
    """Neither a superlattice, which explains as much, nor a sublattice, which explains less, beats the right cell."""
    sieve, _ = sieve_of(scan("aP", TRICLINIC, noise=0.004))
    a, b, c, *angles = TRICLINIC
    cells = [
        TRICLINIC,
        (2 * a, b, c, *angles),
        (a, 2 * b, c, *angles),
        (a, b, c / 2, *angles),
        (5.9, 7.4, 8.2, 95, 101, 93),
    ]
    pool = Pool(np.array([metric_of(cell) for cell in cells]), np.zeros(5), np.full(5, "aP"), np.zeros(5))
    scored, gain = sieve.refine(pool, 6, 1.0)
    assert len(scored) == 5 and scored.score.argmax() == 0
    assert gain[1] > 0.97 * gain[0] and gain[3] < 0.9 * gain[0]
    assert 2.0 * sieve.temper(gain[0]) < sieve.temper(gain[4])


def test_cells_that_cannot_be_judged_are_left_out():
    sieve, _ = sieve_of(scan("oP", CELLS["oP"]))
    cells = [CELLS["oP"], (1.2, 1.2, 1.2, 90, 90, 90), (60, 60, 60, 90, 90, 90)]
    pool = Pool(np.array([metric_of(cell) for cell in cells]), np.zeros(3), np.full(3, "aP"), np.zeros(3))
    assert len(sieve.refine(pool, 1, 1.0)[0]) == 1, "too short an axis, and more reflections than there is room for"
    assert len(sieve.refine(Pool(), 3, 1.0)[0]) == 0


def test_lines_of_a_second_phase_do_not_speak_against_the_first():
    """A superlattice explains some of them; without it the misfit they leave would pass for noise (T)."""
    y = scan("oP", CELLS["oP"], noise=0.003) + 0.2 * scan("cF", (5.43, 5.43, 5.43, 90, 90, 90), noise=0.0, seed=1)
    sieve, _ = sieve_of(y + 0.15 * scan("hR", CELLS["hR"], noise=0.0, seed=2))
    a, b, c, *angles = CELLS["oP"]
    right, double, wrong = (
        sieve.refine(one("oP", cell), 3, 1.0)[0] for cell in (CELLS["oP"], (2 * a, b, c, *angles), (5.3, 9.6, 6.4, *angles))
    )
    gain = [sieve.refine(pool, 0, 1.0)[1][0] for pool in (right, double)]
    assert gain[1] > gain[0]
    alone = [sieve.refine(pool, 0, sieve.temper(gain[1]))[0].score[0] for pool in (right, double)]
    judged = sieve.judge([right, double, wrong])
    assert judged[0] > 2 * alone[0], "what is foreign is no noise"
    assert judged[0] - judged[1] > 2 * (alone[0] - alone[1]) > 0
    assert judged[0] > judged[2] + 1000, "a wrong cell cannot call all lines foreign"


def test_without_foreign_lines_the_judgement_is_that_of_the_refinement():
    sieve, _ = sieve_of(scan("oP", CELLS["oP"]))
    right, wrong = one("oP", CELLS["oP"]), one("oP", (4.9, 9.4, 6.6, 90, 90, 90))
    right, _ = sieve.refine(right, 4, 1.0)
    judged = sieve.judge([right, wrong, Pool()])
    assert judged[0] > judged[1] and judged[2] == -np.inf
    _, gain = sieve.refine(right, 0, 1.0)
    alone, _ = sieve.refine(right, 0, sieve.temper(gain[0]))
    assert judged[0] == pytest.approx(alone.score[0], rel=0.02), "no line is left for another phase"
    assert sieve.judge([]).shape == (0,)


def test_a_background_that_was_taken_off_too_generously_does_no_harm():
    y = scan("mC", CELLS["mC"])
    dips = y - 0.05 * np.exp(-0.5 * ((AXIS - AXIS[y.argmax()] - 0.8) / 0.3) ** 2) + 0.04 * np.exp(-AXIS / 30)
    plain, bent = (sieve_of(v)[0] for v in (y, dips))
    for sieve in (plain, bent):
        _, gain = sieve.refine(one("mC", CELLS["mC"]), 3, 1.0)
        assert gain[0] > sieve.listed and sieve.temper(gain[0]) < 2.5


@pytest.mark.parametrize("zero", [0.0, 0.07])
def test_triclinic_cells_are_found(zero):
    y = scan("aP", TRICLINIC, zero=zero, noise=0.003, seed=3)
    sieve, peaks = sieve_of(y)
    lines = line_table_of(peaks)
    found = deep_search.low_symmetry(lines, lines.head(20), zero, sieve, IndexOptions(impurities=3.0))
    assert same_lattice(niggli_cell(cell_of(found.best(1).g[0])), niggli_cell(TRICLINIC))
    _, trials = trial_lattices(peaks, lambda: sieve)
    best = max((t for own in trials.found.values() for t in own), key=lambda t: t.value)
    assert best.bravais == "aP" and same_lattice(niggli_cell(cell_of(best.metric)), niggli_cell(TRICLINIC))
    assert best.zero == pytest.approx(zero, abs=0.04)


@pytest.mark.parametrize("stretch, searched", [(1.003, False), (1.05, True)])
def test_the_cell_of_a_known_crystal_spares_the_search(monkeypatch, stretch, searched):
    calls = []
    search = lambda *a: calls.append(a) or deep_search.low_symmetry(*a)  # noqa: E731
    monkeypatch.setattr(trials_module, "low_symmetry", search)
    sieve, peaks = sieve_of(scan("aP", TRICLINIC, zero=0.04, noise=0.003, seed=3))
    known = one("aP", (*np.multiply(TRICLINIC[:3], stretch), *TRICLINIC[3:]))
    _, trials = trial_lattices(peaks, lambda: sieve, known=known)
    best = max((t for own in trials.found.values() for t in own), key=lambda t: t.value)
    assert best.bravais == "aP" and same_lattice(niggli_cell(cell_of(best.metric)), niggli_cell(TRICLINIC), 0.003)
    assert bool(calls) == searched


def test_kin_of_a_sublattice_is_the_lattice():
    a, b, c, *angles = TRICLINIC
    sieve, _ = sieve_of(scan("aP", TRICLINIC))
    start, gain = sieve.refine(one("aP", (a, b, c / 2, *angles)), 3, 1.0)
    best = deep_search.kin(start, sieve, sieve.temper(gain[0])).best(1)
    assert same_lattice(niggli_cell(cell_of(best.g[0])), niggli_cell(TRICLINIC))


def test_kin_is_followed_over_several_generations():
    """The search begins with a cell eight times too large: three generations of index 2."""
    a, b, c, *angles = TRICLINIC
    sieve, _ = sieve_of(scan("aP", TRICLINIC))
    start, gain = sieve.refine(one("aP", (2 * a, 2 * b, 2 * c, *angles)), 3, 1.0)
    best = deep_search.kin(start, sieve, sieve.temper(gain[0])).best(1)
    assert same_lattice(niggli_cell(cell_of(best.g[0])), niggli_cell(TRICLINIC))


def test_the_profile_finds_the_cell_among_many_of_high_symmetry():
    """The right cell, edges off by half a percent, whatever its score by the lines, among 300 others."""
    rng = np.random.default_rng(4)
    edges = rng.uniform(3.0, 12.0, (300, 2))
    others = np.array([metric_of((a, a, c, 90, 90, 90)) for a, c in edges])
    a, _, c, *angles = CELLS["tI"]
    right = one("tI", (1.005 * a, 1.005 * a, 0.996 * c, *angles))
    pool = Pool(others, np.zeros(300), np.repeat(["tP", "tI"], 150), rng.uniform(10, 20, 300)) + right
    sieve, peaks = sieve_of(scan("tI", CELLS["tI"], zero=0.05, noise=0.01))
    kept = deep_search.looked_at(pool, line_table_of(peaks), sieve, 8)
    assert len(kept) == 8 and (np.diff(kept.score) <= 0).all()
    assert cell_of(kept.g[0])[:3] == pytest.approx(CELLS["tI"][:3], rel=1e-3) and kept.zero[0] == pytest.approx(0.05, abs=0.02)
    assert len(deep_search.looked_at(Pool(), line_table_of(peaks), sieve, 8)) == 0


def test_reflections_everywhere_end_no_search():
    """A cell eight times too large explains the whole profile, but predicts none of its lines."""
    a, b, c, *angles = TRICLINIC
    sieve, peaks = sieve_of(scan("aP", TRICLINIC, noise=0.003))
    lines = line_table_of(peaks)
    for cell, credible in ((TRICLINIC, True), ((2 * a, 2 * b, 2 * c, *angles), False)):
        pool, gain = sieve.refine(one("aP", cell), 3, 3.0)
        assert trials_module._settled(pool, gain, sieve)
        assert trials_module._settled(pool, gain, sieve, lines) == credible


def test_small_strains_lower_the_symmetry():
    names = lambda bravais: sorted(set(deep_search.descended(one(bravais, CELLS[bravais])).bravais))  # noqa: E731
    assert names("oP") == ["mP"]
    assert "tI" in names("cF")
    assert "mC" in names("hR")
    assert names("aP") == []
    cells = cell_of(deep_search.descended(one("oP", CELLS["oP"])).g)
    assert sorted({float(cell[1].round(1)) for cell in cells}) == [4.8, 6.0, 10.2], "each axis is the unique one"


def test_a_slight_monoclinic_distortion_is_seen():
    """Cryolite-like: orthorhombic but for β = 90.5°."""
    cell = (5.40, 5.60, 7.77, 90, 90.5, 90)
    sieve, _ = sieve_of(scan("mP", cell, width=0.12, noise=0.003))
    upright, _ = sieve.refine(one("oP", (*cell[:3], 90, 90, 90)), 6, 1.0)
    lower, _ = sieve.refine(deep_search.descended(upright), 8, 1.0)
    best = lower.best(1)
    assert best.bravais[0] == "mP" and cell_of(best.g[0])[4] == pytest.approx(90.5, abs=0.05)
    assert best.score[0] > upright.score[0] + 100


def test_symmetry_is_raised_where_the_metric_bears_it():
    pool = one("aP", niggli_cell(CELLS["hR"], "R"))
    assert {"aP", "hR"} <= set(deep_search.lifted(pool).bravais)
    assert derivative_index(niggli_cell((10, 4, 6, 90, 90, 90)), niggli_cell((5, 4, 6, 90, 90, 90))) == 2
