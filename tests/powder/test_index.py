"""`PowderPattern.index`: known cells are found again, and what comes with them is right."""

from __future__ import annotations

from dataclasses import replace

import gemmi
import matplotlib
import numpy as np
import pytest

from crystaldl.errors import DataError
from crystaldl.physics.lattice import cell_volume, inverse_d
from crystaldl.powder.cell_refinement import build_cell, fit_cell, peaks_from, predicted_lines, with_uncertainty
from crystaldl.powder.index import check_options
from crystaldl.powder.indexing.bravais import (
    BRAVAIS,
    HIGHEST_GROUP,
    cell_of,
    derivative_index,
    lattices_of,
    metric_of,
    niggli_cell,
    same_lattice,
)
from crystaldl.powder.indexing.coincidences import has_special_metric
from crystaldl.powder.indexing.pools import IndexOptions, Lattice, LineTable, Pool, line_table
from crystaldl.powder.indexing.staged_search import StagedSearch, alone, settled
from crystaldl.powder.pattern import PowderPattern

matplotlib.use("Agg")

WAVELENGTH = 1.54059
CELLS = {
    "cF": (5.463, 5.463, 5.463, 90, 90, 90),
    "cI": (8.90, 8.90, 8.90, 90, 90, 90),
    "tP": (7.461, 7.461, 4.959, 90, 90, 90),
    "hP": (9.215, 9.215, 9.192, 90, 90, 120),
    "hR": (4.990, 4.990, 17.061, 90, 90, 120),
    "oP": (4.756, 5.980, 10.207, 90, 90, 90),
    "oC": (3.145, 9.863, 7.298, 90, 90, 90),
    "mP": (7.800, 6.300, 8.700, 90, 104.0, 90),
    "mC": (8.200, 5.600, 9.100, 90, 101.0, 90),
    "aP": (6.600, 7.900, 9.200, 84.0, 77.0, 71.0),
}


def lines_of(bravais: str, cell, count: int = 30, top: float = 90.0) -> np.ndarray:
    """2θ of the first lines of a lattice, by brute force and gemmi's absences."""
    q_top = 2 * np.sin(np.radians(top / 2)) / WAVELENGTH
    axes = [np.arange(-int(q_top * edge) - 1, int(q_top * edge) + 2, dtype=np.int32) for edge in cell[:3]]
    hkl = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    hkl = hkl[hkl.any(1)]
    absent = gemmi.find_spacegroup_by_number(HIGHEST_GROUP[bravais]).operations().systematic_absences(hkl)
    q = np.unique(inverse_d(hkl[~np.asarray(absent, bool)], cell).round(7))
    q = q[q < q_top][:count]
    return 2 * np.degrees(np.arcsin(q * WAVELENGTH / 2))


@pytest.fixture(scope="module")
def pattern() -> PowderPattern:
    x = np.arange(5.0, 90.0, 0.02)
    return PowderPattern(x, 10.0 + 5 * np.sin(x), WAVELENGTH, "lines given", background_subtracted=True)


@pytest.fixture(scope="module")
def search(pattern):
    """Searches that several tests look at, made once."""
    kept = {}

    def run(bravais: str):
        if bravais not in kept:
            kept[bravais] = pattern.index(lines_of(bravais, CELLS[bravais]), progress=False)
        return kept[bravais]

    return run


def truth(bravais: str) -> np.ndarray:
    return niggli_cell(CELLS[bravais], bravais[1])


@pytest.mark.parametrize("bravais", CELLS)
def test_exact_lines_give_the_lattice_back(search, bravais):
    found = search(bravais)
    best = found.best
    assert best.bravais == bravais
    assert same_lattice(best.niggli, truth(bravais), 1e-3)
    assert best.volume == pytest.approx(cell_volume(CELLS[bravais]), rel=2e-3)
    assert abs(best.zero) < 0.01 and len(best.unindexed) == 0
    assert best.m20 > 50 and best.fn > 50
    assert best.lengths_angles == pytest.approx(CELLS[bravais], rel=2e-3) or bravais == "aP"
    assert [c.score for c in found] == sorted((c.score for c in found), reverse=True)


