"""Measured patterns, their folds and their augmentation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystaldl.physics.lattice import two_theta_from_inverse_d
from crystaldl.physics.symmetry import SYSTEM_OF_GROUP
from crystaldl.powder.prepare import (
    AXIS_POINTS,
    CU_DOUBLET,
    REFERENCE_WAVELENGTH,
    common_axis,
    find_peaks,
    strip_doublet,
)
from crystaldl.powder.recipe.measured import MeasuredSet, augment, group_folds, rescale

AXIS = common_axis()


def pattern(ln_q, fwhm=0.2):
    """Gaussian lines at given ln(1/d), (1, AXIS_POINTS)."""
    at = two_theta_from_inverse_d(np.exp(np.asarray(ln_q)), REFERENCE_WAVELENGTH)
    y = np.exp(-4 * np.log(2) * ((AXIS[:, None] - at) / fwhm) ** 2).sum(1)
    return torch.tensor(y[None], dtype=torch.float32), torch.ones(1, AXIS_POINTS)


def lines(y, mask):
    peaks, found = find_peaks(y, mask)
    return np.sort(peaks[0, :, 0][found[0]].numpy())


LN_Q = np.log([0.25, 0.33, 0.42, 0.5, 0.61])


@pytest.mark.parametrize("shift", [-0.1, -0.013, 0.0, 0.02, 0.15])
def test_rescale_shifts_every_line_alike(shift):
    y, mask = pattern(LN_Q)
    new, new_mask = rescale(y, mask, torch.tensor([shift]))
    assert lines(new, new_mask) == pytest.approx(LN_Q + shift, abs=3e-4)
    assert new_mask.mean() > 0.8
    # Kα2 is a shift itself, so it stays where it belongs
    double = y + 0.5 * rescale(y, mask, torch.tensor([CU_DOUBLET]))[0]
    moved, moved_mask = rescale(double, mask, torch.tensor([shift]))
    stripped = strip_doublet(moved, torch.tensor([0.5]))
    found = lines(stripped, moved_mask)
    assert all(np.abs(found - at).min() < 1e-3 for at in LN_Q + shift)


def test_rescale_knows_what_was_not_measured():
    y, mask = pattern(LN_Q)
    mask[:, (AXIS < 15) | (AXIS > 60)] = 0
    _, new = rescale(y * mask, mask, torch.tensor([0.1]))
    first = np.degrees(2 * np.arcsin(np.sin(np.radians(7.5)) * np.exp(0.1)))
    assert AXIS[int(new[0].argmax())] == pytest.approx(first, abs=0.05)
    assert set(new.unique().tolist()) <= {0.0, 1.0}


def test_augmentation_moves_all_lines_alike_and_adds_none():
    y, mask = pattern(LN_Q, 0.15)
    g = torch.Generator().manual_seed(0)
    checked = 0
    for _ in range(30):
        new, new_mask = augment(y, mask, g, 0.5)
        assert torch.isfinite(new).all() and (new[new_mask == 0] == 0).all()
        found = lines(new, new_mask)
        if len(found) == 5:
            shift = found - LN_Q
            assert np.ptp(shift) < 4e-3  # cell scaled, angles between lines kept
            checked += 1
    assert checked > 10
    one, two = (augment(y, mask, torch.Generator().manual_seed(4))[0] for _ in range(2))
    assert torch.equal(one, two)


def test_folds_keep_look_alikes_together_and_balance_the_systems():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 90, 400)
    space_group = rng.choice([2, 14, 62, 139, 148, 194, 225], 90, p=[0.1, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1])[group]
    fold = group_folds(group, space_group)
    assert sorted(np.unique(fold)) == [0, 1, 2, 3, 4]
    assert all(len(np.unique(fold[group == g])) == 1 for g in np.unique(group))
    sizes = np.bincount(fold)
    assert sizes.min() > 60 and sizes.max() < 100
    for system in np.unique(SYSTEM_OF_GROUP[space_group - 1]):
        counts = np.bincount(fold[SYSTEM_OF_GROUP[space_group - 1] == system], minlength=5)
        assert counts.min() >= 0.4 * counts.mean()
    assert np.array_equal(fold, group_folds(group, space_group)) and len(np.unique(group_folds(group, space_group, 3))) == 3


def test_rruff(shared_data):
    if not (shared_data / "powder" / "rruff_measured.npz").is_file():
        pytest.skip("needs ../shared/data/powder/rruff_measured.npz")
    measured = MeasuredSet.rruff(shared_data)
    assert len(measured) == 542 and measured.y.shape == (542, AXIS_POINTS)
    assert measured.y.amax(1) == pytest.approx(1.0) and (measured.ratio == 0.5).all()
    assert ((measured.mask.sum(1) * 0.02 > 84) & (measured.mask.sum(1) * 0.02 < 86)).all()
    fold = group_folds(measured.group, measured.space_group)
    assert all(len(np.unique(fold[measured.group.numpy() == g])) == 1 for g in measured.group.unique().tolist())
    systems = SYSTEM_OF_GROUP[measured.space_group.numpy() - 1]
    for k in range(5):
        assert 90 < (fold == k).sum() < 130
        assert len(np.unique(systems[fold == k])) == 6  # no trigonal pattern was measured
    part = measured.subset(torch.as_tensor(fold == 0))
    assert len(part) == (fold == 0).sum() and torch.equal(part.y[0], measured.y[int(np.argmax(fold == 0))])


def test_no_measured_patterns(tmp_path):
    with pytest.raises(FileNotFoundError, match="shared is .*which has no powder/rruff_measured.npz"):
        MeasuredSet.rruff(tmp_path)
