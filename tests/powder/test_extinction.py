"""Absent lines: predicted reflections, and the extinction group of exact line lists in every setting."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from crystaldl.physics.lattice import inverse_d, metric_tensor
from crystaldl.physics.symmetry import (
    BRAVAIS_LATTICES,
    bravais_of_group,
    extinction_members,
    extinction_of_group,
    extinction_symbols,
    space_group,
)
from crystaldl.powder.indexing.extinction import (
    absent_table,
    extinction_evidence,
    groups_of_lattice,
    predicted_reflections,
    table_index,
)
from crystaldl.powder.prepare import REFERENCE_WAVELENGTH

LIMITS = np.log(2 * np.sin(np.radians(np.array([5.0, 80.0]) / 2)) / REFERENCE_WAVELENGTH)
CELLS = {
    "m": (5.0, 6.3, 7.1, 90, 103.0, 90),
    "o": (4.8, 5.9, 7.3, 90, 90, 90),
    "t": (5.4, 5.4, 7.9, 90, 90, 90),
    "h": (5.1, 5.1, 8.3, 90, 90, 120),
    "c": (7.6, 7.6, 7.6, 90, 90, 90),
}


def coefficients(metric) -> np.ndarray:
    """(6,) coefficients of h², k², l², kl, hl, hk of a direct metric tensor."""
    g = np.linalg.inv(metric)
    return np.array([g[0, 0], g[1, 1], g[2, 2], 2 * g[1, 2], 2 * g[0, 2], 2 * g[0, 1]])


def all_lines(number: int, cell) -> np.ndarray:
    """1/d of every reflection that space group ``number`` allows, within LIMITS."""
    reach = int(np.exp(LIMITS[1]) * max(cell[:3])) + 1
    hkl = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1, dtype=np.int32)] * 3, indexing="ij"), -1).reshape(-1, 3)
    hkl = hkl[hkl.any(1)]
    hkl = hkl[~np.asarray(space_group(number).operations().systematic_absences(hkl), bool)]
    q = np.unique(inverse_d(hkl, cell).round(8))
    return q[(np.log(q) > LIMITS[0]) & (np.log(q) < LIMITS[1])]


def strong_peaks(q) -> np.ndarray:
    return np.stack([np.log(q), np.zeros(len(q)), np.full(len(q), np.log(100.0))], 1)


def lattice_of(number: int) -> str:
    return BRAVAIS_LATTICES[bravais_of_group()[number - 1]]


def first_groups(values: dict[int, float]) -> set[str]:
    best = max(values.values())
    return {extinction_symbols()[g] for g, v in values.items() if v > best - 1e-9}


def symbol(number: int) -> str:
    return extinction_symbols()[extinction_of_group()[number - 1]]


# ------------------------------------------------------------------------------------------ tables


def test_the_lattices_share_out_the_99_extinction_groups():
    groups = groups_of_lattice()
    assert tuple(groups) == BRAVAIS_LATTICES
    counts = {"aP": 1, "mP": 4, "mC": 2, "oP": 19, "oC": 7, "oI": 4, "oF": 3, "tP": 23, "tI": 8, "hP": 8, "hR": 2, "cP": 8,
              "cI": 5, "cF": 5}  # fmt: skip
    assert {name: len(g) for name, g in groups.items()} == counts
    assert sorted(np.concatenate(list(groups.values()))) == list(range(99))
    assert sum(len(extinction_members()[g]) for g in range(99)) == 230


@pytest.mark.parametrize("number", [14, 15, 20, 22, 62, 72, 136, 142, 146, 194, 205, 225, 230])
def test_predicted_reflections_are_those_of_the_centring(number):
    """All lines of the lattice's symmorphic group up to 55°, each once up to inversion, in ascending order."""
    lattice = lattice_of(number)
    plain = {"P": 1, "C": 21, "I": 23, "F": 22, "R": 146}[lattice[1]] if lattice != "mC" else 5
    cell = CELLS[lattice[0]]
    q2_max = (2 * np.sin(np.radians(27.5)) / REFERENCE_WAVELENGTH) ** 2
    hkl, q2 = predicted_reflections(coefficients(metric_tensor(cell)), lattice, q2_max)
    assert (np.diff(q2) >= 0).all() and q2.max() <= q2_max
    assert q2 == pytest.approx(inverse_d(hkl, cell) ** 2)
    assert len({tuple(v) for v in np.concatenate([hkl, -hkl])}) == 2 * len(hkl)
    expected = all_lines(plain, cell) ** 2
    assert np.unique(q2.round(7)) == pytest.approx(np.unique(expected[expected <= q2_max].round(7)), abs=2e-7)


# ------------------------------------------------------------------------------------------ exact lists

GROUPS = [16, 19, 29, 33, 60, 61, 62, 20, 36, 64, 72, 70, 75, 92, 96, 114, 127, 130, 136, 88, 141, 143, 152, 163, 173, 176,
          148, 167, 195, 198, 205, 218, 199, 206, 230, 225, 227, 4, 11, 7, 14, 5, 12, 9, 15]  # fmt: skip


def test_long_axes_have_all_their_lines():
    metric = coefficients(metric_tensor([4.143, 4.143, 28.636, 90.0, 90.0, 120.0]))  # Bi2Se3
    hkl, _ = predicted_reflections(metric, "hR", 0.8)
    assert hkl[(hkl[:, :2] == 0).all(1), 2].tolist() == [3, 6, 9, 12, 15, 18, 21, 24]


