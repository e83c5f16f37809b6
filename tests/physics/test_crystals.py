"""Crystals: libraries, CIF, and variation that keeps the symmetry."""

from __future__ import annotations

import gzip
import json

import numpy as np
import pytest

from crystaldl.errors import FileFormatError
from crystaldl.physics.crystals import (
    Crystal,
    aflow_prototypes,
    find_symmetry,
    jitter,
    read_cif,
    read_library,
    strain,
    substitute,
)
from crystaldl.physics.reflections import powder_lines
from crystaldl.physics.symmetry import CRYSTAL_SYSTEMS, SYSTEM_OF_GROUP, operations

QUARTZ = """data_quartz
_cell_length_a 4.9134
_cell_length_b 4.9134
_cell_length_c 5.4052
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 120
_symmetry_space_group_name_H-M 'P 32 2 1'
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Si1 Si 0.4697(1) 0 0.66667 1.0
O1  O  0.4135(3) 0.2669(2) 0.7858(1) {occupancy}
"""


@pytest.fixture(scope="module")
def library(request):
    """About 60 structures of many space groups; pymatgen's AFLOW prototypes where the shared data are absent."""
    crystals = []
    try:
        path = request.getfixturevalue("shared_data") / "powder" / "structures.json.gz"
        crystals = read_library(path) if path.is_file() else []
    except pytest.skip.Exception:
        pass
    crystals = crystals or aflow_prototypes()
    if not crystals:
        pytest.skip("neither the shared structure library nor pymatgen's AFLOW prototypes are here")
    picked = {}
    for crystal in crystals:
        if len(crystal.numbers) <= 80 and crystal.symmetry().number == crystal.space_group:
            picked.setdefault(crystal.space_group, crystal)
        if len(picked) >= 60:
            break
    return list(picked.values())


def number_of(crystal):
    data = find_symmetry(crystal.cell, crystal.positions, crystal.numbers, 0.01)
    return None if data is None else data.number


def test_the_library_is_large_enough(library):
    assert len(library) >= 40
    assert len({CRYSTAL_SYSTEMS[SYSTEM_OF_GROUP[c.space_group - 1]] for c in library}) >= 4


def test_substitution_keeps_the_space_group(library):
    rng, changed = np.random.default_rng(0), 0
    for crystal in library:
        new = substitute(crystal, rng, probability=0.9)
        changed += not np.array_equal(new.numbers, crystal.numbers)
        # equal before, equal after; different before, different after
        assert len(np.unique(new.numbers)) == len(np.unique(crystal.numbers))
        pairs = set(zip(crystal.numbers.tolist(), new.numbers.tolist(), strict=True))
        assert len(pairs) == len(np.unique(crystal.numbers))
        assert number_of(new) == crystal.space_group
    assert changed > 0.7 * len(library)


def test_strain_keeps_the_space_group(library):
    rng = np.random.default_rng(1)
    for crystal in library:
        new = strain(crystal, rng, sigma=0.03)
        assert not np.allclose(new.cell[:3], crystal.cell[:3], rtol=1e-4)
        assert np.array_equal(new.positions, crystal.positions)
        assert number_of(new) == crystal.space_group


def test_jitter_keeps_the_space_group(library):
    rng, moved = np.random.default_rng(2), 0
    for crystal in library:
        new = jitter(crystal, rng, sigma=0.05)
        assert np.array_equal(new.cell, crystal.cell)
        moved += not np.allclose(new.positions, crystal.positions, atol=1e-6)
        assert number_of(new) == crystal.space_group
        shift = (new.positions - crystal.positions) * crystal.cell[:3]
        assert np.sqrt((shift**2).sum(-1).mean()) < 0.101
    assert moved > 0.3 * len(library)  # the others have no free coordinates


