"""Figures, calibration and the nearest-neighbour baseline."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystaldl.physics.symmetry import SYSTEM_OF_GROUP
from crystaldl.powder.recipe.crossval import (
    apply_calibration,
    calibrated_out_of_fold,
    figures,
    fit_calibration,
    format_table,
    natural_log_ratio,
    nearest_neighbour,
    softmax,
    system_probabilities,
)
from crystaldl.powder.recipe.measured import MeasuredSet
from crystaldl.powder.simulate import simulate


def certain(groups):
    p = np.zeros((len(groups), 230))
    p[np.arange(len(groups)), np.array(groups) - 1] = 1
    return p


def test_figures_of_perfect_and_wrong_answers():
    truth = np.array([1, 14, 14, 62, 136, 166, 194, 225])
    best = figures(certain(truth), truth)
    assert (best.system, best.group, best.top5, best.macro_f1) == (1, 1, 1, 1)
    assert (best.ece_system, best.ece_group, best.system_at_half, best.group_at_half, best.count) == (0, 0, 1, 1, 8)
    worst = figures(certain([225, 2, 225, 225, 225, 1, 1, 1]), truth)
    assert (worst.system, worst.group, worst.top5) == (0, 0, 0) and worst.ece_group == pytest.approx(1)


def test_figures_of_a_hand_made_case():
    # right system but wrong group; right group; wrong system; right group
    truth = np.array([14, 225, 225, 2])
    p = certain([15, 225, 62, 2])
    p = 0.6 * p + 0.4 * certain([14, 227, 225, 1])
    f = figures(p, truth)
    assert f.system == 0.75 and f.group == 0.5 and f.top5 == 1.0 and f.count == 4
    # F1: triclinic 1, monoclinic 1, cubic 2·1 / (1 + 2)
    assert f.macro_f1 == pytest.approx((1 + 1 + 2 / 3) / 3)
    assert f.ece_group == pytest.approx(np.mean([0.6, 0.4, 0.6, 0.4]))
    # the most certain systems are those with both halves in one system
    assert f.system_at_half == 1.0


def test_systems_are_sums():
    p = softmax(np.random.default_rng(0).normal(size=(5, 230)))
    system = system_probabilities(p)
    assert system.sum(1) == pytest.approx(1)
    assert system[:, 6] == pytest.approx(p[:, 194:].sum(1)) and system[:, 0] == pytest.approx(p[:, :2].sum(1))


def test_natural_frequencies_keep_the_balance_of_systems():
    from crystaldl.powder.recipe.training import training_prior

    natural = training_prior() * np.exp(natural_log_ratio())
    assert np.bincount(SYSTEM_OF_GROUP, weights=natural) == pytest.approx(np.bincount(SYSTEM_OF_GROUP, weights=training_prior()))
    assert natural_log_ratio()[13] > 0 > natural_log_ratio()[92]  # P21/c is common, P4222 is not


def sampled(temperature, power, count=2500, seed=0):
    """Logits that are too sharp by ``temperature`` and lack a prior of ``power``, with labels drawn from the truth."""
    rng = np.random.default_rng(seed)
    z = rng.normal(0, 2.5, (count, 230))
    truth = softmax(z + power * natural_log_ratio())
    group = 1 + (truth.cumsum(1) > rng.random(count)[:, None]).argmax(1)
    return z * temperature, group


@pytest.mark.parametrize(("temperature", "power"), [(1.0, 0.0), (2.0, 0.0), (0.7, 0.0), (1.5, 0.6)])
def test_calibration_recovers_a_known_temperature_and_prior(temperature, power):
    logits, group = sampled(temperature, power)
    point = fit_calibration(logits, group)
    assert point["temperature"] == pytest.approx(temperature, rel=0.12)
    assert point["prior_power"] == pytest.approx(power, abs=0.12)
    p = apply_calibration(logits, point)
    assert p.sum(1) == pytest.approx(1) and len(point["log_prior"]) == 230
    assert figures(p, group).ece_group < 0.05
    if temperature == 2.0:
        assert figures(softmax(logits), group).ece_group > 0.1


def test_out_of_fold_calibration_uses_the_other_folds():
    logits, group = sampled(2.0, 0.0, 1200)
    fold = np.arange(1200) % 3
    p = calibrated_out_of_fold(logits, group, fold)
    assert p.sum(1) == pytest.approx(1)
    expected = apply_calibration(logits[fold == 1], fit_calibration(logits[fold != 1], group[fold != 1]))
    assert p[fold == 1] == pytest.approx(expected)
    # labels of a fold do not reach its own probabilities
    changed = group.copy()
    changed[fold == 1] = 1
    assert calibrated_out_of_fold(logits, changed, fold)[fold == 1] == pytest.approx(expected)


def test_nearest_neighbour(random_lines):
    """Two measurements of each crystal in different folds: the neighbour is its twin."""
    q, intensity = (torch.as_tensor(a[:30]) for a in (random_lines.q, random_lines.intensity))
    p = simulate(q.repeat(2, 1), intensity.repeat(2, 1), torch.Generator().manual_seed(0))
    group = torch.tensor(random_lines.space_group[:30].astype(np.int64)).repeat(2)
    measured = MeasuredSet(p.y, p.mask, p.doublet_ratio, group, torch.arange(30).repeat(2))
    fold = np.repeat([0, 1], 30)
    answer = nearest_neighbour(measured, fold)
    assert answer.sum(1) == pytest.approx(1) and set(np.unique(answer)) == {0.0, 1.0}
    assert np.mean(answer.argmax(1) + 1 == group.numpy()) > 0.6


def test_table():
    truth = np.array([14, 225, 62, 2])
    rows = {"network": figures(certain(truth), truth), "1-nearest neighbour": figures(certain([15, 225, 62, 2]), truth)}
    text = format_table(rows).splitlines()
    assert len(text) == 3 and text[1].startswith("network") and "100.0" in text[1] and " 75.0" in text[2]
    assert "system" in text[0] and text[1].split()[-1] == "4"
