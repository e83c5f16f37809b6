"""The probe between its pixels: against apertures drawn on finer pixels, and what it is for, positions of sharp disks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.special import ndtr

from crystaldl.stem.peaks import between
from crystaldl.stem.peaks import refine as peaks
from crystaldl.stem.peaks.between import fine_patch, fitted_outline
from crystaldl.stem.peaks.refine import DiskFitter
from crystaldl.stem.probe import Probe

torch.set_num_threads(1)
SHAPE, SUB = (64, 64), 10


def hard(centre, radius, stretch=0.0, shape=SHAPE):
    """An ideal aperture, on pixels that collect what falls on them: nothing of it is an error function."""
    y, x = (np.indices([n * SUB for n in shape]) + 0.5) / SUB - 0.5
    dy, dx = y - centre[0], x - centre[1]
    inside = np.hypot(dy, dx) < radius * (1 + stretch * np.cos(2 * np.arctan2(dy, dx)))
    return inside.reshape(shape[0], SUB, shape[1], SUB).mean((1, 3))


def smooth(centre, radius, edge, shape=SHAPE):
    """A soft aperture, sampled in the middle of each pixel."""
    y, x = np.indices(shape)
    return ndtr((radius - np.hypot(y - centre[0], x - centre[1])) / edge)


@pytest.mark.parametrize("edge", [0.2, 0.3, 0.45])
def test_soft_edges_narrower_than_a_pixel(edge):
    centre, radius, half = (31.3, 32.6), 5.7, 8
    found = fine_patch(smooth(centre, radius, edge), centre, radius, edge, half, 4)
    offset = np.arange(-4 * half, 4 * half + 1) / 4
    true = ndtr((radius - np.hypot(offset[:, None], offset)) / edge)
    assert np.abs(found - true).max() < 0.01
    grid = np.meshgrid(centre[0] + offset, centre[1] + offset, indexing="ij")
    spline = ndimage.map_coordinates(smooth(centre, radius, edge), grid, order=3)
    assert np.abs(found - true).max() < 0.2 * np.abs(spline - true).max()


@pytest.mark.parametrize("stretch", [0.0, 0.05])
def test_ideal_aperture_moved_by_part_of_a_pixel(stretch):
    """What the next disk looks like, elsewhere within its pixel."""
    here, there = np.array([31.2, 32.7]), np.array([31.65, 32.3])
    patch = fine_patch(hard(here, 5.0, stretch), here, 5.0, 0.3, 10, 20)
    at = np.argwhere(np.ones((17, 17))) - 8 + np.round(there) - there  # pixels about the disk there
    index = np.rint(20 * at).astype(int) + 200
    true = hard(there, 5.0, stretch)[tuple((np.round(there) + np.argwhere(np.ones((17, 17))) - 8).astype(int).T)]
    miss = patch[tuple(index.T)] - true
    grid = (here[:, None] + at.T).reshape(2, -1)
    spline = ndimage.map_coordinates(hard(here, 5.0, stretch), grid, order=3) - true
    assert np.sqrt((miss**2).mean()) < 0.02 < 0.5 * np.sqrt((spline**2).mean())


def test_what_is_no_outline_stays_as_it_is():
    """A bullseye and noise inside: at the pixels the image itself."""
    rng = np.random.default_rng(0)
    image = smooth((32, 32), 9.0, 0.3)
    r = np.hypot(*(np.indices(SHAPE) - 32.0))
    image *= np.where((r > 3) & (r < 5), 0.4, 1.0)
    image += rng.normal(0, 0.02, SHAPE)
    found = fine_patch(image, (32, 32), 9.0, 0.3, 12, 2)
    assert found[::2, ::2] == pytest.approx(image[20:45, 20:45], abs=1e-10)


def test_no_outline_is_made_up():
    square = np.zeros(SHAPE)
    square[24:41, 24:41] = 1.0
    square[24:33, 24:33] = 0.2
    assert fitted_outline(square, (32, 32), 9.0, 0.3) is None
    assert fine_patch(square, (32, 32), 9.0, 0.3, 12, 1) == pytest.approx(square[20:45, 20:45], abs=1e-10)


@pytest.mark.parametrize(("radius", "stretch"), [(3.0, 0.0), (5.0, 0.0), (5.0, 0.05), (8.0, 0.03)])
def test_positions_of_sharp_disks(radius, stretch, monkeypatch):
    """Disks of an ideal aperture anywhere within their pixel, 10⁶ electrons each: errors beside those with splines alone."""
    rng = np.random.default_rng(1)
    centres = rng.uniform(31, 33, (40, 2))
    disks = [hard(c, radius, stretch) * (1 + 0.05 * (np.indices(SHAPE)[0] - c[0])) for c in centres]
    counts = rng.poisson([1e6 * d / d.sum() + 1 for d in disks]).astype(np.float32)
    probe = Probe.from_array(rng.poisson(3e4 * hard((31.8, 32.4), radius, stretch)))
    rms = []
    for sharp in (0.0, between.SHARP):
        monkeypatch.setattr(between, "SHARP", sharp)
        monkeypatch.setattr(peaks, "SHARP", sharp)
        fit = DiskFitter(probe).fit(torch.as_tensor(counts), torch.arange(40), torch.as_tensor(centres.round()))
        error = fit.positions.numpy() - centres
        error -= np.median(error, axis=0)  # the probe's own centre
        assert fit.ok.all()
        rms.append(np.sqrt((error**2).mean()))
    assert rms[1] < 0.02 and rms[1] < 0.6 * rms[0]
