"""The reader of the mineral database, on a small one made here in the same form."""

from __future__ import annotations

import json
import sqlite3
from base64 import b64encode

import numpy as np
import pytest

from crystaldl.errors import FileFormatError
from crystaldl.physics.amcsd import read_amcsd

RUTILE = ["x,y,z", "-x,-y,z", "1/2-y,1/2+x,1/2+z", "1/2+y,1/2-x,1/2+z", "1/2-x,1/2+y,1/2-z", "1/2+x,1/2-y,1/2-z", "y,x,-z",
          "-y,-x,-z", "-x,-y,-z", "x,y,-z", "1/2+y,1/2-x,1/2-z", "1/2-y,1/2+x,1/2-z", "1/2+x,1/2-y,1/2+z",
          "1/2-x,1/2+y,1/2+z", "-y,-x,z", "y,x,z"]  # fmt: skip
ROCK_SALT_PRIMITIVE = ["x,y,z", "-x,-y,-z"]


def packed(values) -> str:
    return b64encode((4e6 * np.array(values)).round().astype("<i4").tobytes()).decode()


@pytest.fixture
def database(tmp_path):
    """A function that writes records (name, title, cell, sites, xyz, occupancies or None, operations, formula)."""

    def write(*records):
        path = tmp_path / "amcsd_cif1.db"
        with sqlite3.connect(path) as db:
            db.execute("create table minerals (id integer, name text)")
            db.execute("create table spacegroups (id integer, hm_notation text, symmetry_xyz text)")
            columns = ("formula", "compound", "pub_title", "a", "b", "c", "alpha", "beta", "gamma", "atoms_sites", "atoms_x",
                       "atoms_y", "atoms_z", "atoms_occupancy")  # fmt: skip
            db.execute(f"create table cif (id integer, mineral_id integer, spacegroup_id integer, {' text, '.join(columns)} text)")
            for k, (name, title, cell, sites, xyz, occupancy, operations, formula) in enumerate(records):
                db.execute("insert into minerals values (?, ?)", (k, name))
                db.execute("insert into spacegroups values (?, ?, ?)", (k, "x", json.dumps(operations)))
                places = [packed(c) for c in np.array(xyz).T]
                db.execute(f"insert into cif values ({','.join('?' * 17)})",
                           (k, k, k, formula, "<missing>", title, *map(str, cell), json.dumps(sites), *places,
                            "0" if occupancy is None else packed(occupancy)))  # fmt: skip
        return path

    return write


PLACES = ((0, 0, 0), (0.3053, 0.3053, 0))


def rutile(name="Rutile", title="At home", occupancy=None, sites=("Ti", "O"), xyz=PLACES, formula="Ti O2"):
    return name, title, (4.5937, 4.5937, 2.9587, 90, 90, 90), list(sites), xyz, occupancy, RUTILE, formula


def test_a_structure_is_expanded(database):
    (crystal,) = read_amcsd(database(rutile()))
    assert (crystal.name, crystal.space_group, crystal.source) == ("Rutile", 136, "AMCSD 0")
    assert sorted(crystal.numbers) == [8] * 4 + [22] * 2 and crystal.occupancy is None
    assert crystal.cell == pytest.approx([4.5937, 4.5937, 2.9587, 90, 90, 90])
    assert crystal.symmetry().number == 136


def test_mixed_sites_are_one_atom_that_scatters_alike(database):
    sites, xyz = ("TiM", "FeM", "O"), ((0, 0, 0), (0, 0, 0), (0.3053, 0.3053, 0))
    (crystal,) = read_amcsd(database(rutile(sites=sites, xyz=xyz, occupancy=(0.6, 0.4, 1.0), formula="(Ti.6 Fe.4) O2")))
    metal = crystal.numbers == 22
    assert metal.sum() == 2 and crystal.occupancy[metal] == pytest.approx((0.6 * 22 + 0.4 * 26) / 22)


def test_a_crystal_without_a_name_has_its_formula(database):
    assert read_amcsd(database(rutile(name="<missing>")))[0].name == "TiO2"


@pytest.mark.parametrize(
    "change",
    [
        {"title": "Rutile under pressure\n Sample: P = 12.3 GPa"},
        {"title": "Rutile, T = 900 deg C"},
        {"title": "A hypothetical structure"},
        {"sites": ("Xx", "O")},
        {"sites": ("Ti",)},
        {"xyz": ((0, 0, 0), (2.0, 0.3053, 0))},
    ],
)
def test_what_is_not_whole_or_not_ambient_is_left_out(database, change):
    assert [c.source for c in read_amcsd(database(rutile(**change), rutile()))] == ["AMCSD 1"]


@pytest.mark.parametrize("title", ["P = 1 atm", "P = 5 kbar", "T = 25 deg C", "T = 293 K", "T = -"])
def test_ambient_conditions_stay(database, title):
    assert len(read_amcsd(database(rutile(title=title)))) == 1


def test_a_symmetry_that_does_not_hold_is_left_out(database):
    """Rock salt listed in P-1: the atoms have more symmetry than is listed."""
    record = ("Salt", "", (3.988, 3.988, 3.988, 60, 60, 60), ["Na", "Cl"], ((0, 0, 0), (0.5, 0.5, 0.5)), None,
              ROCK_SALT_PRIMITIVE, "Na Cl")  # fmt: skip
    assert read_amcsd(database(record)) == ()


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a file"):
        read_amcsd(tmp_path / "none.db")
    (tmp_path / "text.db").write_text("no database, but long enough to be read as one" * 50)
    with pytest.raises(FileFormatError, match="expected the database"):
        read_amcsd(tmp_path / "text.db")
