"""Crystals known from training: the network that recognises them, how far it is believed, and its training stream."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import crystaldl as cdl
from crystaldl.physics.crystals import Crystal
from crystaldl.physics.symmetry import bravais_of_group
from crystaldl.powder.families import (
    KnownCrystal,
    by_group,
    cross_validated_mix,
    fit_trust,
    likely,
    mix,
    named,
)
from crystaldl.powder.network import FamilyNet
from crystaldl.powder.prepare import SPECTRUM_POINTS, prepare
from crystaldl.powder.recipe import families as recipe
from crystaldl.powder.recipe import family_names, family_patterns
from crystaldl.powder.recipe.measured import MeasuredSet
from crystaldl.powder.simulate import simulate

LIBRARY = [Crystal([12], [[0, 0, 0]], (4, 5, 6, 90, 90, 90), n, name) for n, name in
           ((2, "a/CaBSi-Axinite-Fe.cif"), (14, "cubic/POSCAR-14"), (62, "Olivine"), (194, "AB_hP4_194"),
            (225, "Halite"))]  # fmt: skip
BELIEVING = [0.0, 1.0, 0.5, 0.0, 0.0]


@pytest.fixture(scope="module")
def measured(random_lines):
    """Forty patterns of ten crystals, four samples of each."""
    q, intensity = (torch.as_tensor(a[:10]).repeat(4, 1) for a in (random_lines.q, random_lines.intensity))
    p = simulate(q, intensity, torch.Generator().manual_seed(3))
    group = torch.tensor(random_lines.space_group[:10].astype(np.int64)).repeat(4)
    return MeasuredSet(p.y.clamp_min(0), p.mask, torch.full((40,), 0.5), group, torch.arange(40) % 10)


@pytest.fixture(scope="module")
def pools(measured, random_lines):
    few = random_lines.subset(np.arange(40, 60))
    library = family_patterns._rendered(few.q, few.intensity, np.arange(20) % 5, torch.Generator().manual_seed(1))
    rest = random_lines.subset(np.arange(60, 100))
    return family_patterns.measured_pool(measured, variants=4, rendered=6), library, family_patterns.unknown_pool(rest)


def one_hot(group, p, count=230):
    out = np.zeros((len(group), count))
    out[np.arange(len(group)), np.asarray(group) - 1] = p
    return out


# ------------------------------------------------------------------------------------------ network


def test_probabilities_are_those_of_the_families_of_each_group():
    torch.manual_seed(0)
    net = FamilyNet(5, [1, 1, 7, 9, 7], hidden=16, dim=8).eval()
    x = torch.rand(3, 2, SPECTRUM_POINTS)
    p = net(x)
    assert p.shape == (3, 6) and torch.allclose(p.sum(1), torch.ones(3))
    group = by_group(p.detach().numpy(), np.array([2, 2, 8, 10, 8]))
    assert group.shape == (3, 230)
    assert group[:, 1] == pytest.approx(p[:, :2].sum(1).tolist()) and group[:, 7] == pytest.approx(p[:, [2, 4]].sum(1).tolist())
    assert 1 - group.sum(1) == pytest.approx(p[:, 5].tolist(), abs=1e-6)
    # how strong a pattern is does not matter, where its lines are does
    x[:, 0] *= 0.5
    assert torch.allclose(net(x), p, atol=1e-5)
    assert not torch.allclose(net(x.roll(200, 2)), p, atol=1e-5)


def test_names_travel_with_the_weights():
    text = torch.tensor(list("Quartz\n\nα-Fe".encode()), dtype=torch.uint8)
    net, again = FamilyNet(3, [0, 1, 2], hidden=8, dim=4), FamilyNet(3, hidden=8, dim=4, name_bytes=len(text))
    assert net.names == ["", "", ""]
    again.load_state_dict({**net.state_dict(), "text": text, "cells": torch.arange(18.0)})
    assert again.names == ["Quartz", "", "α-Fe"]


def test_the_likeliest_crystals_are_named():
    p = np.array([0.3, 0.25, 0.2, 0.04, 0.21])
    best = named(p, ["Quartz", "Quartz", "Halite", "Rutile"], np.array([152, 152, 225, 136]))
    assert [(k.name, k.space_group) for k in best] == [("Quartz", 152), ("Halite", 225)]
    assert [k.probability for k in best] == pytest.approx([0.55, 0.2])


# ------------------------------------------------------------------------------------------ trust


def test_what_is_not_known_changes_nothing():
    p = np.random.default_rng(0).dirichlet(np.ones(230), 6)
    mixed, share = mix(one_hot([14] * 6, 1e-6), p, BELIEVING)
    assert (share < 1e-3).all() and np.abs(mixed - p).max() < 1e-3


def test_what_is_known_decides():
    p = np.full((4, 230), 1 / 230)
    mixed, share = mix(one_hot([14, 15, 62, 225], 0.999), p, BELIEVING)
    assert (share > 0.95).all() and (mixed.argmax(1) + 1 == [14, 15, 62, 225]).all()
    assert mixed.sum(1) == pytest.approx(1)


def test_a_lattice_that_the_search_excludes_is_believed_less():
    p = np.zeros((2, 230))
    same = np.flatnonzero(bravais_of_group() == bravais_of_group()[13])
    p[0, same], p[1, 224] = 1 / len(same), 1.0
    agrees, contradicts = mix(one_hot([14, 14], 0.9), p, [0.0, 0.3, 0.3, 0.5, 0.1])[1]
    assert agrees > contradicts + 0.2


def test_of_known_crystals_one_with_a_possible_lattice_is_likelier():
    p = np.full((1, 230), 1e-9)
    p[0, 151] = 1 - 229e-9
    known = one_hot([2], 0.6) + one_hot([152], 0.4)
    assert known.argmax() + 1 == 2 and likely(known, p).argmax() + 1 == 152
    assert likely(known, p).sum() == pytest.approx(1)


def drawn(count: int, seed: int):
    """Recognitions that are right as often as they are sure, beside evidence that is right in half of the cases."""
    rng = np.random.default_rng(seed)
    group = rng.integers(1, 231, count)
    sure = rng.uniform(0.02, 0.98, count)
    right = rng.random(count) < sure
    known = one_hot(np.where(right, group, rng.integers(1, 231, count)), sure)
    p = 0.5 * one_hot(np.where(rng.random(count) < 0.5, group, rng.integers(1, 231, count)), 1.0) + 0.5 / 230
    return known, p, group


def test_trust_is_fitted_to_what_is_right():
    known, p, group = drawn(1500, 0)
    weights = fit_trust(known, p, group)
    sure = known.max(1)
    share = mix(known, p, weights)[1]
    assert share[sure > 0.9].mean() > 0.8 and share[sure < 0.1].mean() < 0.2
    new = drawn(1500, 1)
    mixed, _ = mix(new[0], new[1], weights)
    likelihood = lambda z: np.log(z[np.arange(1500), new[2] - 1] + 1e-9).mean()  # noqa: E731
    assert likelihood(mixed) > max(likelihood(new[1]), likelihood(new[0])) + 0.1


def test_cross_validation_leaves_out_look_alikes():
    known, p, group = drawn(100, 2)
    look = np.arange(100) // 4
    whole = cross_validated_mix(known, p, group, look)
    number = np.unique(look, return_inverse=True)[1] % 5
    rest = number != 2
    assert np.array_equal(whole[~rest], mix(known[~rest], p[~rest], fit_trust(known[rest], p[rest], group[rest]))[0])


# ------------------------------------------------------------------------------------------ stream


def test_a_pool_begins_with_the_patterns_themselves(measured, pools):
    pool = pools[0]
    assert len(pool.source) == 40 * (1 + 4 + 6) == len(pool.spectrum)
    assert np.array_equal(pool.source[:40], np.arange(40)) and (np.bincount(pool.source) == 11).all()
    spectrum = prepare(measured.y, measured.mask, measured.ratio).spectrum.numpy()
    assert np.abs(pool.spectrum[:40].astype(float) - spectrum).max() < 1e-3
    assert np.isfinite(pool.spectrum).all()


def test_lines_of_a_pattern_are_those_it_was_made_of(random_lines, quiet):
    q, intensity = torch.as_tensor(random_lines.q[:3]), torch.as_tensor(random_lines.intensity[:3])
    p = simulate(q, intensity, torch.Generator().manual_seed(1), quiet)
    one = MeasuredSet(p.y, p.mask, p.doublet_ratio, torch.ones(3).long(), torch.arange(3))
    found, height = family_patterns.lines_in(one)
    for k in range(3):
        best = found[k, (height[k] > 0) & (height[k] >= height[k].max() * 0.02)]
        assert len(best) > 0
        assert (best[:, None] - q[k][None, intensity[k] > 0]).abs().amin(1).median() < 3e-4


def test_labels_of_a_batch(measured, pools):
    task = recipe.FamilyTask(measured, pools, LIBRARY, np.arange(40) % 10 != 3)
    first, again = task.batch(4, 0, 1, "cpu"), task.batch(4, 0, 1, "cpu")
    assert torch.equal(first["look"], again["look"]) and torch.equal(first["labels"], again["labels"])
    families = len(np.unique(np.stack([measured.group, measured.space_group], 1), axis=0))
    a, b, _ = recipe.SHARES
    label = first["labels"].numpy()
    kept_out = set(task.family[np.arange(40) % 10 == 3])
    assert (label[:a] < families).all() and not kept_out & set(label[:a])
    assert (label[a : a + b] >= families).all() and (label[a + b :] == families + 5).all()
    assert list(task.group_of_family[families:]) == [c.space_group for c in LIBRARY]
    assert (task.group_of_family[task.family] == measured.space_group.numpy()).all()


def test_it_learns_to_recognise(measured, pools):
    keep = np.arange(40) >= 10  # of every crystal one sample is kept out
    keep[:10] = np.arange(10) >= 8
    task = recipe.FamilyTask(measured, pools, LIBRARY, keep)
    torch.manual_seed(0)
    net = FamilyNet(len(task.group_of_family), task.group_of_family - 1, hidden=64, dim=32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=4e-3)
    for step in range(80):
        loss, terms = task.loss(net, task.batch(step, 0, 1, "cpu"))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(terms["family"]) < 1.0
    assert task.evaluate(net.eval(), "cpu")["measured_group"] >= 0.75


def test_names_and_cells_of_families(measured, pools):
    task = recipe.FamilyTask(measured, pools, LIBRARY)
    first = len(task.names) - 5
    assert task.names[first:] == ["Axinite-Fe", "Mg", "Olivine", "Mg", "Halite"] and set(task.names[:first]) == {""}
    cells = task.cells()
    assert np.isnan(cells[:first]).all() and cells[first] == pytest.approx([4, 5, 6, 90, 90, 90])
    assert cells[first + 2] == pytest.approx([4, 5, 6, 90, 90, 90]), "orthorhombic"
    assert np.isnan(cells[first + 3 :]).all(), "no hexagonal or cubic lattice has these edges"


def test_measured_families_are_told_by_the_library(measured, pools):
    groups = sorted(set(measured.space_group.tolist()))
    crystals = [Crystal([12], [[0, 0, 0]], (4, 5, 6, 90, 90, 90), g, f"Mineral{g}") for g in groups for _ in range(2)]
    task = recipe.FamilyTask(measured, pools, crystals)
    first = len(task.names) - len(crystals)
    p = np.full((40, len(task.names) + 1), 1e-4)
    right = np.array([first + 2 * groups.index(g) for g in measured.space_group.tolist()])
    p[np.arange(40), right], p[np.arange(40), right + 1] = 0.2, 0.15  # two of one name
    p[np.arange(40), first + (right - first + 2) % len(crystals)] = 0.5  # of another space group
    p[task.family == 0] = 1e-4
    twin = family_names.counterparts(task, p)
    assert twin[0] == -1 and all(twin[k] == right[task.family == k][0] for k in range(1, first))


def test_a_label_that_the_library_contradicts_is_doubted(measured, pools):
    look = measured.group.clone()
    look[9] = 99  # one pattern without look-alikes
    task = recipe.FamilyTask(replace(measured, group=look), pools, LIBRARY)
    first, count = len(task.names) - 5, len(measured)
    alone = task.family[9]
    cubic = task.group_of_family[alone] >= 195
    wrong = first + (0 if cubic else 4)
    p = np.full((count, len(task.names) + 1), 1e-5)
    p[:, wrong] = 0.9
    out = family_names.doubted(task, p)
    assert out[alone] == wrong and (np.delete(out, alone) == -1).all(), "the others have look-alikes"
    p[9, wrong] = 0.2  # not sure enough
    assert (family_names.doubted(task, p) == -1).all()


def test_one_crystal_of_several_alike():
    a, b = (Crystal([12], [[0, 0, 0]], (x, 4, 4, 90, 90, 90), 47) for x in (5.0, 5.01))
    c = Crystal([12], [[0, 0, 0]], (5.1, 4, 4, 90, 90, 90), 47)
    assert recipe.distinct([a, b, c]) == [a, c]


# ------------------------------------------------------------------------------------------ the method


def test_only_methods_with_a_network_recognise():
    pattern = cdl.load_example("powder/halite")
    alone = pattern.classify(method="indexing")
    assert np.isnan(alone.recognised) and alone.to_dict()["recognised"] is None
    for method in ("network", "auto"):
        result = pattern.classify(method=method)
        assert 0 <= result.recognised <= 1
        assert result.space_group_probabilities.sum() == pytest.approx(1)
        without = pattern.classify(method=method, recognise=False)
        assert np.isnan(without.recognised) and "known from training" not in without.explain()
        told = "known from training" in result.explain()
        assert told == (result.recognised >= 0.01)


def test_a_result_names_the_crystals_it_looks_like(tmp_path):
    result = cdl.load_example("powder/halite").classify(method="network")
    known = (KnownCrystal("Halite & co.", 225, 0.9), KnownCrystal("", 225, 0.06))
    result = replace(result, recognised=0.8, known_crystals=known)
    assert "80% of this answer" in result.explain() and "Halite & co. (Fm-3m, 90%)" in result.explain()
    assert "likeness to Halite &amp; co." in result._repr_html_()
    assert result.looks_like == result.to_dict()["looks_like"] == "Halite & co."
    assert replace(result, known_crystals=(KnownCrystal("Quartz", 152, 0.9),)).looks_like == ""
    assert result.to_dict()["known_crystals"][1] == {"name": "", "space_group": 225, "probability": 0.06}
    cdl.save(tmp_path / "result.h5", result)
    assert cdl.read(tmp_path / "result.h5").known_crystals == known