def test_all_together_is_seeded(library):
    def vary(crystal, seed):
        rng = np.random.default_rng(seed)
        return jitter(strain(substitute(crystal, rng), rng), rng)

    for crystal in library[:10]:
        one, two = vary(crystal, 3), vary(crystal, 3)
        assert np.array_equal(one.positions, two.positions) and np.array_equal(one.cell, two.cell)
        assert number_of(one) == crystal.space_group
        assert not np.array_equal(vary(crystal, 4).cell, one.cell)


def test_symmetry_permutations():
    ops = operations(62)
    sites = np.random.default_rng(3).random((2, 3))
    positions = np.concatenate([ops.rotations @ x + ops.translations for x in sites])
    crystal = Crystal(np.repeat([12, 8], 8), positions, (10.2, 6.0, 4.8, 90, 90, 90), 62)
    symmetry = crystal.symmetry()
    assert symmetry.number == 62 and symmetry.permutations.shape == (8, 16)
    for w, t, p in zip(symmetry.rotations, symmetry.translations, symmetry.permutations, strict=True):
        delta = positions @ w.T + t - positions[p]
        assert np.abs(delta - np.round(delta)).max() < 1e-6
        assert sorted(p) == list(range(16)) and np.array_equal(crystal.numbers[p], crystal.numbers)
    assert crystal.symmetry() is symmetry  # kept


# ------------------------------------------------------------------------------------------------ files


def test_read_cif(tmp_path):
    path = tmp_path / "quartz.cif"
    path.write_text(QUARTZ.format(occupancy="1.0"))
    crystal = read_cif(path)
    assert crystal.space_group == 154 and sorted(crystal.numbers) == [8] * 6 + [14] * 3
    assert crystal.cell == pytest.approx([4.9134, 4.9134, 5.4052, 90, 90, 120])
    assert number_of(crystal) == 154 and crystal.name == "quartz"
    path.write_text(QUARTZ.format(occupancy="0.5"))
    half = read_cif(path)
    assert half.occupancy[half.numbers == 8] == pytest.approx(0.5)


def test_cif_round_trip_through_pymatgen(tmp_path, library):
    pytest.importorskip("pymatgen")
    from pymatgen.core import Lattice, Structure

    for i, crystal in enumerate(library[:8]):
        path = tmp_path / f"{i}.cif"
        structure = Structure(Lattice.from_parameters(*crystal.cell), [int(z) for z in crystal.numbers], crystal.positions)
        structure.to(filename=str(path), symprec=0.01)
        again = read_cif(path)
        assert again.space_group == crystal.space_group
        q, intensity = powder_lines(crystal.numbers, crystal.positions, crystal.cell, 0.5)
        q2, intensity2 = powder_lines(again.numbers, again.positions, again.cell, 0.5, occupancy=again.occupancy)
        strong, strong2 = intensity > 0.02 * intensity.max(), intensity2 > 0.02 * intensity2.max()
        assert q2[strong2] == pytest.approx(q[strong], rel=1e-4)
        assert intensity2[strong2] == pytest.approx(intensity[strong] * (again.volume / crystal.volume) ** 2, rel=0.02)


RECORD = {"sg": 225, "abc": [4.2, 4.2, 4.2], "ang": [90, 90, 90], "Z": [12, 8], "xyz": [[0, 0, 0], [0.5, 0, 0]]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b'[{"sg": 225',
        b"7",
        b"[7]",
        json.dumps([{k: v for k, v in RECORD.items() if k != "xyz"}]).encode(),
        json.dumps([RECORD | {"ang": 90}]).encode(),
        json.dumps([RECORD | {"Z": ["Mg", "O"]}]).encode(),
        json.dumps([RECORD | {"xyz": [[0, 0], [0.5, 0]]}]).encode(),
    ],
)
def test_damaged_libraries(tmp_path, content):
    path = tmp_path / "library.json"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"^library\.json .*expected"):
        read_library(path)


