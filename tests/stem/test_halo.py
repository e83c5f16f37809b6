"""Rings of amorphous material: taken away where they are, left alone where there are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_disks import disk_image

from crystaldl.stem.disks import find_disks
from crystaldl.stem.halo import Rings, middle
from crystaldl.stem.options import DiskOptions
from crystaldl.stem.probe import Probe

SHAPE, RADIUS, EDGE = (160, 160), 5.0, 0.5
G1, G2 = np.array([17.0, 4.0]), np.array([-5.0, 19.0])


def radii(centre):
    return np.hypot(*(i - c for i, c in zip(np.indices(SHAPE), centre, strict=True)))


def rings(centre, at=((38.0, 5.0, 1.0), (62.0, 7.0, 0.4))):
    """Two rings as wide as disks (radius, width, height)."""
    return sum(h * np.exp(-0.5 * ((radii(centre) - r) / w) ** 2) for r, w, h in at)


def tail(centre):
    return 1 / (1 + (radii(centre) / 25) ** 2) ** 1.5


def crystal(centre, seed=0):
    """Disks on a lattice with intensities over two decades, and their centres."""
    rng = np.random.default_rng(seed)
    hk = np.array([(h, k) for h in range(-4, 5) for k in range(-4, 5)])
    centres = centre + hk @ np.stack([G1, G2])
    inside = ((centres > 1.5 * RADIUS) & (centres < np.array(SHAPE) - 1 - 1.5 * RADIUS)).all(1)
    centres = centres[inside]
    height = 10 ** rng.uniform(-1, 1, len(centres))
    return sum(h * disk_image(c, RADIUS, EDGE, SHAPE) for h, c in zip(height, centres, strict=True)), centres


@pytest.fixture(scope="module")
def scene():
    """Patterns with strong rings, the same disks without, centres of disks, and the probe."""
    rng = np.random.default_rng(3)
    with_rings, without, centres = [], [], []
    for seed in range(4):
        centre = 80 + rng.uniform(-4, 4, 2)
        disks, at = crystal(centre, seed)
        background = 4 * tail(centre)
        with_rings.append(rng.poisson(disks * 15 + background + 60 * rings(centre)))
        without.append(rng.poisson(disks * 15 + background))
        centres.append(at)
    return np.array(with_rings, np.float32), np.array(without, np.float32), centres, Probe.synthetic(RADIUS, SHAPE, edge=EDGE)


def judged(disks, centres):
    """Share of the true disks found, and false ones a pattern."""
    found = false = 0
    for i, truth in enumerate(centres):
        distance = np.linalg.norm(disks.of(i).positions[:, None] - truth[None], axis=2)
        found += (distance.min(0) < 0.4 * RADIUS).sum()
        false += (distance.min(1) > 1.2 * RADIUS).sum()
    return found / sum(map(len, centres)), false / len(centres)


@pytest.mark.parametrize(("method", "gain"), [("fcunet", 0.05), ("correlation", 0.0)])
def test_disks_on_rings_are_found(scene, method, gain):
    patterns, _, centres, probe = scene
    recall, false = judged(find_disks(patterns, probe, method=method, device="cpu"), centres)
    before = judged(find_disks(patterns, probe, method=method, device="cpu", options=DiskOptions(rings=False)), centres)
    assert recall > 0.85 and recall >= before[0] + gain
    assert false < 2 and false <= before[1]


def test_rings_are_measured(scene):
    """Where disks stand on them, too: to a tenth of the rings' height."""
    rng = np.random.default_rng(1)
    centre = np.array([83.3, 77.6])
    truth = 100 * rings(centre)
    disks, at = crystal(centre)
    counted = torch.as_tensor(rng.poisson(truth + 20 * tail(centre) + 30 * disks)[None], dtype=torch.float32)
    found = Rings(counted, RADIUS)
    assert found.centre[0].numpy() == pytest.approx(centre, abs=0.7)
    pattern, positions = torch.zeros(len(at), dtype=torch.long), torch.as_tensor(at, dtype=torch.float32)
    for excess in (found.excess()[0].numpy(), found.beside(pattern, positions, RADIUS + 2.5)[0].numpy()):
        assert excess.min() >= 0
        # the convex part of the background cannot be told from a ring's foot
        assert np.sqrt(np.mean((excess - truth)[radii(centre) < 75] ** 2)) < 12


@pytest.mark.parametrize("method", ["fcunet", "correlation"])
def test_patterns_without_rings_stay_as_they_are(scene, method):
    _, patterns, centres, probe = scene
    excess = Rings(torch.as_tensor(patterns), RADIUS).excess().numpy()
    assert excess.mean() < 0.02 * patterns.mean()
    with_, without = (
        find_disks(patterns, probe, method=method, device="cpu", options=DiskOptions(rings=rings_)) for rings_ in (True, False)
    )
    assert judged(with_, centres)[0] >= judged(without, centres)[0] - 0.02
    nearest = np.linalg.norm(with_.of(0).positions[:, None] - without.of(0).positions[None], axis=2).min(1)
    assert np.median(nearest) < 0.02


def dense(seed=0):
    """Disks that touch, brighter in each other shell around the direct beam, and where they are."""
    hk = np.array([(h, k) for h in range(-9, 10) for k in range(-9, 10)])
    centres = np.array([80.3, 79.6]) + 16.5 * hk @ np.array([[1.0, 0.0], [-0.5, 0.75**0.5]])
    length = np.linalg.norm(centres - [80.3, 79.6], axis=1)
    height = np.where(length < 1, 1000, np.where((length > 25) & (length < 35), 60, 8))
    image = sum(h * disk_image(c, 8.0, EDGE, SHAPE) for h, c in zip(height, centres, strict=True))
    return np.random.default_rng(seed).poisson(image), centres[length < 75]


def test_disks_that_touch_are_no_rings():
    """What lies between them, below the level of most pixels, bounds a ring."""
    patterns, centres = dense()
    found = Rings(torch.as_tensor(patterns[None], dtype=torch.float32), 8.0)
    pattern, positions = torch.zeros(len(centres), dtype=torch.long), torch.as_tensor(centres, dtype=torch.float32)
    around = (radii((80.3, 79.6)) > 12) & (radii((80.3, 79.6)) < 45)
    level = patterns[around].mean()
    assert found.excess()[0].numpy()[around].mean() < 0.55 * level  # 0.7 by the level of most pixels
    assert found.beside(pattern, positions, 10.5)[0].numpy()[around].mean() < 0.1 * level


def test_unmeasured_and_empty_patterns():
    centre = np.array([80.0, 81.0])
    truth = torch.as_tensor(100 * rings(centre) + 5, dtype=torch.float32)[None]
    gap = truth.clone()
    gap[:, 70:73] = torch.nan
    assert Rings(gap, RADIUS).excess()[0].numpy() == pytest.approx(Rings(truth, RADIUS).excess()[0].numpy(), abs=8)
    assert not Rings(torch.zeros(1, *SHAPE), RADIUS).excess().any()
    assert not Rings(torch.full((1, *SHAPE), 7.0), RADIUS).excess().abs().gt(1e-3).any()


def test_the_middle_is_that_of_inversion():
    centres = np.array([[80.0, 80.0], [73.0, 91.0], [84.0, 66.5]])
    patterns = torch.as_tensor(np.array([rings(c) + tail(c) for c in centres]), dtype=torch.float32)
    assert middle(patterns).numpy() == pytest.approx(centres, abs=1.0)
