"""Evidence of the lattice search for prepared patterns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystaldl.physics.lattice import metric_tensor
from crystaldl.powder.evidence import EXTINCTION_GROUPS, conventional_cell, gather_evidence, pattern_evidence
from crystaldl.powder.extinction import groups_of_lattice
from crystaldl.powder.indexing import lattice_scores
from crystaldl.powder.prepare import REFERENCE_WAVELENGTH
from crystaldl.powder.search_kernels import LATTICES, MARGIN

CELLS = {
    "aP": (5.1, 6.2, 7.3, 90, 90, 90), "mP": (5.1, 6.2, 7.3, 90, 106, 90), "mC": (9.8, 8.4, 5.3, 90, 78, 90),
    "oP": (5.1, 6.2, 7.3, 90, 90, 90), "oF": (5.1, 6.2, 7.3, 90, 90, 90), "tI": (3.785, 3.785, 9.514, 90, 90, 90),
    "hP": (4.913, 4.913, 5.405, 90, 90, 120), "hR": (4.759, 4.759, 12.992, 90, 90, 120), "cF": (5.64, 5.64, 5.64, 90, 90, 90),
}  # fmt: skip
LIMITS = np.log(2 * np.sin(np.radians(np.array([5.0, 85.0]) / 2)) / REFERENCE_WAVELENGTH)


def cubic_peaks(edge: float, sums, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """Peaks (n, 4) of a cubic cell at the given h² + k² + l²."""
    rng = np.random.default_rng(seed)
    two_theta = 2 * np.arcsin(np.sqrt(np.array(sums, float)) / edge * REFERENCE_WAVELENGTH / 2)
    two_theta += np.radians(rng.normal(0, noise, len(sums)))
    ln_height = rng.uniform(-2, 0, len(sums))
    return np.stack(
        [np.log(2 * np.sin(two_theta / 2) / REFERENCE_WAVELENGTH), ln_height, ln_height + 5, np.full(len(sums), -5.0)], 1
    )


HALITE = (3, 4, 8, 11, 12, 16, 19, 20, 24)


@pytest.fixture(scope="module")
def batch():
    """Six padded peak lists, one empty and one of two lines: peaks (6, 20, 4), mask (6, 20), limits (6, 2)."""
    lists = [
        cubic_peaks(5.64, HALITE),
        cubic_peaks(4.12, (1, 2, 3, 4, 5, 6, 8, 9, 10)),
        cubic_peaks(5.43, (3, 8, 11, 16, 19, 24)),
        np.random.default_rng(1).uniform([-1.5, -3, 2, -6], [-0.1, 0, 6, -4], (15, 4)),
        cubic_peaks(5.64, HALITE[:2]),
        np.zeros((0, 4)),
    ]
    peaks, mask = np.zeros((6, 20, 4), np.float32), np.zeros((6, 20), bool)
    for row, entry in enumerate(lists):
        peaks[row, : len(entry)], mask[row, : len(entry)] = entry, True
    return peaks, mask, np.tile(LIMITS, (6, 1)).astype(np.float32)


def same(one, other) -> bool:
    arrays = all(np.array_equal(getattr(one, k), getattr(other, k)) for k in ("scores", "facts", "extinction"))
    names = [(c.bravais, c.score, c.zero, *c.cell) for c in one.lattices]
    return arrays and names == [(c.bravais, c.score, c.zero, *c.cell) for c in other.lattices]


@pytest.fixture(scope="module")
def gathered(batch):
    return gather_evidence(*batch, workers=1)


def test_a_batch_equals_one_by_one_and_threads_change_nothing(batch, gathered):
    peaks, mask, limits = batch
    single = [pattern_evidence(p[m].astype(float), r) for p, m, r in zip(peaks, mask, limits, strict=True)]
    threaded = gather_evidence(*batch, workers=3)
    tensors = gather_evidence(*map(torch.as_tensor, batch), workers=2)
    for others in (single, threaded, tensors):
        assert len(others) == 6 and all(map(same, gathered, others))


def test_shapes_and_order(gathered):
    for evidence in gathered:
        assert evidence.scores.shape == (len(LATTICES),) and evidence.facts.shape == (3,)
        assert evidence.extinction.shape == (EXTINCTION_GROUPS,)
        for array in (evidence.scores, evidence.facts, evidence.extinction):
            assert np.isfinite(array).all()
        assert evidence.facts[0] == evidence.scores.max()
        ranking = [c.score for c in evidence.lattices]
        assert ranking == sorted(ranking, reverse=True)
        assert len({c.bravais for c in evidence.lattices}) == len(ranking)
        for lattice in evidence.lattices:
            assert lattice.score > evidence.facts[0] - MARGIN and (lattice.cell[:3] > 1).all() and abs(lattice.zero) < 0.3


def test_known_answers(gathered):
    halite, simple = (gathered[i].lattices[0] for i in (0, 1))
    assert halite.bravais == "cF" and halite.cell == pytest.approx([5.64] * 3 + [90] * 3, abs=0.01)
    assert simple.bravais == "cP" and simple.cell == pytest.approx([4.12] * 3 + [90] * 3, abs=0.01)
    assert gathered[0].facts[2] == 9


def test_extinction_evidence_is_of_the_best_lattices_alone(gathered):
    groups = groups_of_lattice()
    for evidence in gathered[:4]:
        examined = {lattice.bravais for lattice in evidence.lattices[:3] if lattice.score >= evidence.facts[0] - 6}
        known = set(np.concatenate([groups[name] for name in examined]))
        assert set(np.flatnonzero(evidence.extinction)) <= known
        assert np.any(evidence.extinction)


def test_diamond_glides_speak_in_silicon(batch):
    """Lines of a face-centred cell without 200, 222 and 420: F d - - before F - - -."""
    from crystaldl.physics.symmetry import extinction_of_group

    silicon = pattern_evidence(batch[0][2][batch[1][2]].astype(float), LIMITS)
    assert "cF" in {c.bravais for c in silicon.lattices[:3]}
    plain, glide = extinction_of_group()[224], extinction_of_group()[226]
    assert silicon.extinction[glide] > silicon.extinction[plain]


def test_too_few_lines_are_neutral(gathered):
    for evidence in gathered[4:]:
        assert not evidence.scores.any() and not evidence.extinction.any() and evidence.lattices == ()
    assert [e.facts.tolist() for e in gathered[4:]] == [[0, 0, 2], [0, 0, 0]]


@pytest.mark.parametrize("bravais", CELLS)
def test_conventional_cells_come_back(bravais):
    cell = CELLS[bravais]
    g = np.linalg.inv(metric_tensor(cell))
    assert conventional_cell(bravais, (g[0, 0], g[1, 1], g[2, 2], 2 * g[0, 2])) == pytest.approx(cell)


def test_a_hexagonal_cell_needs_no_second_axis():
    """The search writes (A, A, C, 0); what stands in B and D is of no meaning there."""
    g = np.linalg.inv(metric_tensor(CELLS["hR"]))
    assert conventional_cell("hR", (g[0, 0], g[0, 0], g[2, 2], 0.0)) == pytest.approx(CELLS["hR"])


def test_the_search_reports_the_cell_it_scored():
    found = lattice_scores(cubic_peaks(5.64, HALITE))
    evidence = pattern_evidence(cubic_peaks(5.64, HALITE), LIMITS)
    row = LATTICES.index(evidence.lattices[0].bravais)
    assert evidence.lattices[0].cell == pytest.approx(conventional_cell(LATTICES[row], found.cell[row]))
    assert evidence.scores == pytest.approx(found.score)
