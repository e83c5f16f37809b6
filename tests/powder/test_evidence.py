"""Evidence of the lattice search and of the profile fit for prepared patterns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystaldl import PowderPattern
from crystaldl.physics.lattice import metric_tensor
from crystaldl.physics.symmetry import BRAVAIS_LATTICES, extinction_of_group
from crystaldl.powder.indexing.bravais import cell_of, lattice_lengths, metric_of, niggli_cell
from crystaldl.powder.indexing.evidence import (
    ABSENCES,
    ARRAYS,
    EXTINCTION_GROUPS,
    FAR,
    FLOOR,
    Profile,
    decided,
    gather_evidence,
    levelled,
    pattern_evidence,
    unexplained_lines,
)
from crystaldl.powder.indexing.extinction import groups_of_lattice, predicted_reflections
from crystaldl.powder.indexing.search_kernels import MARGIN, SHORTEST
from crystaldl.powder.indexing.trials import metric_of_search
from crystaldl.powder.prepare import AXIS_POINTS, REFERENCE_WAVELENGTH, common_axis

CELLS = {
    "aP": (5.1, 6.2, 7.3, 90, 90, 90), "mP": (5.1, 6.2, 7.3, 90, 106, 90), "mC": (9.8, 8.4, 5.3, 90, 78, 90),
    "oP": (5.1, 6.2, 7.3, 90, 90, 90), "oF": (5.1, 6.2, 7.3, 90, 90, 90), "tI": (3.785, 3.785, 9.514, 90, 90, 90),
    "hP": (4.913, 4.913, 5.405, 90, 90, 120), "hR": (4.759, 4.759, 12.992, 90, 90, 120), "cF": (5.64, 5.64, 5.64, 90, 90, 90),
}  # fmt: skip
LIMITS = np.log(2 * np.sin(np.radians(np.array([5.0, 85.0]) / 2)) / REFERENCE_WAVELENGTH)
HALITE = (3, 4, 8, 11, 12, 16, 19, 20, 24)


def cubic_peaks(edge: float, sums, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """Peaks (n, 4) of a cubic cell at the given h² + k² + l²."""
    rng = np.random.default_rng(seed)
    two_theta = 2 * np.arcsin(np.sqrt(np.array(sums, float)) / edge * REFERENCE_WAVELENGTH / 2)
    two_theta += np.radians(rng.normal(0, noise, len(sums)))
    ln_height = rng.uniform(-2, 0, len(sums))
    ln_q = np.log(2 * np.sin(two_theta / 2) / REFERENCE_WAVELENGTH)
    return np.stack([ln_q, ln_height, ln_height + 5, np.full(len(sums), -5.0)], 1)


def drawn(peaks: np.ndarray, fwhm: float = 0.12, noise: float = 0.003) -> np.ndarray:
    """The peaks as Gaussian lines on the common axis, a little noise with them."""
    axis, y = common_axis(), np.zeros(AXIS_POINTS)
    for q, height in np.exp(peaks[:, :2]):
        centre = 2 * np.degrees(np.arcsin(q * REFERENCE_WAVELENGTH / 2))
        y += height * np.exp(-4 * np.log(2) * ((axis - centre) / fwhm) ** 2)
    return y + np.random.default_rng(9).normal(0, noise, AXIS_POINTS)


def evidence_of(peaks: np.ndarray):
    axis = common_axis()
    mask = ((axis > 5) & (axis < 85)).astype(float)
    return pattern_evidence(peaks, LIMITS, Profile(drawn(peaks) * mask, mask, ratio=0.0))


@pytest.fixture(scope="module")
def batch():
    """Six patterns: three cubic cells, lines anywhere, two lines and none."""
    lists = [
        cubic_peaks(5.64, HALITE),
        cubic_peaks(4.12, (1, 2, 3, 4, 5, 6, 8, 9, 10)),
        cubic_peaks(5.43, (3, 8, 11, 16, 19, 24)),
        np.random.default_rng(1).uniform([-1.5, -3, 2, -6], [-0.1, 0, 6, -4], (15, 4)),
        cubic_peaks(5.64, HALITE[:2]),
        np.zeros((0, 4)),
    ]
    noise = (5e-4, 5e-4, 5e-4, 5e-4, 1e-4, 0.0)
    axis = common_axis()
    measured = np.tile((axis > 5) & (axis < 85), (6, 1)).astype(np.float32)
    y = np.array([drawn(*entry) for entry in zip(lists, (0.12,) * 6, noise, strict=True)], np.float32) * measured
    return y, measured, np.zeros(6, np.float32)


def same(one, other) -> bool:
    arrays = all(np.allclose(getattr(one, k), getattr(other, k), rtol=0, atol=1e-9) for k in (*ARRAYS, "unexplained"))
    names = [(c.bravais, c.score, c.zero, *c.cell) for c in one.lattices]
    return arrays and names == [(c.bravais, c.score, c.zero, *c.cell) for c in other.lattices]


@pytest.fixture(scope="module")
def gathered(batch):
    return gather_evidence(*batch, workers=1)


def test_threads_and_tensors_change_nothing(batch, gathered):
    threaded = gather_evidence(*batch, workers=3)
    tensors = gather_evidence(*map(torch.as_tensor, batch), workers=2)
    for others in (threaded, tensors):
        assert len(others) == 6 and all(map(same, gathered, others))


def test_shapes_and_order(gathered):
    for evidence in gathered:
        shapes = [getattr(evidence, k).shape for k in ARRAYS]
        assert shapes == [(14, 3), (14, 10), (8,), (len(ABSENCES), EXTINCTION_GROUPS)]
        assert all(np.isfinite(getattr(evidence, k)).all() for k in ARRAYS)
        assert (evidence.scores <= 0).all() and (evidence.scores >= [-MARGIN, -FAR, -FAR]).all()
        assert (evidence.profile[:, :2] >= FLOOR[:2]).all() and (evidence.profile[:, [0, 1, 4, 5]] <= 0).all()
        fitted = evidence.profile[:, 3] == 1
        assert (evidence.profile[~fitted] == FLOOR).all() and fitted.sum() == len(evidence.lattices)
        assert (evidence.absences <= 0).all() and (evidence.absences >= -4).all()
        ranking = [c.score for c in evidence.lattices]
        assert ranking == sorted(ranking, reverse=True)
        assert len({c.bravais for c in evidence.lattices}) == len(ranking)
        for lattice in evidence.lattices:
            assert lattice.fit.lattice == lattice.bravais and fitted[BRAVAIS_LATTICES.index(lattice.bravais)]
            assert (lattice.cell[:3] > SHORTEST).all() and abs(lattice.zero) < 0.4


def test_known_answers(gathered):
    halite = gathered[0].lattices[0]
    assert halite.bravais == "cF" and halite.cell == pytest.approx([5.64] * 3 + [90] * 3, abs=0.01)
    assert gathered[0].facts[2] == 9
    assert halite.fit.explained > 0.9 and not len(gathered[0].unexplained)
    simple = {lattice.bravais: lattice.cell for lattice in gathered[1].lattices}
    assert simple["cP"] == pytest.approx([4.12] * 3 + [90] * 3, abs=0.01)


def test_what_explains_as_much_is_weighed(batch):
    """Nine lines of a simple cubic cell are those of a tetragonal one with c = a/√2, too: all evidence decides."""
    inside = batch[1][1] > 0
    counts = 1000 * np.maximum(batch[0][1][inside], 0)
    answer = PowderPattern(common_axis()[inside], counts, "CuKa1", background_subtracted=True).classify()
    assert answer.crystal_system == "cubic"
    assert answer.lattices[0].bravais == "cP"
    assert answer.lattices[0].cell == pytest.approx([4.12] * 3 + [90] * 3, abs=0.01)


def test_extinction_evidence_is_of_examined_lattices_alone(gathered):
    groups = groups_of_lattice()
    for evidence in gathered[:4]:
        examined = {lattice.bravais for lattice in evidence.lattices}
        known = set(np.concatenate([groups[name] for name in examined]))
        for row in evidence.absences:
            assert set(np.flatnonzero(row)) <= known


def test_diamond_glides_speak_in_silicon(gathered):
    """Lines of a face-centred cell without 200, 222 and 420: F d - - before F - - -."""
    silicon = gathered[2]
    assert silicon.lattices[0].bravais == "cF"
    plain, glide = extinction_of_group()[224], extinction_of_group()[226]
    assert (silicon.absences[:, glide] > silicon.absences[:, plain]).all()


def test_foreign_lines_are_listed():
    lines = np.concatenate([cubic_peaks(5.64, HALITE), [[np.log(0.40), np.log(0.4), 5.0, -5.0]]])
    evidence = evidence_of(lines)
    assert evidence.lattices[0].bravais == "cF"
    assert evidence.unexplained == pytest.approx(np.array([[0.40, 0.4]]), abs=0.01)
    assert evidence.facts[5] == pytest.approx(0.4, abs=0.01)


def test_too_few_lines_are_neutral(gathered):
    for evidence in gathered[4:]:
        assert not evidence.scores.any() and not evidence.absences.any() and evidence.lattices == ()
        assert np.array_equal(evidence.profile, np.tile(FLOOR, (14, 1)))
    assert [e.facts.tolist() for e in gathered[4:]] == [[0, 0, 2, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 0]]


def test_levelled_keeps_order_and_bounds():
    values = np.array([-300.0, -2.0, 5.0, 4.0])
    out = levelled(values)
    assert np.array_equal(np.argsort(out), np.argsort(values)) and out.max() == 0 and out.min() >= -4
    assert np.diff(levelled(np.array([0.0, -0.01]))) == pytest.approx(-0.01, rel=0.01)


def test_what_weighs_most_comes_first(gathered):
    """A classification shows the lattice its probabilities favour, with its fit and the lines foreign to that one."""
    evidence = gathered[0]
    other = next(c for c in evidence.lattices if c.bravais != "cF")
    probability = np.zeros(14)
    probability[BRAVAIS_LATTICES.index(other.bravais)] = 0.9
    lattices, odd = decided(evidence, probability)
    assert lattices[0].bravais == other.bravais and lattices[0].fit is other.fit
    assert {c.bravais for c in lattices} == {c.bravais for c in evidence.lattices}
    assert all(c.fit is None for c in lattices[1:])
    assert np.array_equal(odd, unexplained_lines(evidence.peaks, other.fit))
    probability[BRAVAIS_LATTICES.index("cF")] = 1.0
    lattices, odd = decided(evidence, probability)
    assert lattices[0].bravais == "cF" and odd is evidence.unexplained
    assert decided(gathered[5], probability) == ((), gathered[5].unexplained)


def triclinic_peaks(cell, count: int = 22) -> np.ndarray:
    reflections, q2 = predicted_reflections(metric_of(cell), "aP", 0.30)
    height = np.random.default_rng(2).uniform(-2.5, 0, count)
    two_theta = 2 * np.arcsin(np.sqrt(q2[:count]) * REFERENCE_WAVELENGTH / 2)
    two_theta += np.radians(np.random.default_rng(3).normal(0, 0.004, count))
    ln_q = np.log(2 * np.sin(two_theta / 2) / REFERENCE_WAVELENGTH)
    return np.stack([ln_q, height, height + 5, np.full(count, 0.6)], 1)


def test_triclinic_lattices_are_found():
    cell = (5.22, 5.98, 7.13, 93.2, 104.9, 98.4)
    best = evidence_of(triclinic_peaks(cell)).lattices[0]
    assert best.bravais == "aP"
    assert lattice_lengths(niggli_cell(best.cell)) == pytest.approx(lattice_lengths(niggli_cell(cell)), rel=2e-3)


@pytest.mark.parametrize("bravais", sorted(set(CELLS) - {"aP"}))
def test_cells_of_the_quick_search_are_understood(bravais):
    cell = CELLS[bravais]
    g = np.linalg.inv(metric_tensor(cell))
    found = metric_of_search(bravais, (g[0, 0], g[1, 1], g[2, 2], 2 * g[0, 2]))
    assert cell_of(found) == pytest.approx(cell)


def test_a_hexagonal_cell_needs_no_second_axis():
    """The search writes (A, A, C, 0); what stands in B and D is of no meaning there."""
    g = np.linalg.inv(metric_tensor(CELLS["hR"]))
    assert cell_of(metric_of_search("hR", (g[0, 0], g[0, 0], g[2, 2], 0.0))) == pytest.approx(CELLS["hR"])


def test_one_pattern_on_several_threads_is_the_same(batch, gathered):
    """Alone, its parts run side by side; in a batch, it runs on one thread."""
    for i in (0, 2, 3):
        alone = (a[i : i + 1] for a in batch)
        assert same(gather_evidence(*alone, workers=3)[0], gathered[i])
