"""Crystals known from training: the network that recognises them, how far it is believed, and its training stream."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import crystaldl as cdl
from crystaldl.physics.symmetry import bravais_of_group
from crystaldl.powder import family_recipe as recipe
from crystaldl.powder.families import cross_validated_mix, fit_trust, likely, mix
from crystaldl.powder.measured import MeasuredSet
from crystaldl.powder.network import FamilyNet
from crystaldl.powder.prepare import SPECTRUM_POINTS, prepare
from crystaldl.powder.simulate import simulate

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
    library = recipe._rendered(few.q, few.intensity, np.arange(20) % 5, torch.Generator().manual_seed(1))
    rest = random_lines.subset(np.arange(60, 100))
    return recipe.measured_pool(measured, variants=4, rendered=6), library, recipe.unknown_pool(rest)


def one_hot(group, p, count=230):
    out = np.zeros((len(group), count))
    out[np.arange(len(group)), np.asarray(group) - 1] = p
    return out


# ------------------------------------------------------------------------------------------ network


def test_probabilities_are_those_of_the_families_of_each_group():
    torch.manual_seed(0)
    net = FamilyNet(5, [1, 1, 7, 9, 7], hidden=16, dim=8).eval()
    x = torch.rand(3, 2, SPECTRUM_POINTS)
    p, family = net(x), net.family_logits(x).softmax(1)
    assert p.shape == (3, 230)
    assert torch.allclose(p[:, 1], family[:, 0] + family[:, 1]) and torch.allclose(p[:, 7], family[:, 2] + family[:, 4])
    assert torch.allclose(1 - p.sum(1), family[:, 5], atol=1e-6)
    # how strong a pattern is does not matter, where its lines are does
    x[:, 0] *= 0.5
    assert torch.allclose(net(x), p, atol=1e-5)
    assert not torch.allclose(net(x.roll(200, 2)), p, atol=1e-5)


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
    found, height = recipe.lines_in(one)
    for k in range(3):
        best = found[k, (height[k] > 0) & (height[k] >= height[k].max() * 0.02)]
        assert len(best) > 0
        assert (best[:, None] - q[k][None, intensity[k] > 0]).abs().amin(1).median() < 3e-4


def test_labels_of_a_batch(measured, pools):
    groups = [2, 14, 62, 194, 225]
    task = recipe.FamilyTask(measured, pools, groups, np.arange(40) % 10 != 3)
    first, again = task.batch(4, 0, 1, "cpu"), task.batch(4, 0, 1, "cpu")
    assert torch.equal(first["spectrum"], again["spectrum"]) and torch.equal(first["labels"], again["labels"])
    families = len(np.unique(np.stack([measured.group, measured.space_group], 1), axis=0))
    a, b, _ = recipe.SHARES
    label = first["labels"].numpy()
    kept_out = set(task.family[np.arange(40) % 10 == 3])
    assert (label[:a] < families).all() and not kept_out & set(label[:a])
    assert (label[a : a + b] >= families).all() and (label[a + b :] == families + 5).all()
    assert list(task.group_of_family[families:]) == groups
    assert (task.group_of_family[task.family] == measured.space_group.numpy()).all()


def test_it_learns_to_recognise(measured, pools):
    keep = np.arange(40) >= 10  # of every crystal one sample is kept out
    keep[:10] = np.arange(10) >= 8
    task = recipe.FamilyTask(measured, pools, [2, 14, 62, 194, 225], keep)
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
