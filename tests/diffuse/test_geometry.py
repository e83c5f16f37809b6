"""What planes see of the lattice: nodes and order vectors found by hand, and by counting lattice points."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from crystaldl.diffuse.geometry import (
    allowed,
    axis_scales,
    centring_vectors,
    denominators,
    half_space,
    pixel_lattice,
    plane_lattice,
    vectors_within,
)
from crystaldl.diffuse.separate import direct_vectors
from crystaldl.diffuse.volume import DiffuseVolume
from crystaldl.errors import DataError

CUBIC, TETRAGONAL = (5.0, 5.0, 5.0, 90, 90, 90), (6.0, 6.0, 8.0, 90, 90, 90)
HEXAGONAL, TRICLINIC = (5.0, 5.0, 7.0, 90, 90, 120), (5.0, 6.0, 7.0, 80, 95, 110)
X = np.linspace(-2, 2, 21)


def plane(lattice, basis=((1, 0, 0), (0, 1, 0)), origin=(0, 0, 0)):
    return DiffuseVolume.from_basis(np.ones((21, 21)), (X, X), basis, origin, lattice)


def cartesian(lattice):
    """Direct basis vectors as rows, Å, a along x."""
    a, b, c, al, be, ga = *lattice[:3], *np.radians(lattice[3:])
    cx = np.cos(be)
    cy = (np.cos(al) - np.cos(be) * np.cos(ga)) / np.sin(ga)
    return np.array([[a, 0, 0], [b * np.cos(ga), b * np.sin(ga), 0], [c * cx, c * cy, c * math.sqrt(1 - cx**2 - cy**2)]])


def projected_points(lattice, centring, basis, radius):
    """Distances of all direct-lattice points, projected on a plane of reciprocal space, by brute force."""
    cell = cartesian(lattice)
    reciprocal = np.linalg.inv(cell).T
    first, second = (np.asarray(b, float) @ reciprocal for b in basis)
    e1 = first / np.linalg.norm(first)
    e2 = second - (second @ e1) * e1
    e2 /= np.linalg.norm(e2)
    whole = np.array(list(itertools.product(range(-6, 7), repeat=3)))
    points = (whole[:, None] + centring_vectors(centring)[None]).reshape(-1, 3) @ cell
    flat = np.unique(np.round(np.stack([points @ e1, points @ e2], 1), 6) + 0.0, axis=0)
    length = np.linalg.norm(flat, axis=1)
    return np.sort(length[length < radius])


# ---------------------------------------------------------------- nodes and duals

PLANES = [
    # basis, centring, nodes expected in axis coordinates (up to a choice of basis)
    (((1, 0, 0), (0, 1, 0)), "P", ((1, 0), (0, 1))),
    (((1, 0, 0), (0, 0, 1)), "P", ((1, 0), (0, 1))),
    (((1, 1, 0), (0, 0, 1)), "P", ((1, 0), (0, 1))),
    (((1, 0, 0), (0, 1, 0)), "C", ((1, 1), (1, -1))),
    (((1, 0, 0), (0, 0, 1)), "C", ((2, 0), (0, 1))),
    (((1, 0, 0), (0, 1, 0)), "A", ((1, 0), (0, 2))),
    (((1, 0, 0), (0, 1, 0)), "B", ((2, 0), (0, 1))),
    (((1, 0, 0), (0, 1, 0)), "I", ((1, 1), (1, -1))),
    (((1, 0, 0), (0, 1, 0)), "F", ((2, 0), (0, 2))),
    (((1, 1, 0), (0, 0, 1)), "I", ((1, 0), (0, 2))),
    (((1, 1, 0), (0, 0, 1)), "F", ((1, 1), (1, -1))),
    (((1, 0, 0), (0, 1, 0)), "R", ((1, 1), (2, -1))),
    (((0.5, 0.5, 0), (0, 0, 2)), "P", ((2, 0), (0, 0.5))),
]


@pytest.mark.parametrize(("basis", "centring", "expected"), PLANES)
@pytest.mark.parametrize("lattice", [CUBIC, TETRAGONAL, HEXAGONAL, TRICLINIC])
def test_nodes_of_planes(lattice, basis, centring, expected):
    """The found basis spans the same lattice: it is an integer, unimodular combination of the one worked out by hand."""
    found = plane_lattice(plane(lattice, basis), centring)
    change = found.nodes @ np.linalg.inv(np.array(expected, float))
    assert change == pytest.approx(np.round(change), abs=1e-9)
    assert abs(np.linalg.det(change)) == pytest.approx(1.0)
    assert found.dual @ found.nodes.T == pytest.approx(np.eye(2), abs=1e-12)
    assert found.has_nodes and found.shift == pytest.approx(0)
    assert found.even_order and found.even_factor


@pytest.mark.parametrize(("basis", "centring"), [p[:2] for p in PLANES])
@pytest.mark.parametrize("lattice", [CUBIC, HEXAGONAL, TRICLINIC])
def test_order_vectors_are_the_projected_lattice(lattice, basis, centring):
    """The frequencies of the order are the direct lattice projected along the normal of the plane, point by point."""
    found = plane_lattice(plane(lattice, basis), centring)
    radius = 8.0
    n = vectors_within(found.dual, found.metric, radius)
    length = found.length(n @ found.dual)
    own = np.sort(np.concatenate([length[:1], np.repeat(length[1:], 2)]))        # R and −R, zero once
    assert length[0] == 0 and np.all(length <= radius * (1 + 1e-9))
    assert own[own < radius - 1e-3] == pytest.approx(projected_points(lattice, centring, basis, radius - 1e-3), abs=2e-5)
    assert found.cell_measure == pytest.approx(
        cell_volume(lattice, centring) * spacing(lattice, basis, centring), rel=1e-9)


def cell_volume(lattice, centring):
    return abs(np.linalg.det(cartesian(lattice))) / len(centring_vectors(centring))


def spacing(lattice, basis, centring):
    """1 / (distance of direct-lattice layers along the zone axis), 1/Å: |R_zone|⁻¹ of the shortest point on the axis."""
    axis = np.cross(*np.asarray(basis, float))
    axis /= np.abs(axis).max()
    whole = np.array(list(itertools.product(range(-4, 5), repeat=3)))
    points = (whole[:, None] + centring_vectors(centring)[None]).reshape(-1, 3)
    on = points[(np.linalg.norm(np.cross(points, axis), axis=1) < 1e-9) & np.any(np.abs(points) > 1e-9, axis=1)]
    return 1.0 / np.linalg.norm(on @ cartesian(lattice), axis=1).min()


def test_volumes():
    x = np.linspace(-1.2, 1.2, 9)
    v = DiffuseVolume(np.ones((9, 9, 9)), x, x, x, HEXAGONAL)
    for centring, points in (("P", 1), ("C", 2), ("I", 2), ("F", 4), ("R", 3)):
        found = plane_lattice(v, centring)
        assert abs(np.linalg.det(found.nodes)) == pytest.approx(points)
        assert allowed(np.round(found.nodes).astype(int), centring).all()
        assert found.cell_measure == pytest.approx(cell_volume(HEXAGONAL, centring))
        assert found.even_order and found.even_factor


# ---------------------------------------------------------------- off-centre planes

OFFSETS = [
    # origin, basis, centring, has nodes, node at (axis coordinates), even S, even D
    ((0, 0, 1), None, "P", True, (0, 0), True, False),
    ((0, 0, 0.5), None, "P", False, (0, 0), True, False),
    ((0, 0, 0.3), None, "P", False, (0, 0), False, False),
    ((0, 0, 1), None, "I", True, (0, 1), True, False),
    ((0.5, 0.5, 0), None, "P", True, (0.5, 0.5), True, False),
    ((0.25, 0, 0), None, "P", True, (-0.25, 0), False, False),
    ((1, 0, 0), None, "P", True, (0, 0), True, False),
    ((0, 0, 0), ((1, 1, 0), (0, 0, 1)), "P", True, (0, 0), True, True),
    ((1, -1, 0), ((1, 1, 0), (0, 0, 1)), "P", True, (0, 0), True, False),
]


@pytest.mark.parametrize(("origin", "basis", "centring", "has_nodes", "node", "even_order", "even_factor"), OFFSETS)
def test_offset_planes(origin, basis, centring, has_nodes, node, even_order, even_factor):
    basis = basis or ((1, 0, 0), (0, 1, 0))
    found = plane_lattice(plane(CUBIC, basis, origin), centring)
    assert found.has_nodes == has_nodes
    # any node will do: what must be right is that the point is one
    if has_nodes:
        hkl = np.array(origin) + found.shift @ np.array(basis, float)
        assert hkl == pytest.approx(np.round(hkl)) and allowed(np.round(hkl).astype(int), centring)
        assert np.linalg.norm(found.shift) == pytest.approx(np.linalg.norm(node))
    assert found.even_factor == even_factor
    assert found.even_order == even_order


@pytest.mark.parametrize("origin", [(0, 0, 0), (0, 0, 1), (0, 0, 0.5), (0, 0, 0.3), (0.25, 0, 0), (0.5, 0.5, 0), (1, 0, 0)])
@pytest.mark.parametrize("centring", ["P", "C", "I", "F"])
def test_evenness_is_never_claimed_wrongly(origin, centring):
    """Against an S with arbitrary α on R and −R: where S(x) = S(−x) is claimed it must hold."""
    v = plane(CUBIC, origin=origin)
    rng = np.random.default_rng(0)
    whole = np.array(list(itertools.product(range(-2, 3), repeat=3)))
    points = (whole[:, None] + centring_vectors(centring)[None]).reshape(-1, 3)
    s = np.ones(v.shape)
    for r, a in zip(points, rng.normal(size=len(points)), strict=True):
        s += a * np.cos(2 * np.pi * (v.hkl() @ r))
    even = bool(np.allclose(s, s[::-1, ::-1], atol=1e-9))
    found = plane_lattice(v, centring)
    assert even or not found.even_order
    d = np.cos(v.q_vectors() @ [1.3, 0.4, 0.9]) + np.sin(v.q_vectors() @ [0.2, -0.7, 1.1]) ** 2      # D(Q) = D(−Q), no more
    assert found.even_factor == bool(np.allclose(d, d[::-1, ::-1]))


def test_distance_to_node_in_pixels():
    v = plane(HEXAGONAL)
    step = X[1] - X[0]
    found = plane_lattice(v).distance_to_node(v.axes, np.array([step, step]))
    x = np.stack(np.meshgrid(X, X, indexing="ij"), -1)
    nodes = np.array(list(itertools.product(range(-4, 5), repeat=2)))
    expected = np.linalg.norm((x[:, :, None] - nodes) / step, axis=-1).min(-1)
    assert found == pytest.approx(expected)
    shifted = plane(CUBIC, origin=(0, 0, 1))
    distance = plane_lattice(shifted, "I").distance_to_node(shifted.axes, np.array([step, step]))
    at = [tuple(round(c) for c in shifted.hkl()[i]) for i in zip(*np.nonzero(distance < 1e-6), strict=True)]
    assert at and all(sum(hkl) % 2 == 0 for hkl in at)


def test_pixel_lattice_has_no_scale():
    nodes = np.array([[20.0, 1.5], [-2.0, 24.0]])
    found = pixel_lattice(nodes)
    assert found.dual @ nodes.T == pytest.approx(np.eye(2), abs=1e-12)
    assert found.cell_measure == pytest.approx(1 / abs(np.linalg.det(nodes)))
    assert found.length(np.array([0.03, 0.04])) == pytest.approx(0.05)


# ---------------------------------------------------------------- order vectors as lattice vectors


@pytest.mark.parametrize(("basis", "centring"), [p[:2] for p in PLANES[:-1]])
def test_direct_vectors_lie_on_the_lattice(basis, centring):
    """R has the projections R · basis_i of the frequency and is a lattice vector, one and the same for ±."""
    found = plane_lattice(plane(CUBIC, basis), centring)
    frequency = vectors_within(found.dual, found.metric, 12.0) @ found.dual
    vectors = direct_vectors(frequency, np.array(basis, float), centring)
    assert vectors @ np.array(basis, float).T == pytest.approx(frequency, abs=1e-9)
    phase = vectors[:, None] - centring_vectors(centring)
    assert np.all(np.abs(phase - np.round(phase)).max(-1).min(-1) < 1e-6)
    normal = np.cross(*np.array(basis, float))
    if centring == "P":
        assert np.abs(vectors @ normal).max() <= 0.5 * normal @ normal + 1e-9      # the shortest along the normal


def test_direct_vectors_of_a_volume():
    vectors = np.array([[1, 0, 0], [0.5, 0.5, 0], [-2, 1, 3]])
    basis = np.array([[1.0, 1, 0], [1, -1, 0], [0, 0, 1]])
    assert direct_vectors(vectors @ basis.T, basis, "C") == pytest.approx(vectors)


# ---------------------------------------------------------------- small parts


def test_half_space_and_denominators():
    grid = np.array(list(itertools.product(range(-2, 3), repeat=3)))
    keep = half_space(grid)
    kept = {tuple(v) for v in grid[keep]}
    assert len(kept) == (125 + 1) // 2
    assert all((tuple(-np.array(v)) not in kept) or not any(v) for v in kept)
    assert denominators(np.array([[0.5, 0.0], [0.0, 1 / 3]])) == (2, 3)
    assert denominators(np.array([[0.5, 0.25], [0.5, -0.25]])) == (2, 4)
    assert denominators(np.array([[0.1234567, 0.0], [0.0, 1.0]])) == (0, 1)


def test_units_in_which_frequencies_are_integers():
    centred = np.array([[0.1234567, 0.0731], [0.1234567, -0.0731]])
    assert axis_scales(centred) == pytest.approx([0.1234567, 0.0731]) and denominators(centred / axis_scales(centred)) == (1, 1)
    assert axis_scales(np.array([[0.5, 0.0], [0.25, 1 / 3]])) == pytest.approx([1.0, 1.0]), "rational as they are"
    assert axis_scales(np.array([[0.1234567, 0.0], [0.031, 1.0]])) == pytest.approx([1.0, 1.0]), "rows across the axes"


def test_centrings():
    assert len(centring_vectors("F")) == 4 and centring_vectors("R")[1] == pytest.approx([2 / 3, 1 / 3, 1 / 3])
    assert allowed(np.array([[1, 1, 1], [2, 0, 0], [1, 0, 0]]), "F").tolist() == [True, True, False]
    # obverse: −h + k + l = 3n
    hkl = np.array([[1, 0, 1], [-1, 0, 1], [0, 1, 2], [0, 0, 3], [0, 0, 1]])
    assert allowed(hkl, "R").tolist() == [True, False, True, True, False]
    with pytest.raises(DataError, match="centring is 'X', expected one of P"):
        centring_vectors("X")


def test_plane_without_lattice_directions():
    irrational = ((1, math.sqrt(2), 0), (0, math.pi, 1))
    with pytest.raises(DataError, match="no two reciprocal-lattice directions"):
        plane_lattice(plane(CUBIC, irrational))
