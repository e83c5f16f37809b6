"""Recognised crystals must explain the lines; dense cells explain much of any pattern and are not told apart so."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import crystaldl as cdl
from crystaldl.powder.classify import on_common_axis
from crystaldl.powder.families import Known
from crystaldl.powder.indexing.bravais import metric_of
from crystaldl.powder.indexing.evidence import gather_evidence
from crystaldl.powder.indexing.known_cells import belief, foreign_share, unexplained_shares
from crystaldl.powder.indexing.pools import Pool
from crystaldl.powder.prepare import normalise

CORUNDUM = (4.759, 4.759, 12.99, 90, 90, 120)
OTHERS = {"rutile": ("tP", (4.594, 4.594, 2.959, 90, 90, 90)), "bromellite": ("hP", (2.698, 2.698, 4.377, 90, 90, 120)),
          "quartz": ("hP", (4.913, 4.913, 5.405, 90, 90, 120))}  # fmt: skip


def pool(*cells) -> Pool:
    n = len(cells)
    return Pool(np.array([metric_of(c) for _, c in cells]), np.zeros(n), np.array([b for b, _ in cells], "U2"), np.zeros(n))


def evidence_of(name: str):
    y, mask, ratio, doublet = on_common_axis([cdl.load_example(name)])
    return gather_evidence(normalise(y, mask), mask, ratio, doublet, workers=1)[0]


def believed(cells, evidence) -> np.ndarray:
    return belief(cells, evidence.peaks, foreign_share(evidence))


@pytest.fixture(scope="module")
def corundum():
    return evidence_of("powder/corundum")


def test_a_solid_solution_keeps_the_cell(corundum):
    near = pool(("hR", CORUNDUM), ("hR", (4.81, 4.81, 13.12, 90, 90, 120)))
    assert (unexplained_shares(near, corundum.peaks) < 0.1).all()
    assert (believed(near, corundum) > 0.95).all()


def test_other_crystals_are_not_believed(corundum):
    assert (believed(pool(*OTHERS.values()), corundum) < 0.1).all()


def test_a_second_phase_is_not_held_against_the_first():
    """Rutile with 40 % corundum: half of the lines are foreign to rutile, as they are to the best lattice."""
    mixture = evidence_of("powder/rutile_with_corundum")
    assert mixture.lattices[0].bravais == "tP"
    rutile = pool(OTHERS["rutile"])
    assert unexplained_shares(rutile, mixture.peaks)[0] > 0.2 and believed(rutile, mixture)[0] > 0.95


def test_hardly_any_lines_say_nothing(corundum):
    few = replace(corundum, peaks=corundum.peaks[:3])
    assert (believed(pool(OTHERS["rutile"]), few) == 1).all() and len(believed(Pool(), corundum)) == 0


def test_what_is_not_believed_counts_as_unknown(corundum):
    """Families without a cell stay as they are; probabilities still sum to 1."""

    class Network:
        import torch

        cells = torch.tensor([CORUNDUM, OTHERS["rutile"][1], [np.nan] * 6])
        groups = torch.tensor([166, 135, 61])

    p = np.array([[0.3, 0.4, 0.2, 0.1]])
    known = Known(p, Network, [], None)
    (checked,) = known.checked([corundum]).p
    assert known.p is p and checked.sum() == pytest.approx(1)
    assert checked[0] == pytest.approx(0.3, abs=0.01) and checked[1] < 0.08 and checked[2] == 0.2
