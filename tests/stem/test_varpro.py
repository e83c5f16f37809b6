"""Variable projection: against photon limits, a general minimiser, masks, and its own error estimates."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from drawn_disks import disk_image
from scipy import ndimage, optimize

from crystaldl.stem.peaks.refine import DiskFitter, FitSettings, neighbours
from crystaldl.stem.peaks.varpro import EXPONENTS, Shape, project
from crystaldl.stem.probe import Probe

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def probe():
    return Probe.synthetic(6.0, (128, 128), edge=0.6)


def start_near(centres, seed=0, sigma=0.4):
    g = torch.Generator().manual_seed(seed)
    c = torch.as_tensor(centres, dtype=torch.float32)
    return c + sigma * torch.randn(c.shape, generator=g)


def fit(probe, drawn, settings=None, sigma=0.4):
    patterns, pattern, centres = drawn
    result = DiskFitter(probe, settings).fit(
        torch.as_tensor(patterns), torch.as_tensor(pattern), start_near(centres, sigma=sigma)
    )
    return result, result.positions.numpy() - centres


@pytest.mark.parametrize(("counts", "limit"), [(100, 0.42), (1e3, 0.105), (1e4, 0.036), (1e6, 0.016)])
def test_even_disks(probe, draw, counts, limit):
    result, error = fit(probe, draw(counts=counts, seed=1))
    assert result.ok.float().mean() > 0.98
    assert np.sqrt((error**2).mean()) < limit
    assert result.intensity.mean() == pytest.approx(counts, rel=0.03)


def test_uneven_disks_need_the_polynomial(probe, draw):
    drawn = draw(counts=1e5, uneven=0.3, seed=2)
    rms = {d: np.sqrt((fit(probe, drawn, FitSettings(degree=d))[1] ** 2).mean()) for d in (0, 1, 2)}
    assert rms[2] < 0.03 and rms[2] < rms[1] and rms[0] > 5 * rms[2]


@pytest.mark.parametrize(("counts", "uneven"), [(300, 0.0), (3000, 0.0), (3000, 0.3)])
def test_sigma_is_honest(probe, draw, counts, uneven):
    result, error = fit(probe, draw(12, counts=counts, uneven=uneven, seed=3))
    pull = (error / result.sigma.numpy())[result.ok.numpy()]
    assert 0.75 < np.sqrt((pull**2).mean()) < 1.3


def test_scale_of_the_data_does_not_matter(probe, draw):
    patterns, pattern, centres = draw(counts=2000, seed=4)
    a, _ = fit(probe, (patterns, pattern, centres))
    b, _ = fit(probe, (patterns * 3e-4, pattern, centres))
    assert torch.allclose(a.positions, b.positions, atol=2e-3)
    assert torch.allclose(a.sigma, b.sigma, rtol=1e-2)
    assert torch.allclose(a.intensity * 3e-4, b.intensity, rtol=1e-3)


def test_gradient_and_linear_part_against_a_general_solver(probe, draw):
    """The projected cost's slope is that of a brute-force least squares at every shift."""
    patterns, _, centres = draw(1, counts=1e4, uneven=0.3, seed=5)
    half = 9
    grid = np.stack(np.mgrid[-half : half + 1, -half : half + 1], -1).reshape(-1, 2)
    image = probe.patch(half + 8)
    shape = Shape(image, grid, 6.0, 2, "cpu")
    at = np.round(centres[0]).astype(int)
    data = patterns[0][at[0] + grid[:, 0], at[1] + grid[:, 1]].astype(float)
    data /= data.mean()
    weight = 1 / (0.3 + data)

    def brute(s):
        moved = ndimage.map_coordinates(image, (grid - s + half + 8).T, order=3)
        u = grid / 6.0
        terms = [moved * u[:, 0] ** i * u[:, 1] ** j for i, j in EXPONENTS[:6]] + [np.ones(len(u)), u[:, 0], u[:, 1]]
        a = np.stack(terms, 1) * np.sqrt(weight)[:, None]
        rest = np.sqrt(weight) * data
        rest = rest - a @ np.linalg.lstsq(a, rest, rcond=None)[0]
        return rest @ rest

    s = np.array([0.3, -0.2])
    p = project(
        shape, torch.tensor(data[None]).float(), torch.tensor(weight[None]).float(), torch.tensor(s[None]).float(),
        torch.zeros(1, 6, dtype=torch.float64),
    )  # fmt: skip
    assert float(p.cost[0]) == pytest.approx(brute(s), rel=1e-4)
    slope = optimize.approx_fprime(s, brute, 1e-4)
    assert -2 * p.gradient[0].numpy() == pytest.approx(slope, rel=0.02, abs=0.02 * np.abs(slope).max())


