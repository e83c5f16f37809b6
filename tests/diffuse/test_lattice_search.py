"""The repeat of the order in planes without a lattice."""

from __future__ import annotations

import numpy as np
import pytest

from crystaldl.diffuse.factorise import lattice_search
from crystaldl.diffuse.factorise.lattice_peaks import (
    coarser_lattices,
    finer_lattices,
    lattice_points,
    likely_lattices,
    reduced,
)
from crystaldl.diffuse.factorise.lattice_search import _laid, find_centre, find_lattice
from crystaldl.diffuse.factorise.solver import FactoriseOptions
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


def contains(lattice, vectors) -> bool:
    """Whether the rows of ``vectors`` are vectors of a lattice."""
    turn = vectors @ np.linalg.inv(lattice)
    return np.abs(turn - np.rint(turn)).max() < 1e-9


def all_differ(lattices) -> bool:
    return all(
        np.abs(turn - np.rint(turn)).max() > 0.1
        for k, other in enumerate(lattices) for turn in (other @ np.linalg.inv(earlier) for earlier in lattices[:k])
    )  # fmt: skip


@pytest.mark.parametrize("index", [2, 3])
def test_lattices_that_hold_another(index):
    """All of them: 3 of index 2 and 4 of index 3, different ones, each with the vectors of the first."""
    dual = np.array([[0.05, 0.003], [-0.01, 0.06]])
    area = abs(np.linalg.det(dual))
    found = [other for other in finer_lattices(dual) if abs(np.linalg.det(other)) == pytest.approx(area / index)]
    assert len(found) == index + 1
    assert all(contains(other, dual) for other in found) and all_differ(found)


def test_the_shortest_basis():
    rows = reduced(np.array([0.05, 0.0]), np.array([0.31, 0.06]))
    assert rows == pytest.approx(np.array([[0.05, 0.0], [0.01, 0.06]]))
    index, points = lattice_points(rows, 0.13)
    assert points == pytest.approx(index @ rows) and np.hypot(*points.T).max() <= 0.13
    assert len(points) == pytest.approx(0.5 * np.pi * 0.13**2 / 0.003, abs=3)


def test_a_lattice_whose_points_stand_out_little():
    """Stronger vectors near the origin, as between the atoms of a molecule, do not belong to it."""
    f = np.linspace(-0.5, 0.5, 401)
    x, y = np.meshgrid(f, f, indexing="ij")
    dual = np.array([[0.06, 0.004], [-0.01, 0.07]])
    _, points = lattice_points(dual, 0.4)
    rng = np.random.default_rng(3)
    real = 0.02 * rng.normal(size=x.shape) * np.exp(-6 * np.hypot(x, y))
    for point, height in [*((p, 0.08 * np.exp(-6 * np.hypot(*p))) for p in points), ((0.031, 0.02), 1.0), ((0.04, -0.03), 0.7)]:
        for sign in (1, -1):
            real += height * np.exp(-((x - sign * point[0]) ** 2 + (y - sign * point[1]) ** 2) / 0.006**2)
    found = likely_lattices((real, f, f), 0.012, 3)[0] @ np.linalg.inv(dual)
    assert found == pytest.approx(np.rint(found), abs=0.03) and abs(np.linalg.det(found)) == pytest.approx(1.0, abs=0.02)


def test_lattices_in_another():
    """3 of index 2 and 4 of index 3, each of whose vectors belongs to the first."""
    dual = np.array([[0.05, 0.003], [-0.01, 0.06]])
    area = abs(np.linalg.det(dual))
    found = coarser_lattices(dual)
    assert sorted(round(abs(np.linalg.det(other)) / area) for other in found) == [2] * 3 + [3] * 4
    assert all(contains(dual, other) for other in found) and all_differ(found)


@pytest.mark.parametrize("index", [2, 4])
def test_from_a_lattice_that_holds_the_true_one(monkeypatch, index):
    """Bonds that are nearly a fraction of a lattice vector make such a lattice the likeliest by the transform."""
    volume = far_ordered({(1, 0): -0.1, (0, 1): -0.08, (1, 1): 0.06, (2, 0): 0.05, (1, 2): 0.03})
    finer = np.diag([1.0 / PERIOD, 1.0 / PERIOD]) / np.array([[2.0], [index / 2.0]])
    monkeypatch.setattr(lattice_search, "likely_lattices", lambda *_: [finer])
    nodes = find_lattice(volume, FactoriseOptions(links=("linear",)), centre=find_centre(volume))
    assert abs(np.linalg.det(nodes)) == pytest.approx(PERIOD**2, rel=2e-3)


def test_nodes_are_laid_on_the_pixels():
    hexagonal = np.linalg.inv(np.array([[20.0, 34.64], [20.0, -34.64]]) + 0.02).T
    nodes = _laid(hexagonal, (256, 256))
    assert np.unique(np.abs(nodes).round(9)).size == 2 and abs(np.linalg.det(nodes)) == pytest.approx(2 * 20 * 34.64, rel=3e-3)
    turn = np.array([[1.0, 0.012], [-0.012, 1.0]])          # 3 pixels over the plane: really turned
    assert _laid(np.diag([0.05, 0.04]) @ turn, (256, 256))[0, 1] != 0
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