@pytest.mark.parametrize("number", [14, 15, 43, 70, 92, 141, 167, 178, 205, 220, 230])
def test_absences_repeat_beyond_the_table(number):
    rng = np.random.default_rng(number)
    hkl = rng.integers(-30, 31, (400, 3))
    hkl[:100, rng.integers(0, 3)] = 0
    hkl[100:150, 1] = hkl[100:150, 0]
    hkl[150:200, :2] = 0
    wanted = np.asarray(space_group(number).operations().systematic_absences(hkl.astype(np.int32)), bool)
    got = absent_table(int(extinction_of_group()[number - 1]))[table_index(hkl)]
    size = np.abs(hkl)
    alike = ((size - np.roll(size, 1, axis=1)) % 12 == 0).any(1) & (size.max(1) > 14)  # two unlike indices may become alike
    assert (got == wanted)[~alike].all()


@pytest.mark.parametrize("number", GROUPS)
def test_the_true_group_is_first(number):
    lattice = lattice_of(number)
    cell = CELLS[lattice[0]]
    values = extinction_evidence(
        lattice, coefficients(metric_tensor(cell)), 0.0, strong_peaks(all_lines(number, cell)), LIMITS
    )
    assert set(values) == set(groups_of_lattice()[lattice])
    assert symbol(number) in first_groups(values)


@pytest.mark.parametrize("axes", list(permutations(range(3))))
@pytest.mark.parametrize("number", [29, 33, 57, 60, 62])
def test_orthorhombic_axes_may_have_any_names(number, axes):
    cell = CELLS["o"]
    lines = strong_peaks(all_lines(number, cell))
    named = coefficients(metric_tensor(cell))[[*axes, 3, 4, 5]]
    values = extinction_evidence("oP", named, 0.0, lines, LIMITS)
    assert first_groups(values) == {symbol(number)}
    straight = extinction_evidence("oP", coefficients(metric_tensor(cell)), 0.0, lines, LIMITS)
    assert values == pytest.approx(straight)


#: new axes in terms of the old: unique axis b kept; a and c exchanged, or the diagonal of the ac face taken
CHOICES = {
    "c": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "a": [[0, 0, 1], [0, -1, 0], [1, 0, 0]],
    "n": [[-1, 0, -1], [0, 1, 0], [1, 0, 0]],
    "n, other way": [[1, 0, 0], [0, 1, 0], [1, 0, 1]],
    "obtuse": [[1, 0, 0], [0, -1, 0], [0, 0, -1]],
}


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("number", [4, 7, 14])
def test_monoclinic_cells_may_be_chosen_freely(number, choice):
    cell = CELLS["m"]
    basis = np.array(CHOICES[choice])
    assert abs(np.linalg.det(basis)) == pytest.approx(1)
    chosen = coefficients(basis @ metric_tensor(cell) @ basis.T)
    values = extinction_evidence("mP", chosen, 0.0, strong_peaks(all_lines(number, cell)), LIMITS)
    assert first_groups(values) == {symbol(number)}


# ------------------------------------------------------------------------------------------ behaviour


def test_evidence_is_relative_to_the_mean_and_follows_the_zero_shift():
    cell = CELLS["t"]
    coefs = coefficients(metric_tensor(cell))
    q = all_lines(136, cell)
    exact = extinction_evidence("tP", coefs, 0.0, strong_peaks(q), LIMITS)
    assert np.mean(list(exact.values())) == pytest.approx(0, abs=1e-9)
    shifted = np.degrees(2 * np.arcsin(q * REFERENCE_WAVELENGTH / 2)) + 0.2
    q_shifted = 2 * np.sin(np.radians(shifted / 2)) / REFERENCE_WAVELENGTH
    assert extinction_evidence("tP", coefs, 0.2, strong_peaks(q_shifted), LIMITS) == pytest.approx(exact)
    # without the shift the lines are not seen, and nothing is learnt that the true group would gain from
    lost = extinction_evidence("tP", coefs, 0.0, strong_peaks(q_shifted), LIMITS)
    best = int(extinction_of_group()[135])
    assert lost[best] - min(lost.values()) < exact[best] - min(exact.values())


def test_a_forbidden_line_speaks_against_a_group_and_a_faint_one_less():
    cell = CELLS["c"]
    coefs = coefficients(metric_tensor(cell))
    q = all_lines(205, cell)  # Pa-3: no 100
    pa3 = int(extinction_of_group()[204])
    clean = extinction_evidence("cP", coefs, 0.0, strong_peaks(q), LIMITS)
    peaks = strong_peaks(np.sort(np.append(q, 1 / cell[0])))
    loud = extinction_evidence("cP", coefs, 0.0, peaks, LIMITS)
    peaks[0, 2] = np.log(2.5)
    faint = extinction_evidence("cP", coefs, 0.0, peaks, LIMITS)
    plain = int(extinction_of_group()[194])
    gain = [v[pa3] - v[plain] for v in (clean, faint, loud)]
    assert gain[0] > gain[1] > gain[2]


def test_nothing_to_tell():
    peaks = strong_peaks(all_lines(2, CELLS["m"]))
    (triclinic,) = extinction_evidence("aP", np.array([1, 1, 1, 0, 0, 0.0]), 0.0, peaks, LIMITS).items()
    assert triclinic == (int(extinction_of_group()[0]), 0.0)
    # a range in which the cell has no line at all
    narrow = np.log([0.1301, 0.1302])
    values = extinction_evidence("cP", coefficients(metric_tensor(CELLS["c"])), 0.0, peaks, narrow)
    assert set(values) == set(groups_of_lattice()["cP"]) and not any(values.values())