def test_hot_dead_and_unmeasured_pixels(probe, draw):
    patterns, pattern, centres = draw(6, counts=3000, seed=6)
    clean, _ = fit(probe, (patterns, pattern, centres))
    spoilt = patterns.copy()
    rng = np.random.default_rng(0)
    spoilt[rng.random(spoilt.shape) < 0.002] = 50 * patterns.max()
    spoilt[rng.random(spoilt.shape) < 0.002] = 0
    spoilt[:, :, 60:62] = np.nan
    result, error = fit(probe, (spoilt, pattern, centres))
    good = result.ok.numpy()
    assert good.mean() > 0.9 and np.isfinite(result.positions.numpy()).all()
    assert np.median(np.abs(error[good])) < 1.3 * np.median(np.abs(clean.positions.numpy() - centres))
    assert np.quantile(np.abs(error[good]), 0.95) < 0.25


def test_failures_fall_back_to_the_start(probe):
    g = torch.Generator().manual_seed(0)
    patterns = torch.poisson(torch.full((1, 128, 128), 3.0), generator=g)
    patterns[:, 80:] = torch.nan
    start = torch.tensor([[30.2, 40.1], [100.0, 60.0], [79.0, 30.0], [0.0, 0.0], [127.0, 127.0]])
    result = DiskFitter(probe).fit(patterns, torch.zeros(5), start)
    assert not result.ok[1] and not result.ok[4]
    lost = ~result.ok
    assert torch.equal(result.positions[lost], start[lost])
    assert (result.sigma[lost] >= 1.5).all() and torch.isfinite(result.sigma).all()
    assert (result.significance < 5).all()


def test_walks_to_disks_that_start_far_off(probe, draw):
    patterns, pattern, centres = draw(2, counts=1e4, seed=7)
    shift = torch.tensor([2.1, -1.9])
    fitter = DiskFitter(probe, FitSettings(max_shift=4.0))
    start = torch.as_tensor(centres, dtype=torch.float32) + shift
    result = fitter.fit(torch.as_tensor(patterns), torch.as_tensor(pattern), start)
    assert result.ok.float().mean() > 0.95
    assert np.sqrt(((result.positions.numpy() - centres)[result.ok.numpy()] ** 2).mean()) < 0.05


def test_close_neighbours_do_not_pull(probe):
    """Two touching disks, one ten times brighter."""
    a, b = np.array([60.3, 50.2]), np.array([60.3, 50.2 + 13.0])
    image = 30 * disk_image(a, 6, 0.6, (128, 128)) + 300 * disk_image(b, 6, 0.6, (128, 128)) + 1
    patterns = torch.as_tensor(np.random.default_rng(0).poisson(image, (20, 128, 128)), dtype=torch.float32)
    pattern = torch.arange(20).repeat_interleave(2)
    start = torch.as_tensor(np.tile([a, b], (20, 1)), dtype=torch.float32)
    error = DiskFitter(probe).fit(patterns, pattern, start).positions.numpy() - np.tile([a, b], (20, 1))
    assert np.abs(error.reshape(20, 2, 2).mean(0)).max() < 0.04


def test_neighbours():
    pattern = torch.tensor([0, 1, 0, 0, 1])
    positions = torch.tensor([[0.0, 0], [0, 0], [0, 3], [0, 9], [5, 0]])
    near = neighbours(pattern, positions, 4.0, 3)
    assert near.shape == (5, 6, 2)
    assert torch.equal(near[0, 0], positions[2]) and torch.equal(near[2, 0], positions[0])
    assert torch.isnan(near[0, 1:]).all() and torch.isnan(near[[1, 3, 4]]).all()


@pytest.mark.parametrize("radius", [2.5, 3.5, 9.0, 14.0])
def test_other_radii(draw, radius):
    probe = Probe.synthetic(radius, (256, 256), edge=0.6)
    _, error = fit(probe, draw(1, (256, 256), radius=radius, counts=3e4, uneven=0.2, seed=8), sigma=0.3)
    assert np.sqrt((error**2).mean()) < 0.012 * radius + 0.02


def test_speed(probe, draw):
    """At least 1,000 disks a second on one core (several times that on an idle one)."""
    patterns, pattern, centres = draw(16, (256, 256), counts=2000, uneven=0.2, seed=9)
    fitter, tensors = DiskFitter(probe), (torch.as_tensor(patterns), torch.as_tensor(pattern), start_near(centres))
    begin = time.process_time()
    fitter.fit(*tensors)
    assert len(pattern) / (time.process_time() - begin) > 1000


def test_nothing_to_fit(probe):
    result = DiskFitter(probe).fit(torch.zeros(2, 64, 64), torch.zeros(0), torch.zeros(0, 2))
    assert result.positions.shape == (0, 2) and len(result.ok) == 0


@pytest.mark.parametrize("bad", [{"degree": 3}, {"filling": 0}, {"iterations": 0}, {"outliers": -1}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        FitSettings(**bad)
