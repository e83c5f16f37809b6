"""What a classification says about itself: `explain`, `cells`, `confident`."""

from __future__ import annotations

import numpy as np
import pytest

import crystaldl as cdl
from crystaldl.errors import DataError
from crystaldl.powder.result import Classification

SAMPLES = ("forsterite", "halite", "rutile_with_corundum")


@pytest.fixture(scope="module")
def results():
    patterns = [cdl.load_example(f"powder/{name}") for name in SAMPLES]
    return dict(zip(SAMPLES, cdl.classify_patterns(patterns, progress=False), strict=True))


def test_the_lattice_and_its_absences_are_named(results):
    text = results["forsterite"].explain()
    assert "Lattice oP" in text and "foreign to this lattice" in text
    best = results["forsterite"].lattices[0]
    assert f"{best.cell[0]:.4f}" in text
    fit = best.fit
    assert fit.explained > 0.9 and len(fit.curve) > 1000


def test_cells_refine_and_export(results, tmp_path):
    import gemmi

    result = results["forsterite"]
    cell = result.cells[0].refine(result.pattern)
    assert cell.bravais == "oP" and sorted(cell.lengths_angles[:3]) == pytest.approx([4.754, 5.980, 10.194], abs=0.02)
    assert (cell.sigma[:3] > 0).all() and (cell.sigma[:3] < 0.02).all()
    block = gemmi.cif.read(str(cell.to_cif(tmp_path / "cell.cif"))).sole_block()
    assert gemmi.cif.as_number(block.find_value("_cell_length_a")) == pytest.approx(cell.lengths_angles[0], abs=1e-3)


def test_a_second_phase_is_not_confident(results):
    mixture = results["rutile_with_corundum"]
    assert not mixture.confident
    assert "Not confident: " in mixture.explain()
    assert len(mixture.unexplained), "lines of corundum are foreign to the lattice of rutile"
    assert f"{1 / mixture.unexplained[0, 0]:.3f}"[:3] in str(mixture.to_dict()["unexplained"][0]["d"])


def test_what_is_left_of_a_mixture_is_the_second_phase(results):
    mixture = results["rutile_with_corundum"]
    before = mixture.pattern.intensity.copy()
    rest = mixture.remainder()
    assert "remainder()" in mixture.explain()
    assert rest.radiation == mixture.pattern.radiation and rest.name.endswith("remainder")
    assert np.array_equal(mixture.pattern.intensity, before)
    d = rest.radiation.wavelength / (2 * np.sin(np.radians(rest.two_theta / 2)))
    near = lambda spacing: np.nanmax(np.where(np.abs(d - spacing) < 0.004, rest.intensity, 0))  # noqa: E731
    assert near(2.5508) > 20 * near(3.2477), "corundum's (104) stays, rutile's (110) goes"
    second = rest.classify()
    assert second.looks_like == "Corundum" and second.space_group == 167


def test_nothing_is_left_without_a_fit(results):
    alone = cdl.load_example("powder/halite").classify(method="network")
    with pytest.raises(DataError, match="'network' holds no fitted lattice"):
        alone.remainder()
    pure, clean = results["forsterite"].remainder(), results["forsterite"].pattern.subtract_background()
    assert np.nanmax(pure.intensity) < 0.1 * np.nanmax(clean.intensity)
    assert np.nansum(pure.intensity) < 0.05 * np.nansum(clean.intensity)


def test_the_network_alone_has_no_lattice():
    result = cdl.load_example("powder/halite").classify(method="network")
    assert result.cells == () and "network alone" in result.explain()


def test_doubts_are_spelled_out():
    pattern = cdl.load_example("powder/halite")
    few = Classification(pattern, np.full(230, 1 / 230), "auto", "m", "0", False, lines=2, second_phase_probability=0.9)
    text = few.explain()
    assert "only 2 lines" in text and "second phase" in text and "No lattice explains" in text