def test_the_system_follows_from_the_lattice(search):
    names = {
        "cF": "cubic",
        "hP": "hexagonal",
        "hR": "trigonal",
        "oC": "orthorhombic",
        "mC": "monoclinic",
        "aP": "triclinic",
    }
    assert {b: search(b).best.system for b in names} == names


def test_every_line_of_the_table_obeys_bragg(search):
    cell = search("mC").best
    expected = 2 * np.degrees(np.arcsin(inverse_d(cell.lines.hkl, cell.lengths_angles) * WAVELENGTH / 2)) + cell.zero
    assert cell.lines.calculated == pytest.approx(expected, abs=1e-4)
    assert cell.lines.difference == pytest.approx(cell.lines.observed - cell.lines.calculated)
    assert ((cell.lines.hkl[:, 0] + cell.lines.hkl[:, 1]) % 2 == 0).all()


@pytest.mark.parametrize("shift", [0.08, -0.08])
def test_zero_shift_and_impurities(pattern, shift):
    """Two lines of something else and a zero shift, noise of 0.005°."""
    rng = np.random.default_rng(3)
    lines = lines_of("oP", CELLS["oP"], 28)
    extra = np.array([24.37, 31.02])
    seen = np.sort(np.concatenate([lines + rng.normal(0, 0.005, lines.size), extra])) + shift
    best = pattern.index(seen, progress=False).best
    assert best.bravais == "oP" and same_lattice(best.niggli, truth("oP"), 3e-3)
    assert best.zero == pytest.approx(shift, abs=0.02)
    assert np.abs(best.unindexed[:, None] - extra - shift).min(0).max() < 0.001


def test_strong_lines_are_told_from_those_of_a_second_phase():
    x = np.linspace(20.0, 70.0, 30)
    height = np.where(np.arange(30) % 3 == 0, 1.0, 0.2)
    table = LineTable(x, np.full(30, 0.01), np.ones(30), WAVELENGTH, np.arange(30), height)
    strong = table.strong(10)
    assert (strong.height == 1.0).all() and (np.diff(strong.two_theta) > 0).all()
    assert (strong.source == np.arange(0, 30, 3)).all()
    unknown = LineTable(x, np.full(30, 0.01), np.ones(30), WAVELENGTH, np.arange(30))
    assert len(unknown.strong(10)) == 30 and len(table[:8].strong(10)) == 8


def test_triclinic_with_noise_shift_and_a_missing_line(pattern):
    rng = np.random.default_rng(1)
    lines = np.delete(lines_of("aP", CELLS["aP"], 32), [3, 9])
    seen = np.append(lines + rng.normal(0, 0.006, lines.size) + 0.04, 18.03)
    found = pattern.index(seen, progress=False)
    assert any(same_lattice(c.niggli, truth("aP"), 5e-3) for c in found[:3])


def test_pseudosymmetry_is_seen_through(pattern):
    """Kyanite: an orthorhombic cell of twice the volume fits within 0.04°, the triclinic one exactly."""
    cell = (7.126, 7.852, 5.572, 89.99, 101.11, 106.03)
    best = pattern.index(lines_of("aP", cell), progress=False).best
    assert best.bravais == "aP" and same_lattice(best.niggli, niggli_cell(cell), 1e-3)


def test_systems_and_volume_are_respected(pattern, search):
    found = pattern.index(lines_of("tP", CELLS["tP"]), systems=["orthorhombic", "cubic"], progress=False)
    assert {c.system for c in found} <= {"orthorhombic", "cubic"}
    assert all(c.volume < 3000 * 4 for c in search("aP"))


# ---------------------------------------------------------------------------------------------- lattices


@pytest.mark.parametrize("bravais", CELLS)
def test_metric_symmetry_is_recognised_from_the_reduced_cell(bravais):
    found = dict(lattices_of(niggli_cell(CELLS[bravais], bravais[1])))
    assert bravais in found
    assert cell_volume(found[bravais]) == pytest.approx(cell_volume(CELLS[bravais]), rel=1e-6)
    highest = max(found, key=lambda name: BRAVAIS[name][2])
    assert BRAVAIS[highest][0] == BRAVAIS[bravais][0]


