"""What a classification says about itself: `explain`, `cells`, `confident`."""

from __future__ import annotations

import numpy as np
import pytest

import crystaldl as cdl
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


def test_the_network_alone_has_no_lattice():
    result = cdl.load_example("powder/halite").classify(method="network")
    assert result.cells == () and "network alone" in result.explain()


def test_doubts_are_spelled_out():
    pattern = cdl.load_example("powder/halite")
    few = Classification(pattern, np.full(230, 1 / 230), "auto", "m", "0", False, lines=2, second_phase_probability=0.9)
    text = few.explain()
    assert "only 2 lines" in text and "second phase" in text and "No lattice explains" in text
