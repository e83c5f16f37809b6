"""The stream of training crystals."""

from __future__ import annotations

import numpy as np
import pytest

from crystaldl.physics.crystals import Crystal, aflow_prototypes, read_library
from crystaldl.physics.random_crystals import random_crystal
from crystaldl.powder.frequencies import UNIFORM_SHARE, group_shares
from crystaldl.powder.recipe.stream import (
    HELD_OUT,
    CrystalSource,
    build_lines,
    is_held_out,
    library_crystals,
    primitive_volume,
    prototype,
    training_lines,
)
from crystaldl.powder.simulate import LineLibrary


def test_prior():
    prior = group_shares()
    assert prior.shape == (230,) and prior.sum() == pytest.approx(1) and prior.min() > UNIFORM_SHARE / 230 * 0.99
    assert prior.argmax() + 1 == 14


def test_lines_are_seeded():
    source = CrystalSource([], group_shares())
    one, two, other = (build_lines(source, 20, seed) for seed in (5, 5, 6))
    assert np.array_equal(one.q, two.q) and np.array_equal(one.intensity, two.intensity)
    assert not np.array_equal(one.q, other.q)
    assert (one.family == -1).all() and ((one.intensity > 0).sum(1) >= 3).all()


def test_random_lines_look_right(random_lines):
    assert random_lines.space_group.min() >= 1 and random_lines.space_group.max() <= 230
    assert len(np.unique(random_lines.space_group)) > 60
    assert random_lines.q.min() > 0.04 and random_lines.q.max() <= 1.0001
    assert (random_lines.intensity >= 0).all() and np.isfinite(random_lines.intensity).all()
    assert 10 < np.median(random_lines.volume) < 2000


@pytest.mark.parametrize(("number", "points"), [(1, 1), (5, 2), (23, 2), (22, 4), (146, 3), (225, 4), (221, 1)])
def test_primitive_volume(number, points):
    crystal = random_crystal(number, np.random.default_rng(0), max_atoms=60)
    assert primitive_volume(crystal) == pytest.approx(crystal.volume / points)


def test_held_out_types(shared_data, monkeypatch):
    path = shared_data / "powder" / "structures.json.gz"
    if not path.is_file():
        pytest.skip("needs ../shared/data/powder/structures.json.gz")
    everything = read_library(path)
    held = [c for c in everything if is_held_out(c)]
    assert len(everything) == 1251 and abs(len(held) / len(everything) - HELD_OUT) < 0.05
    # a structure type is on one side only
    assert not {prototype(c) for c in held} & {prototype(c) for c in everything if not is_held_out(c)}
    monkeypatch.setattr("crystaldl.powder.recipe.stream.read_library", lambda _: everything[::20])
    monkeypatch.setattr("crystaldl.powder.recipe.stream.amcsd_file", lambda: None)
    monkeypatch.setattr("crystaldl.powder.recipe.stream.minerals", lambda: ())
    crystals, source = library_crystals(shared_data)
    assert "1,251" in source and 40 < len(crystals) <= 63
    assert all(len(c.numbers) <= 400 and c.symmetry().number == c.space_group for c in crystals)


def test_drawing_from_a_library(shared_data):
    path = shared_data / "powder" / "structures.json.gz"
    if not path.is_file():
        pytest.skip("needs ../shared/data/powder/structures.json.gz")
    crystals = [c for c in read_library(path) if is_held_out(c) and len(c.numbers) < 60][:40]
    source, rng = CrystalSource(crystals, group_shares()), np.random.default_rng(0)
    for _ in range(10):
        crystal, index = source.draw(rng, library_only=True)
        assert index >= 0 and crystal.space_group == crystals[index].space_group
        assert crystal.symmetry().number == crystal.space_group
    crystal, index = source.draw(rng, random_only=True)
    assert index == -1 and crystal.source == "random"


def test_without_the_shared_data(monkeypatch, tmp_path):
    prototypes = aflow_prototypes()
    if not prototypes:
        pytest.skip("pymatgen's AFLOW prototypes are not installed")
    assert len(prototypes) > 200
    monkeypatch.setattr("crystaldl.powder.recipe.stream.aflow_prototypes", lambda: prototypes[::8])
    monkeypatch.setattr("crystaldl.powder.recipe.stream.amcsd_file", lambda: None)
    monkeypatch.setattr("crystaldl.powder.recipe.stream.minerals", lambda: ())
    for shared in (None, tmp_path):
        crystals, source = library_crystals(shared)
        assert "AFLOW" in source and 20 < len(crystals) <= 36
    monkeypatch.setattr("crystaldl.powder.recipe.stream.aflow_prototypes", lambda: [])
    assert library_crystals(None)[0] == []


def test_lines_are_cached(tmp_path, monkeypatch):
    options = {"chunks": 2, "chunk_size": 6, "seed": 1, "random_only": True}
    monkeypatch.setattr("crystaldl.powder.recipe.stream.library_crystals", lambda shared: ([], "nothing"))
    lines = training_lines(tmp_path / "lines", None, **options)
    files = sorted(p.name for p in (tmp_path / "lines").iterdir())
    assert len(lines) == 12 and files == ["train-s1-n6-000.npz", "train-s1-n6-001.npz"]
    assert not np.array_equal(lines.q[:6], lines.q[6:])

    def fail(*_):
        raise AssertionError("made again")

    monkeypatch.setattr("crystaldl.powder.recipe.stream._build_chunk", fail)
    again = training_lines(tmp_path / "lines", None, **options)
    assert isinstance(again, LineLibrary) and np.array_equal(again.q, lines.q)


def test_minerals_and_the_database_join_the_library(monkeypatch):
    places = [[0, 0, 0], [0.5, 0.5, 0.5]]
    mine, theirs = (Crystal([11, 17], places, (4, 4, 4, 90, 90, 90), 221, name) for name in "ab")
    monkeypatch.setattr("crystaldl.powder.recipe.stream.aflow_prototypes", lambda: [])
    monkeypatch.setattr("crystaldl.powder.recipe.stream.minerals", lambda: (mine,))
    monkeypatch.setattr("crystaldl.powder.recipe.stream.amcsd_file", lambda: "a file")
    monkeypatch.setattr("crystaldl.powder.recipe.stream.read_amcsd", lambda path: (theirs,))
    crystals, source = library_crystals(None)
    assert [c.name for c in crystals] == ["a", "b"] and "AMCSD" in source and "(1 structures)" in source