def test_a_reduced_cell_does_not_depend_on_the_description():
    cell = np.array(CELLS["mC"])
    other = np.array([[1, 0, 0], [0, 1, 0], [1, 0, 1]])
    from crystaldl.physics.lattice import cell_from_metric, metric_tensor

    turned = cell_from_metric(other @ metric_tensor(cell) @ other.T)
    assert same_lattice(niggli_cell(cell, "P"), niggli_cell(turned, "P"), 1e-6)
    assert cell_of(metric_of(cell)) == pytest.approx(cell)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_superlattices_are_recognised(n):
    cell = niggli_cell(CELLS["aP"])
    large = np.array(CELLS["aP"])
    large[1] *= n
    assert derivative_index(niggli_cell(large), cell) == n
    large[1] *= 1.1
    assert derivative_index(niggli_cell(large), cell) == 0


def test_predicted_lines_agree_with_gemmi():
    for bravais, cell in CELLS.items():
        expected = lines_of(bravais, cell, 10**6, 70.0)
        _, q = predicted_lines(bravais, cell, 2 * np.sin(np.radians(35.0)) / WAVELENGTH)
        assert 2 * np.degrees(np.arcsin(q * WAVELENGTH / 2)) == pytest.approx(expected, abs=2e-3)


# ---------------------------------------------------------------------------------------------- refinement


@pytest.mark.parametrize(("bravais", "shift"), [("oP", "zero"), ("mP", "displacement"), ("aP", "zero")])
def test_uncertainties_cover(pattern, bravais, shift):
    """Pulls of refined cells and shifts have unit variance over 40 draws of 0.01° noise."""
    rng = np.random.default_rng(0)
    lines = lines_of(bravais, CELLS[bravais], 40)
    true_shift = 0.05
    seen = lines + true_shift * (np.cos(np.radians(lines / 2)) if shift == "displacement" else 1.0)
    pulls = []
    for _ in range(40):
        peaks = peaks_from(seen + rng.normal(0, 0.01, lines.size), pattern.radiation)
        fit = fit_cell(bravais, CELLS[bravais], 0.0, peaks, shift, rounds=6)
        free = fit.sigma > 0
        pulls.append(
            np.append((fit.cell - CELLS[bravais])[free] / fit.sigma[free], (fit.zero - true_shift) / fit.zero_sigma)
        )
    assert 0.75 < np.sqrt(np.mean(np.square(pulls))) < 1.35
    assert free.sum() == {"oP": 3, "mP": 4, "aP": 6}[bravais]


def test_refine_and_figures_of_merit(pattern, search):
    cell = search("oP").best
    better = cell.refine(lines_of("oP", CELLS["oP"], 60))
    assert better.lengths_angles == pytest.approx(CELLS["oP"], abs=2e-3)
    assert better.sigma[:3].max() < 2e-3 and (better.sigma[3:] == 0).all()
    off = np.abs(better.lines.difference)[:20].mean()
    top = better.lines.calculated[19] + 1e-4
    possible = (better.reflections(top)[1] <= top).sum()
    assert better.merit_lines == 20
    assert better.fn == pytest.approx(20 / (max(off, 1e-5) * possible), rel=0.02)
    assert cell.refine(shift="none").zero == 0.0
    with pytest.raises(DataError, match="shift is 'both'"):
        cell.refine(shift="both")
    with pytest.raises(DataError, match="needs more lines"):
        cell.refine(lines_of("oP", CELLS["oP"], 60)[:3])


@pytest.mark.parametrize("bravais", ["hR", "mC", "aP"])
def test_cif_is_read_back(search, tmp_path, bravais):
    cell = search(bravais).best
    path = cell.to_cif(tmp_path / "cell.cif")
    structure = gemmi.read_small_structure(str(path))
    assert structure.cell.parameters == pytest.approx(cell.lengths_angles, abs=2e-3)
    assert structure.spacegroup.number == HIGHEST_GROUP[bravais]
    assert structure.spacegroup.hm[0] == (bravais[1] if bravais != "aP" else "P")


