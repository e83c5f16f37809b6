"""Random variants of a site: chemistry that could exist, and pairs that differ."""

from __future__ import annotations

import json

import numpy as np
import pytest

from crystaldl.diffuse import molecules as m
from crystaldl.errors import FileFormatError


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(11)
    return [m.random_molecule(rng) for _ in range(300)]


def distances(xyz):
    return np.linalg.norm(xyz[:, None] - xyz[None], axis=-1) + 9 * np.eye(len(xyz))


def test_molecules_are_plausible(many):
    for z, xyz in many:
        assert 2 <= len(z) <= 20 and len(xyz) == len(z)
        assert np.abs(xyz.mean(0)).max() < 1e-9
        apart = distances(xyz)
        radii = np.array([m.bond_length(int(k), int(k)) / 2 for k in z])
        single = radii[:, None] + radii
        assert (apart > 0.74 * single - 1e-9).all(), "triple bonds are 0.78 of the single one; nothing is nearer"
        bonded = apart < 1.15 * single
        assert bonded.any(1).all(), "no atom is on its own"
        for k in np.flatnonzero(z == 1):
            assert bonded[k][z > 1].any(), "hydrogen hangs on something"


def test_variety(many):
    sizes = np.array([len(z) for z, _ in many])
    elements = set(np.concatenate([z for z, _ in many]).tolist())
    assert {1, 6, 7, 8, 9, 16, 17, 35} <= elements
    assert np.percentile(sizes, 10) <= 6 and np.percentile(sizes, 90) >= 12
    flat = sum(np.linalg.svd(xyz)[1][-1] < 1e-6 for _, xyz in many if len(xyz) > 3)
    assert 0.1 < flat / len(many) < 0.7
    assert len({m.formula(z) for z, _ in many}) > 200


def test_polyhedra():
    rng = np.random.default_rng(2)
    coordination = set()
    for _ in range(200):
        z, xyz = m.random_polyhedron(rng)
        length = np.linalg.norm(xyz[1:], axis=1)
        assert length == pytest.approx(m.bond_length(int(z[0]), int(z[1])), rel=0.35)
        coordination.add(len(z) - 1)
    assert coordination == {2, 3, 4, 6}


def test_pairs():
    rng = np.random.default_rng(5)
    pairs = [m.random_pair(rng) for _ in range(400)]
    assert {p.kind for p in pairs} == set(m.PAIR_KINDS)
    assert {p.family.split(":")[0] for p in pairs} == {"molecule", "polyhedron", "atom"}
    for pair in pairs:
        z_a, xyz_a, z_b, xyz_b = pair
        assert len(m.signed_atoms(*pair)[0]) > 0
        both = np.concatenate([xyz_a, xyz_b])
        assert len(both) < 2 or distances(both)[np.triu_indices(len(both), 1)].max() <= 11.0
        if pair.kind in ("rotation", "reorientation"):
            assert (z_a == z_b).all()
            assert np.sort(distances(xyz_a), None) == pytest.approx(np.sort(distances(xyz_b), None))
        if pair.kind == "displaced":
            shift = xyz_b - xyz_a
            assert shift == pytest.approx(np.broadcast_to(shift[0], shift.shape))
        if pair.kind == "vacancy":
            assert len(z_b) < len(z_a)


def test_pairs_follow_the_seed():
    a, b = (m.random_pair(np.random.default_rng(3)) for _ in range(2))
    assert a.family == b.family and (a.xyz_b == b.xyz_b).all()


def test_common_atoms_cancel():
    first = [6, 8, 17, 0], [[0, 0, 0], [1, 0, 0], [2, 0, 0], [5, 5, 5]]
    second = [6, 8, 35], [[0, 0, 0], [1, 0.01, 0], [2, 0, 0]]
    z, xyz, sign = m.signed_atoms(*first, *second)
    assert z.tolist() == [8, 17, 8, 35] and sign.tolist() == [1, 1, -1, -1] and xyz[2].tolist() == [1, 0.01, 0]


def test_transformed():
    pair = m.Pair(np.array([6]), np.array([[1.0, 0, 0]]), np.array([8]), np.array([[0, 1.0, 0]]), "f", "different", (4, 5, 6))
    turned = pair.transformed(m.axis_rotation((0, 0, 1), 90))
    assert turned.xyz_a == pytest.approx(np.array([[0, 1, 0]])) and turned.xyz_b == pytest.approx(np.array([[-1, 0, 0]]))
    assert (turned.family, turned.kind, turned.cell) == ("f", "different", (4, 5, 6))


def test_rotations():
    rng = np.random.default_rng(0)
    many = np.array([m.random_rotation(rng) for _ in range(2000)])
    assert np.einsum("nij,nkj->nik", many, many) == pytest.approx(np.broadcast_to(np.eye(3), many.shape))
    assert np.linalg.det(many) == pytest.approx(np.ones(2000))
    assert np.abs(many.mean(0)).max() < 0.05 and np.square(many).mean(0) == pytest.approx(np.full((3, 3), 1 / 3), abs=0.03)


def test_formula():
    assert m.formula([6, 1, 1, 1, 6, 1, 1, 8, 1]) == "C2H6O"
    assert m.formula([26, 8, 8]) == "FeO2" and m.formula([]) == "vacancy"


def test_library(shared_data):
    path = shared_data / "diffuse" / "dsfu_net" / "molecules_train.json"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    pairs = m.pairs_from_library(path)
    assert len(pairs) > 50 and all(len(m.signed_atoms(*p)[0]) for p in pairs)
    benzoquinone = next(p for p in pairs if p.family == "Benzoquinone")
    assert np.abs(benzoquinone.xyz_a[:, 2]).max() < 1e-9, "flat molecules lie in the plane"
    assert any(p.kind == "substitution" for p in pairs) and all(p.cell[0] > 3 for p in pairs)


def test_library_written_here(tmp_path):
    entry = {"group": 1, "lattice": [4, 5, 6], "Z_xyz_angstrom": [[8, 0, 0, 0], [1, 0, 0, 1]]}
    turned = {**entry, "Z_xyz_angstrom": [[8, 0, 0, 0], [1, 1, 2, 3]]}
    path = tmp_path / "molecules.json"
    path.write_text(json.dumps([{"name": "OH", **entry}, {"name": "OH_R", **turned}]))
    (pair,) = m.pairs_from_library(path)
    assert pair.family == "OH" and pair.cell == (4, 6, 5) and pair.xyz_b[1].tolist() == [1, 3, -2]


def test_bad_library(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a JSON list of molecules"):
        m.pairs_from_library(tmp_path / "none.json")
    for text in ("{", '[{"name": 1}]', '{"a": 1}'):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(FileFormatError, match="bad.json cannot be read"):
            m.pairs_from_library(tmp_path / "bad.json")
