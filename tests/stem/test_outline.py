"""The probe without a vacuum pattern: radius and edge from disks whose fillings hide them from a look at the central one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from drawn_disks import disk_image

from crystaldl.errors import PlausibilityWarning
from crystaldl.stem.outline import outline
from crystaldl.stem.probe import Probe
from crystaldl.stem.vacuum import probe_from_scan, without_hot_pixels

SHAPE = (128, 128)


def patterns(radius=5.0, edge=0.6, counts=4000.0, count=12, shape=SHAPE, beam=6.0, seed=0):
    """Counts of a lattice of disks, each with random linear and quadratic parts; the central one falls off outwards."""
    rng = np.random.default_rng(seed)
    out = []
    for _ in range(count):
        image = np.full(shape, 0.02 * counts / (np.pi * radius**2))
        middle = np.array(shape) / 2 + rng.uniform(-1, 1, 2)
        for i in range(-6, 7):
            for j in range(-6, 7):
                c = middle + np.array([i * 3.2 * radius, j * 3.5 * radius])
                if (c < 1.6 * radius).any() or (c > np.array(shape) - 1 - 1.6 * radius).any():
                    continue
                a = rng.normal(0, 0.5, 5)

                def filling(v, u, a=a, central=(i, j) == (0, 0)):
                    if central:
                        return np.clip(beam * (1 - 0.75 * (v * v + u * u)), 0.1, None)
                    return np.clip(
                        1 + a[0] * v + a[1] * u + 0.5 * (a[2] * v * v + a[3] * u * u + a[4] * u * v), 0.02, None
                    )

                image += disk_image(c, radius, edge, shape, filling) * counts / (np.pi * radius**2)
        out.append(rng.poisson(image))
    return np.array(out, dtype=np.float32)


@pytest.mark.parametrize(("radius", "edge"), [(4.0, 0.5), (5.0, 0.6), (7.5, 1.0)])
def test_radius_and_edge_are_those_of_the_aperture(radius, edge):
    stack = patterns(radius, edge)
    rough = Probe.from_patterns(stack)
    found = outline(stack, rough)
    assert found.radius == pytest.approx(radius, rel=0.03) and found.edge == pytest.approx(edge, rel=0.2)
    assert abs(found.radius - radius) < 0.5 * abs(rough.radius - radius)  # what the central disk alone says
    assert found.shape == SHAPE and "disks" in found.source


def test_another_start_finds_the_same_radius():
    stack = patterns()
    radii = [outline(stack, Probe.synthetic(r, SHAPE)).radius for r in (4.0, 5.5)]
    assert np.ptp(radii) < 0.02 * 5 and radii[0] == pytest.approx(5.0, rel=0.02)


def test_noise_has_no_outline():
    stack = np.random.default_rng(1).poisson(3.0, (12, *SHAPE)).astype(np.float32)
    assert outline(stack, Probe.synthetic(5.0, SHAPE)) is None


def test_probe_of_a_scan_without_vacuum():
    probe = probe_from_scan(patterns())
    assert probe.radius == pytest.approx(5.0, rel=0.02) and probe.edge == pytest.approx(0.6, rel=0.2)
    assert "central disk" in probe.source


def test_hot_pixels_do_not_hide_the_probe():
    stack = patterns()
    rng = np.random.default_rng(3)
    places = rng.integers(0, 128, (15, 2))
    places[0] = 0, 77  # at the edge as well
    stack[:, places[:, 0], places[:, 1]] = 60_000
    cleaned = without_hot_pixels(stack)
    assert np.isnan(cleaned[:, places[:, 0], places[:, 1]]).all()
    assert np.isnan(cleaned).sum() == len(stack) * len(np.unique(places, axis=0))
    assert probe_from_scan(stack).radius == pytest.approx(5.0, rel=0.02)


def test_without_hot_pixels_nothing_is_lost():
    stack = patterns(radius=2.0, edge=0.3, shape=(64, 64))  # the smallest disks
    assert without_hot_pixels(stack) is stack


def test_faint_patterns_say_that_the_radius_is_a_guess():
    stack = patterns(counts=3.0, beam=60.0)
    with pytest.warns(PlausibilityWarning, match="pass the probe over vacuum"):
        probe = probe_from_scan(stack)
    assert probe.radius == pytest.approx(5.0, rel=0.35)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe_from_scan(patterns())