@pytest.mark.parametrize(
    ("value", "sigma", "text"),
    [(7.12345, 0.00052, "7.1235(5)"), (7.12345, 0.0012, "7.1235(12)"), (90.0, 0.0, "90"), (101.11, 0.03, "101.11(3)")],
)
def test_numbers_with_uncertainties(value, sigma, text):
    assert with_uncertainty(value, sigma) == text


def test_results_print_and_draw(search, pattern):
    import matplotlib.pyplot as plt

    found = search("oP")
    assert "oP" in repr(found) and "oP" in found._repr_html_() and "Å³" in found.best._repr_html_()
    assert len(found.to_dataframe()) == len(found) and len(found.best.lines.to_dataframe()) == len(found.best.lines)
    for figure, _ in (found.show(), found.best.show(), found.best.show(pattern)):
        plt.close(figure)
    with pytest.raises(DataError, match="which is 99"):
        found.show(99)


@pytest.mark.parametrize("bravais, cell", [("cF", (24.74, 24.74, 24.74, 90, 90, 90)), ("cP", (20.4, 20.4, 20.4, 90, 90, 90)),
                                           ("hP", (23.1, 23.1, 17.4, 90, 90, 120))])  # fmt: skip
def test_frameworks_with_large_cells(pattern, bravais, cell):
    """Cells of zeolites and metal-organic frameworks; a limit of the volume leaves them out."""
    lines = np.random.default_rng(2).choice(lines_of(bravais, cell, 50), 30, replace=False)
    found = pattern.index(lines, progress=False, systems=("cubic", "tetragonal", "hexagonal", "orthorhombic"))
    assert found[0].bravais == bravais and found[0].lengths_angles[0] == pytest.approx(cell[0], rel=1e-3)
    smaller = pattern.index(lines, progress=False, systems=("cubic", "hexagonal"), max_volume=1500.0)
    assert all(c.volume <= 1500 * 1.02 * {"P": 1, "I": 2, "F": 4, "R": 3}[c.bravais[1]] for c in smaller)


SUBLATTICES = {  # (true lattice, lattice that has all lines that are seen)
    "boron nitride": ("hP", (2.504, 2.504, 6.661, 90, 90, 120), "oF", (2.504, 2.504 * np.sqrt(3), 6.661, 90, 90, 90)),
    "spinel": ("cF", (8.15, 8.15, 8.15, 90, 90, 90), "hR", (8.15 / np.sqrt(8), 8.15 / np.sqrt(8), 8.15 * np.sqrt(3), 90, 90, 120)),
}


@pytest.mark.parametrize("name", SUBLATTICES)
def test_a_special_metric_is_that_of_the_larger_lattice(pattern, name):
    """Only those lines are seen that a sublattice of lower symmetry has, too: nothing would make its metric so special."""
    bravais, cell, lower, smaller = SUBLATTICES[name]
    others = lines_of(lower, smaller, 90)
    seen = [x for x in lines_of(bravais, cell) if np.abs(others - x).min() < 0.005]
    found = pattern.index(np.array(seen), progress=False)
    assert found[0].bravais == bravais and found[0].lengths_angles == pytest.approx(cell, rel=1e-3)
    assert any(c.bravais == lower for c in found.cells), "which remains to be seen"


# ---------------------------------------------------------------------------------------------- lines and arguments


def test_split_lines_are_put_together(pattern):
    peaks = peaks_from(np.array([20.0, 25.0, 25.03, 30.0, 35.0]), pattern.radiation)
    from dataclasses import replace

    table = line_table(replace(peaks, fwhm=np.full(5, 0.1), intensity=np.array([1.0, 3.0, 1.0, 1.0, 1.0])))
    assert table.two_theta == pytest.approx([20.0, 25.0075, 30.0, 35.0])
    assert list(table.source) == [0, 1, 3, 4]


