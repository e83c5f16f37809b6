"""The repeat of the order in planes without a lattice."""

from __future__ import annotations

import numpy as np
import pytest

from crystaldl.diffuse.factorise import FactoriseOptions
from crystaldl.diffuse.lattice_search import _joined, _laid, find_centre, find_lattice
from crystaldl.diffuse.separate import separate
from crystaldl.diffuse.volume import DiffuseVolume

SIDE, PERIOD = 112, 14.0


def far_ordered(alpha) -> DiffuseVolume:
    """A square lattice with a period of 14 pixels, whose order need not show between neighbours."""
    x = np.arange(SIDE) - SIDE // 2
    u, v = np.meshgrid(x / PERIOD, x / PERIOD, indexing="ij")
    order = 1 + 2 * sum(a * np.cos(2 * np.pi * (u * m + v * n)) for (m, n), a in alpha.items())
    assert order.min() > 0
    bond = np.cos(2 * np.pi * (0.31 * u + 0.12 * v)) + 0.5 * np.cos(2 * np.pi * (0.2 * u - 0.27 * v))
    return DiffuseVolume.from_pixels(100.0 * np.exp(-0.03 * (u**2 + v**2)) * (5.0 + bond) * order)


def test_strong_vectors_far_out_do_not_hide_the_lattice():
    """2a and 3a are strong, a itself is nothing: two peaks span a cell that is too small in Q, a third one mends it."""
    volume = far_ordered({(2, 0): 0.12, (3, 0): 0.1, (0, 2): 0.12, (0, 3): 0.1})
    nodes = find_lattice(volume, FactoriseOptions(), centre=find_centre(volume))
    assert np.abs(np.linalg.det(nodes)) == pytest.approx(PERIOD**2, rel=2e-3)
    assert np.sort(np.linalg.norm(nodes, axis=1)) == pytest.approx([PERIOD, PERIOD], rel=2e-3)


@pytest.mark.parametrize("peak, expected", [((0.2, 0.0), (0.05, 0.05)), ((0.125, 0.025), None), ((0.0, 0.1), (0.25, 0.05))])
def test_a_further_peak_joins_a_cell(peak, expected):
    """(4/5, 0) of a cell means a fifth of its first vector; a vector of the cell changes nothing."""
    joined = _joined(np.array([[0.25, 0.0], [0.0, 0.05]]), np.array([peak]), (256, 256))
    if expected is None:                     # (1/2, 1/2): the centred cell
        assert abs(np.linalg.det(joined[0])) == pytest.approx(0.25 * 0.05 / 2)
    else:
        assert sorted(np.linalg.norm(joined[0], axis=1)) == pytest.approx(sorted(expected))


def test_a_peak_beside_the_lattice_is_left_alone():
    assert _joined(np.array([[0.25, 0.0], [0.0, 0.05]]), np.array([[0.137, 0.02]]), (256, 256)) == []


def test_nodes_are_laid_on_the_pixels():
    nodes = _laid(np.array([[0.05, 1e-5], [0.0, 0.04]]), (256, 256))
    assert nodes == pytest.approx(np.diag([20.0, 25.0]), rel=1e-3) and nodes[0, 1] == nodes[1, 0] == 0
    assert _laid(np.array([[0.3, 0.0], [0.0, 0.05]]), (256, 256)) is None
    assert _laid(np.array([[0.005, 0.0], [0.0, 0.05]]), (256, 256)) is None


def test_a_plane_whose_order_shows_only_far_out(shared_data):
    """A simulated plane of other authors: clipped S, gaps of a real detector, lattice not given."""
    path = shared_data / "diffuse" / "dsfu_net" / "test2.npy"
    if not path.is_file():
        pytest.skip(f"no {path.name}")
    data = np.load(path).astype(float).squeeze() + 1.0
    parts = separate(DiffuseVolume.from_pixels(np.where(data > 0, data, np.nan)), device="cpu", progress=False)
    assert parts.r_factor < 0.01 and parts.r_free < 0.01
    assert parts.period == pytest.approx(22.266 * np.eye(2), abs=0.02)
    assert parts.bragg_radius == 0
