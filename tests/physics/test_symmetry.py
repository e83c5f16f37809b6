"""Space groups, Bravais lattices and extinction groups."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter

import numpy as np
import pytest

from crystaldl.physics.reflections import reflections
from crystaldl.physics.symmetry import (
    BRAVAIS_LATTICES,
    CRYSTAL_SYSTEMS,
    SYSTEM_OF_GROUP,
    bravais_of_group,
    check_space_group,
    extinction_members,
    extinction_of_group,
    extinction_symbols,
    operations,
    space_group,
    symbols,
)

CELLS = {
    "triclinic": (7.1, 8.2, 9.4, 82.0, 101.0, 96.0), "monoclinic": (7.1, 8.2, 9.4, 90.0, 104.0, 90.0),
    "orthorhombic": (7.1, 8.2, 9.4, 90.0, 90.0, 90.0), "tetragonal": (7.3, 7.3, 9.4, 90.0, 90.0, 90.0),
    "trigonal": (7.3, 7.3, 9.4, 90.0, 90.0, 120.0), "hexagonal": (7.3, 7.3, 9.4, 90.0, 90.0, 120.0),
    "cubic": (8.1, 8.1, 8.1, 90.0, 90.0, 90.0),
}  # fmt: skip


def test_systems_and_lattices():
    systems = Counter(CRYSTAL_SYSTEMS[s] for s in SYSTEM_OF_GROUP)
    assert [systems[s] for s in CRYSTAL_SYSTEMS] == [2, 13, 59, 68, 25, 27, 36]
    lattices = Counter(BRAVAIS_LATTICES[b] for b in bravais_of_group())
    assert lattices == {"aP": 2, "mP": 8, "mC": 5, "oP": 30, "oC": 15, "oI": 9, "oF": 5, "tP": 49, "tI": 19, "hP": 45, "hR": 7,
                        "cP": 15, "cI": 10, "cF": 11}  # fmt: skip


@pytest.mark.parametrize(("number", "symbol", "count"), [(1, "P1", 1), (14, "P21/c", 4), (62, "Pnma", 8), (136, "P42/mnm", 16),
                                                         (166, "R-3m", 36), (194, "P63/mmc", 24), (225, "Fm-3m", 192),
                                                         (227, "Fd-3m", 192), (230, "Ia-3d", 96)])  # fmt: skip
def test_symbols_and_orders(number, symbol, count):
    assert symbols()[number - 1] == symbol
    ops = operations(number)
    assert ops.rotations.shape == (count, 3, 3) and ops.translations.shape == (count, 3)
    assert np.allclose(np.abs(np.linalg.det(ops.rotations)), 1)


def test_reference_settings():
    for n in range(1, 231):
        assert space_group(n).number == n and space_group(n).is_reference_setting()
    # origin on the inversion centre where there are two choices
    inversion = operations(227)
    at = [t for w, t in zip(inversion.rotations, inversion.translations, strict=True) if np.allclose(w, -np.eye(3))]
    assert any(np.allclose(t, 0) for t in at)


def test_operations_close_into_a_group():
    for n in (5, 43, 88, 122, 161, 205, 230):
        ops = operations(n)
        known = {(tuple(w.ravel().astype(int)), tuple(np.round(t * 24).astype(int) % 24))
                 for w, t in zip(ops.rotations, ops.translations, strict=True)}  # fmt: skip
        assert len(known) == len(ops.rotations)
        for w, t in zip(ops.rotations[:6], ops.translations[:6], strict=True):
            for v, u in zip(ops.rotations, ops.translations, strict=True):
                product = (tuple((w @ v).ravel().astype(int)), tuple(np.round((w @ u + t) * 24).astype(int) % 24))
                assert product in known


def test_extinction_groups():
    members = extinction_members()
    assert len(members) == len(extinction_symbols()) == 99
    assert sorted(n for m in members for n in m) == list(range(1, 231))
    index = extinction_of_group()
    for i, numbers in enumerate(members):
        assert (index[np.array(numbers) - 1] == i).all()
    # one extinction group never spans two crystal families, nor two lattices
    bravais = bravais_of_group()
    assert all(len({bravais[n - 1] for n in m}) == 1 for m in members)
    assert not [s for s in extinction_symbols() if s.startswith("as ")]
    alone = dict(zip(members, extinction_symbols(), strict=True))
    assert alone[(14,)] == "P 1 21/c 1" and alone[(205,)] == "P a - -" and (1, 2) in alone


def test_extinction_groups_equal_the_published_list(shared_data):
    path = None if shared_data is None else shared_data / "powder" / "extinction_groups.csv"
    if path is None or not path.is_file():
        pytest.skip("needs ../shared/data/powder/extinction_groups.csv")
    with path.open(encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    rows = [(row["Canonical Extinction Group"], tuple(json.loads(row["Space Group Numbers"]))) for row in table]
    assert {numbers for _, numbers in rows} == set(extinction_members())
    ours = dict(zip(extinction_members(), extinction_symbols(), strict=True))

    def plain(text):
        return re.sub(r"\s", "", text)

    for published, numbers in rows:
        names = {plain(n) for n in re.split(r"\(equiv:|,", published.removesuffix(")") if "equiv" in published else published)}
        # the Tables have two symbols for R lattices: ours is the one on rhombohedral axes
        names |= {n.replace("R--", "R-", 1) for n in names if n.startswith("R-")}
        assert plain(ours[numbers]) in names, f"{ours[numbers]} is {published}"


def test_absent_reflections_have_no_intensity_in_all_groups():
    """A random crystal of every group on general positions: what gemmi calls absent is, and nothing else."""
    rng = np.random.default_rng(4)
    for n in range(1, 231):
        ops = operations(n)
        cell = CELLS[CRYSTAL_SYSTEMS[SYSTEM_OF_GROUP[n - 1]]]
        sites = rng.random((2, 3))
        positions = np.concatenate([ops.rotations @ x + ops.translations for x in sites])
        numbers = np.repeat([14, 26], len(ops.rotations))
        hkl, _, f2 = reflections(numbers, positions, cell, 0.55)
        absent = np.asarray(space_group(n).operations().systematic_absences(hkl), dtype=bool)
        scale = f2.mean()
        assert f2[absent].max(initial=0.0) < 1e-12 * scale, f"space group {n}"
        assert np.mean(f2[~absent] > 1e-9 * scale) > 0.98, f"space group {n}"


@pytest.mark.parametrize("number", [0, 231, -3, True, 1.5])
def test_bad_space_group(number):
    with pytest.raises(ValueError, match="space_group is .*expected a space-group number from 1 to 230"):
        check_space_group(number)