BAD = [
    ({"systems": "cubist"}, "systems holds 'cubist'"),
    ({"systems": ()}, "systems is empty"),
    ({"systems": 3}, "systems is of type int"),
    ({"max_volume": -1}, "max_volume is -1"),
    ({"lines": 2.5}, "lines is 2.5"),
    ({"impurities": 11}, "impurities is 11"),
    ({"zero_limit": np.nan}, "zero_limit is nan"),
    ({"volume_hint": "big"}, "volume_hint is 'big'"),
    ({"time_limit": -3}, "time_limit is -3"),
    ({"peaks": [20.0, 30.0, 40.0]}, "peaks holds 3 lines"),
    ({"peaks": [20.0, np.nan, 40.0, 50.0]}, "peaks must be a one-dimensional"),
    ({"peaks": "lines"}, "peaks is of type str"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD)
def test_bad_input_is_named(pattern, arguments, message):
    with pytest.raises(DataError, match=message):
        pattern.index(**{"peaks": lines_of("oP", CELLS["oP"]), "progress": False, **arguments})


def test_unknown_settings_are_refused(pattern):
    with pytest.raises(TypeError, match="max_volum"):
        pattern.index(lines_of("oP", CELLS["oP"]), max_volum=3)


def test_options():
    assert check_options() == IndexOptions()
    assert check_options(systems="cubic").systems == ("cubic",)


def test_few_lines_settle_high_symmetry_and_low_symmetry_is_tried_last(pattern):
    told = []
    table = lambda b: line_table(peaks_from(lines_of(b, CELLS[b], 10), pattern.radiation))  # noqa: E731
    few = StagedSearch(table("cF"), IndexOptions(), told.append)
    assert few.first() and few.found[0].bravais == "cF"
    assert told == ["cubic to orthorhombic, zero shift +0.00°"], "ten lines of a cubic lattice need nothing else"
    low = StagedSearch(table("mP"), IndexOptions(systems=("monoclinic",)), told.append)
    low.first()
    told.clear()
    assert not low.more(0.0) and told == [], "out of time: no other zero shift"


def test_each_zero_shift_is_tried_once_where_nothing_convinces(pattern, monkeypatch):
    told = []
    lines = line_table(peaks_from(lines_of("mP", CELLS["mP"], 10), pattern.radiation))
    search = StagedSearch(lines, IndexOptions(systems=("monoclinic",)), told.append)
    monkeypatch.setattr(search, "_convinced", lambda high_only=False: False)
    monkeypatch.setattr(search, "_low_symmetry", lambda zero: None)
    assert not search.first() and told == ["monoclinic and triclinic", "monoclinic and triclinic, zero shift +0.00°"]
    assert not search.more(np.inf)
    assert told[2:] == [f"monoclinic and triclinic, zero shift {zero:+.2f}°" for zero in (0.06, -0.06, 0.12, -0.12)]


def test_a_short_axis_that_low_angle_lines_do_not_tell(pattern):
    """All of the first twenty lines are h0l: b, known from farther lines, has to outlive a refinement on these."""
    cell = (9.55, 2.835, 9.79, 90, 93.7, 90)
    lines = line_table(peaks_from(lines_of("mP", cell, 60), pattern.radiation))
    start = Pool(metric_of(np.array(cell))[None], np.zeros(1), np.array(["mP"]), np.zeros(1))
    settings = (0.015, 0.010), 4.0, 3
    assert len(start.improve(lines.head(12), IndexOptions(hold=False), *settings)) == 0
    kept = start.improve(lines.head(12), IndexOptions(), *settings)
    assert cell_of(kept.g)[0] == pytest.approx(cell, rel=1e-3)


@pytest.mark.parametrize("shift", [0.12, -0.12])
def test_many_close_lines_are_indexed_with_a_large_zero_shift(pattern, shift):
    """A tetragonal cell of 743 Å³ whose low-angle lines alone do not tell the shift."""
    cell = (7.49, 7.49, 13.24, 90, 90, 90)
    lines = lines_of("tP", cell, 55)
    seen = lines[np.random.default_rng(1).random(lines.size) > 0.3] + shift
    found = StagedSearch(line_table(peaks_from(np.sort(seen), pattern.radiation)), IndexOptions())
    assert found._down_to_orthorhombic()
    assert same_lattice(found.found[0].niggli, niggli_cell(cell), 3e-3)
    assert found.found[0].zero == pytest.approx(shift, abs=0.03)


def test_a_special_metric_settles_nothing(pattern):
    """An orthorhombic cell with b/a = √3 explains all lines: those of a rhombohedral lattice, half of them too weak to be seen."""
    lattice = lambda name, *cell: Lattice(name, np.array(cell, float), niggli_cell(cell, name[1]), 0.0, 97.0)  # noqa: E731
    special = lattice("oP", 3.121, 3.121 * 3**0.5, 29.995, 90, 90, 90)
    plain = lattice("oP", 3.121, 5.2, 29.995, 90, 90, 90)
    assert has_special_metric(special) and not has_special_metric(plain)
    assert not has_special_metric(lattice("hP", 3.121, 3.121, 29.995, 90, 90, 120)), "it has that symmetry itself"
    for own, enough in ((special, False), (plain, True)):
        lines = line_table(peaks_from(lines_of("oP", own.cell, 25), pattern.radiation))
        assert settled([own], lines, IndexOptions()) == enough and alone([own], lines, IndexOptions()) == enough
    hexagonal = lattice("hP", 6.242, 6.242, 29.995, 90, 90, 120)
    lines = line_table(peaks_from(lines_of("oP", special.cell, 25), pattern.radiation))
    found = [special, replace(hexagonal, score=96.0)]
    assert alone(found, lines, IndexOptions()) and not settled(found, lines, IndexOptions()), "the profile tells the two"


def test_kin_is_left_to_the_profile(pattern):
    lines = line_table(peaks_from(lines_of("tP", CELLS["tP"], 25), pattern.radiation))
    true = Lattice("tP", np.array(CELLS["tP"], float), niggli_cell(CELLS["tP"]), 0.0, 60.0)
    double = true.cell * [1, 1, 2, 1, 1, 1]
    found = [true, Lattice("tP", double, niggli_cell(double), 0.0, 58.0)]
    assert alone(found, lines, IndexOptions()) and not settled(found, lines, IndexOptions())


def test_nothing_else_is_looked_for_where_only_kin_comes_near(pattern):
    """Lines of a second phase among many of the first: not all are explained, but nothing else explains as many."""
    cell = niggli_cell(CELLS["oP"])
    true = Lattice("oP", np.array(CELLS["oP"], float), cell, 0.0, 110.0)
    double = Lattice("oP", true.cell * [1, 1, 2, 1, 1, 1], niggli_cell(true.cell * [1, 1, 2, 1, 1, 1]), 0.0, 108.0)
    other = Lattice("oP", true.cell * [1.07, 0.95, 1.02, 1, 1, 1], niggli_cell(true.cell * [1.07, 0.95, 1.02, 1, 1, 1]), 0.0, 80.0)
    lines = lines_of("oP", CELLS["oP"], 20)
    foreign = lambda n: line_table(peaks_from(np.sort([*lines, *(lines[:n] + 0.31)]), pattern.radiation))  # noqa: E731
    options = IndexOptions()
    assert not settled([true, double, other], foreign(3), options)
    assert alone([true, double, other], foreign(3), options) and alone([true], foreign(3), options)
    assert alone([true, double, other], foreign(3), options, high_only=True)
    assert not alone([true, double, other], foreign(12), options), "too much is left over"
    near = replace(other, score=100.0)
    assert not alone([true, double, near], foreign(3), options), "another lattice explains as much"
    assert not alone([replace(true, score=70.0), replace(other, score=20.0)], foreign(3), options)
    assert not alone([], foreign(3), options)


def test_a_cell_with_too_few_lines_is_not_built(pattern):
    peaks = peaks_from(lines_of("aP", CELLS["aP"])[:5], pattern.radiation)
    with pytest.raises(DataError, match="7 parameters"):
        build_cell("aP", CELLS["aP"], 0.0, 0.0, peaks)