def test_libraries_that_are_not_there_or_not_whole(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a file; expected a JSON library"):
        read_library(tmp_path / "none.json")
    path = tmp_path / "library.json.gz"
    path.write_bytes(gzip.compress(json.dumps([RECORD] * 50).encode())[:-20])
    with pytest.raises(FileFormatError, match="library"):
        read_library(path)


def test_prototypes_are_the_known_structures():
    """Space group, elements and lattice parameters (Å) of minerals, against handbook values."""
    pytest.importorskip("pymatgen")
    named = {crystal.name: crystal for crystal in aflow_prototypes()}
    assert len(named) > 150
    for name, group, elements, a, c in (
        ("Halite, Rock Salt", 225, {11, 17}, 5.640, 5.640), ("diamond", 227, {6}, 3.567, 3.567),
        ("Rutile", 136, {8, 22}, 4.594, 2.958), ("Anatase", 141, {8, 22}, 3.785, 9.514),
        ("Corundum", 167, {8, 13}, 4.759, 12.993), ("Wurtzite", 186, {16, 30}, 3.823, 6.261),
    ):  # fmt: skip
        crystal = named[name]
        assert crystal.space_group == group and set(crystal.numbers.tolist()) == elements
        assert crystal.cell[[0, 2]] == pytest.approx([a, c], rel=0.01)
        assert number_of(crystal) == group


def test_a_structure_that_is_none_has_no_symmetry():
    """Two atoms in one place: spglib refuses, and only the identity is left."""
    impossible = Crystal([6, 6], [[0, 0, 0], [0, 0, 0]], (4, 4, 4, 90, 90, 90), 1)
    assert find_symmetry(impossible.cell, impossible.positions, impossible.numbers) is None
    symmetry = impossible.symmetry()
    assert symmetry.number == 1 and np.array_equal(symmetry.rotations, np.eye(3)[None])
    assert np.array_equal(symmetry.permutations, [[0, 1]]) and not symmetry.translations.any()


@pytest.mark.parametrize("zipped", [False, True])
def test_library_round_trip(tmp_path, zipped):
    records = [{"name": "rutile", "src": "book", "sg": 136, "abc": [4.59, 4.59, 2.96], "ang": [90, 90, 90], "Z": [22, 8],
                "xyz": [[0, 0, 0], [0.305, 0.305, 0]]},
               {"sg": 1, "abc": [3, 4, 5], "ang": [80, 90, 100], "Z": [6], "xyz": [[0.1, 0.2, 0.3]]}]  # fmt: skip
    path = tmp_path / ("library.json.gz" if zipped else "library.json")
    with (gzip.open if zipped else open)(path, "wt", encoding="utf-8") as stream:
        json.dump(records, stream)
    one, two = read_library(path)
    assert (one.name, one.source, one.space_group) == ("rutile", "book", 136) and two.name == ""
    assert one.positions.shape == (2, 3) and one.cell == pytest.approx([4.59, 4.59, 2.96, 90, 90, 90])
    assert two.volume == pytest.approx(60 * np.sqrt(1 - 2 * np.cos(np.radians(80)) ** 2))


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="path is .*nowhere.cif.*expected a CIF"):
        read_cif(tmp_path / "nowhere.cif")
    path = tmp_path / "x.cif"
    for text in ("", "this is not a CIF at all\n1 2 3\n", "data_x\n_cell_length_a 4\n", QUARTZ[:300]):
        path.write_text(text)
        with pytest.raises(ValueError, match="path is .*CIF") as caught:
            read_cif(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        read_library(tmp_path / "nowhere.json.gz")


def test_bad_crystals():
    with pytest.raises(ValueError, match="positions has 2 rows but numbers has 1"):
        Crystal([6], [[0, 0, 0], [0.5, 0.5, 0.5]], [3, 3, 3, 90, 90, 90], 221)
    with pytest.raises(ValueError, match="space_group is 300"):
        Crystal([6], [[0, 0, 0]], [3, 3, 3, 90, 90, 90], 300)
