"""The probe: measured from an image, wherever the disk lies in it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from drawn_disks import disk_image
from scipy.special import ndtr, ndtri

from crystaldl.errors import DataError
from crystaldl.stem.probe import Probe


@pytest.mark.parametrize("radius", [2.5, 4.0, 6.3, 11.7])
@pytest.mark.parametrize("edge", [0.4, 1.0])
def test_measures_centre_radius_and_edge(radius, edge):
    image = disk_image((40.3, 29.8), radius, edge, (80, 64)) * 700 + 12
    probe = Probe.from_array(image)
    assert probe.centre == pytest.approx((40.3, 29.8), abs=0.06)
    assert probe.radius == pytest.approx(radius, abs=0.12)
    assert probe.edge == pytest.approx(edge, abs=0.25)
    assert probe.shape == (80, 64) and not probe.image.flags.writeable
    # the background is gone and the plateau is 1
    assert probe.image[0, 0] == 0 and probe.image[40, 30] == pytest.approx(1, abs=0.06)


@pytest.mark.parametrize("centre", [(0, 0), (1, 62), (79, 30)])
def test_wrapped_around_the_corners(centre):
    image = np.roll(disk_image((40, 32), 5.0, 0.5, (80, 64)), (centre[0] - 40, centre[1] - 32), (0, 1))
    probe = Probe.from_array(image)
    assert probe.radius == pytest.approx(5.0, abs=0.1) and "unwrapped" in probe.source
    assert min(probe.centre) > 5


def test_counting_noise_and_a_gap():
    rng = np.random.default_rng(0)
    image = rng.poisson(disk_image((30.4, 33.1), 6.0, 0.6, (64, 64)) * 40 + 1).astype(float)
    image[:, 20] = np.nan
    probe = Probe.from_array(image)
    assert probe.centre == pytest.approx((30.4, 33.1), abs=0.1) and probe.radius == pytest.approx(6.0, abs=0.15)


def test_from_patterns_prefers_vacuum(draw):
    patterns, _, _ = draw(3, radius=5.0, counts=4000)
    vacuum = np.random.default_rng(1).poisson(disk_image((60, 61), 5.0, 0.6, (128, 128)) * 300)
    probe = Probe.from_patterns(np.concatenate([patterns, vacuum[None]]))
    assert "1 vacuum" in probe.source and probe.radius == pytest.approx(5.0, abs=0.15)


def test_from_patterns_falls_back_to_the_central_disk():
    rng = np.random.default_rng(2)
    image = 2000 * disk_image((64, 64), 6.0, 0.5, (128, 128), lambda v, u: 1 + 0.3 * v)
    for y, x in ((64, 84), (64, 44), (44, 64), (84, 64)):
        image += 300 * disk_image((y, x), 6.0, 0.5, (128, 128))
    probe = Probe.from_patterns(rng.poisson(image + 1, (5, 128, 128)))
    assert "central disk" in probe.source
    assert probe.radius == pytest.approx(6.0, abs=0.3) and probe.centre == pytest.approx((64, 64), abs=0.4)


def test_coerce():
    image = disk_image((30, 30), 5.0, 0.5, (60, 60))
    probe = Probe.from_array(image)
    assert Probe.coerce(probe) is probe
    for other in (image, image.astype(">f4"), SimpleNamespace(probe=image)):
        assert Probe.coerce(other).radius == pytest.approx(probe.radius, abs=0.02)
    py4dstem = pytest.importorskip("py4DSTEM")
    assert Probe.coerce(py4dstem.Probe(image)).source == "py4DSTEM Probe"


def test_patch_is_centred():
    probe = Probe.from_array(disk_image((30.37, 28.81), 5.0, 0.8, (64, 60)))
    patch = probe.patch(12)
    offset = np.arange(-12, 13)
    assert patch.shape == (25, 25)
    assert [(patch.sum(1 - k) * offset).sum() / patch.sum() for k in (0, 1)] == pytest.approx([0, 0], abs=0.03)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((40, 40)), "constant"),
        (np.full((40, 40), np.nan), "no finite"),
        (np.zeros((4, 4)), "shape"),
        (np.zeros((3, 40, 40)), "shape"),
        ("probe.h5", "real numbers"),
        (np.eye(40), "disk|radius"),
        (disk_image((2, 20), 6.0, 0.5, (40, 40)), "cut by the edge"),
    ],
)
def test_bad_input(image, message):
    with pytest.raises(DataError, match=message) as caught:
        Probe.from_array(image)
    assert "probe" in str(caught.value) and "expected" in str(caught.value)


def test_patterns_without_a_probe():
    with pytest.raises(DataError, match="expected"):
        Probe.from_patterns(np.zeros((3, 64, 64)))
    with pytest.raises(DataError, match="shape"):
        Probe.from_patterns(np.zeros((64, 64)))


def test_a_saturated_scan_still_shows_its_probe():
    """Clipped patterns, where many disks are as bright as the direct beam, and which of them are changes along the scan."""
    rng = np.random.default_rng(4)
    y, x = np.indices((128, 128))
    patterns = []
    for _ in range(12):
        image = np.full((128, 128), 2.0)
        beam = 64 + rng.uniform(-1, 1, 2)
        for h in range(-2, 3):
            for k in range(-2, 3):
                share = 1.0 if h == k == 0 else 0.1 + 0.6 * rng.random()
                r = np.hypot(y - beam[0] - 22 * h, x - beam[1] - 24 * k)
                image += 3000 * share * ndtr((5.0 - r) / 0.5)
        patterns.append(np.minimum(rng.poisson(image), 1000))
    probe = Probe.from_patterns(np.array(patterns, dtype=np.uint16))
    # clipped at a third, the beam is at half of its height where it was at a sixth: half a pixel further out
    assert probe.radius == pytest.approx(5.0 + 0.5 * ndtri(5 / 6), abs=0.4)
    assert np.hypot(probe.centre[0] - 64, probe.centre[1] - 64) < 1.5
