"""Disks filled with fringes: positions against known ones, the marginal likelihood against a dense Gaussian, strain."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_disks import disk_image
from scipy.optimize import approx_fprime
from scipy.stats import multivariate_normal

from crystaldl.stem.peaks.filling import (
    HYPOTHESES,
    POINTS,
    Filling,
    Window,
    covariance,
    evidence,
    fill,
    monomials,
    project,
    refine,
)
from crystaldl.stem.peaks.likelihood import cpu_likelihood, torch_likelihood
from crystaldl.stem.peaks.refine import DiskFitter, FitSettings
from crystaldl.stem.peaks.threads import shared_out
from crystaldl.stem.peaks.varpro import Shape
from crystaldl.stem.probe import Probe

torch.set_num_threads(1)
RADIUS, EDGE = 6.0, 0.5


@pytest.fixture(scope="module")
def probe():
    return Probe.synthetic(RADIUS, (128, 128), edge=EDGE)


@pytest.fixture(scope="module")
def shape(probe):
    half = 10
    pixels = np.stack(np.mgrid[-half : half + 1, -half : half + 1], -1).reshape(-1, 2)
    pixels = pixels[np.hypot(*pixels.T) < half + 0.3]
    return Shape(probe.fine_patch(half + 8, 2), pixels, RADIUS, 2, "cpu", fine=2), pixels


@pytest.fixture(scope="module")
def filling(shape):
    return Filling(*shape, RADIUS, EDGE, "cpu")


def fringed(count, fringes, counts, seed):
    """Single disks under two-beam fringes of random direction and phase: patterns, pattern numbers, centres."""
    rng = np.random.default_rng(seed)
    images, centres = [], rng.uniform(30, 34, (count, 2))
    for c in centres:
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        along = np.array([np.sin(angle), np.cos(angle)])
        image = disk_image(
            c, RADIUS, EDGE, (64, 64),
            lambda v, u, a=along, p=phase: 0.05 + np.sin(0.5 * np.pi * fringes * (a[0] * v + a[1] * u) + p) ** 2,
        )  # fmt: skip
        images.append(rng.poisson(counts * image / image.sum() + 0.2))
    return torch.as_tensor(np.array(images, dtype=np.float32)), torch.arange(count), centres


def error(probe, drawn, **settings):
    patterns, pattern, centres = drawn
    start = torch.as_tensor(centres + np.random.default_rng(0).normal(0, 0.3, centres.shape), dtype=torch.float32)
    fit = DiskFitter(probe, FitSettings(**settings)).fit(patterns, pattern, start)
    return fit, np.sqrt(np.median((fit.positions.numpy() - centres) ** 2)) / 0.6745


@pytest.mark.parametrize(("fringes", "limit"), [(0.0, 0.045), (1.0, 0.09), (1.5, 0.085)])
def test_fringes_do_not_pull(probe, fringes, limit):
    """Up to one and a half fringes of full contrast across the disk, 20,000 electrons in each."""
    drawn = fringed(60, fringes, 2e4, 1)
    stiff, fine = (error(probe, drawn, fringes=on)[1] for on in (False, True))
    assert fine < limit
    if fringes:
        assert fine < 0.5 * stiff


def test_close_fringes_ask_for_higher_degrees(probe):
    """Two and a half fringes across the disk: more than polynomials up to `HIGHEST` describe."""
    patterns, pattern, centres = fringed(60, 2.5, 2e5, 1)
    start, errors = torch.as_tensor(centres, dtype=torch.float32), []
    for closer in (False, True):
        fitter = DiskFitter(probe)
        if not closer:
            fitter._filling.closer = None
        fit = fitter.fit(patterns, pattern, start)
        errors.append(np.sqrt(np.mean((fit.positions.numpy() - centres) ** 2)))
    assert errors[1] < 0.03 and errors[1] < 0.4 * errors[0]
    assert (np.abs(fit.positions.numpy() - centres) < 1.96 * fit.sigma.numpy()).mean() > 0.93


def test_closer_fringes_are_asked_of_few(shape, filling):
    """Even disks and wide fringes keep the position that they have without the closer hypotheses."""
    assert filling.closer is not None and filling.closer.closer is None
    assert max(level.size for level in filling.closer.levels) > max(level.size for level in filling.levels)
    patterns, _, centres = fringed(40, 0.7, 5e3, 3)
    at = np.round(centres).astype(int)
    data = torch.stack([p[a[0] + shape[1][:, 0], a[1] + shape[1][:, 1]] for p, a in zip(patterns, at, strict=True)])
    data = data / data.mean(1, keepdim=True)
    s = torch.as_tensor(centres - at, dtype=torch.float32)
    found = refine(filling, data, torch.ones_like(data), s, (data.clamp_min(0.3), data.amax(1) / 2, torch.full((40,), 0.1)))
    assert (found.hypothesis < len(HYPOTHESES)).float().mean() > 0.9


def test_uncertainties_of_fringed_disks(probe):
    drawn = fringed(150, 1.5, 3000, 2)
    fit, _ = error(probe, drawn)
    pull = np.abs((fit.positions.numpy() - drawn[2]) / fit.sigma.numpy())
    assert 0.55 < (pull < 1).mean() < 0.9 and (pull < 1.96).mean() > 0.85


def test_the_disk_says_how_closely_it_is_filled(shape, filling):
    """Even disks need no fringes; the closer they are, the shorter the length that is chosen."""
    chosen = []
    for fringes in (0.0, 0.7, 1.5):
        patterns, _, centres = fringed(60, fringes, 5e3, 3)
        at = np.round(centres).astype(int)
        data = torch.stack([p[a[0] + shape[1][:, 0], a[1] + shape[1][:, 1]] for p, a in zip(patterns, at, strict=True)])
        data = data / data.mean(1, keepdim=True)
        s = torch.as_tensor(centres - at, dtype=torch.float32)
        start = (data.clamp_min(0.3), data.amax(1) / 2, torch.full((60,), 0.1))
        chosen.append(refine(filling, data, torch.ones_like(data), s, start).hypothesis.float())
    assert (chosen[0] == 0).float().mean() > 0.7
    assert (chosen[2] > 0).float().mean() > 0.95
    assert chosen[0].mean() < chosen[1].mean() < chosen[2].mean()


@pytest.fixture(scope="module")
def window(shape):
    rng = np.random.default_rng(4)
    data = torch.as_tensor(rng.gamma(2.0, 0.5, (1, len(shape[1]))), dtype=torch.float32)
    return Window(data, torch.as_tensor(rng.uniform(5, 20, data.shape), dtype=torch.float32), torch.tensor([0.8]))


def test_evidence_is_that_of_a_dense_gaussian(filling, window):
    """Up to a constant, the density of the pixels under prior and noise, background all but free."""
    shape = filling.shape.shifted(torch.tensor([[0.3, -0.4]]))[0]
    found = evidence(filling, window, shape)[0].numpy()
    m = shape[0].double().numpy()
    three = filling.three.double().numpy()
    dense = []
    for precision, size in zip(filling.precision.numpy(), filling.sizes.tolist(), strict=True):
        design = m[:, None] * filling.terms[:, :size].double().numpy()
        prior = np.linalg.inv(precision[:size, :size]) * float(window.mean[0]) ** 2
        total = design @ prior @ design.T + 1e4 * three @ three.T + np.diag(1 / window.weight[0].double().numpy())
        dense.append(multivariate_normal(cov=total).logpdf(window.data[0].double().numpy()))
    assert len(found) == len(HYPOTHESES)
    assert found - found[0] == pytest.approx(np.array(dense) - dense[0], abs=0.1)


def test_gradient_and_curvature(filling, window):
    """The slope of the cost, and its uncertainty against a joint fit of position and filling."""
    level, which = filling.levels[1], torch.tensor([1])

    def shifted(s):
        return filling.shape.shifted(torch.as_tensor(s[None], dtype=torch.float32))

    def cost(s):
        return float(project(filling, window, shifted(s), level, which).cost[0])

    s = np.array([0.2, 0.5])
    p = project(filling, window, shifted(s), level, which)
    slope = approx_fprime(s, cost, 5e-3)
    assert -2 * p.gradient[0].numpy() == pytest.approx(slope, rel=0.05, abs=0.05 * np.abs(slope).max())
    assert np.linalg.eigvalsh(p.normal[0].numpy()).min() > 0
    free = fill(filling, window, shifted(s), level, which).free()
    assert 6 < float(free[0]) < level.size + 3


def test_polynomials_describe_the_process(filling):
    """What each level keeps of its process is the whole of it, but for the share that does not matter."""
    outer = (RADIUS + 2 * EDGE + 1.5) / RADIUS
    rng = np.random.default_rng(5)
    r, angle = np.sqrt(rng.random(500)) * outer, rng.uniform(0, 2 * np.pi, 500)
    points = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)
    count = np.arange(POINTS) + 0.5
    spiral = np.sqrt(count / POINTS) * outer * np.exp(1j * count * np.pi * (3 - np.sqrt(5)))
    triangle = np.linalg.qr(monomials(np.stack([spiral.real, spiral.imag], 1) / outer, 9))[1]
    basis = monomials(points / outer, 9) @ np.linalg.inv(triangle) * np.sqrt(POINTS)
    lengths = list(dict.fromkeys(length for length, _ in HYPOTHESES))
    for level, length, lost in zip(filling.levels[:4], lengths, (1e-3, 1e-3, 1e-3, 0.02), strict=False):
        prior, other = (np.linalg.inv(level.precision[k].numpy()) for k in (-1, 0))
        if len(level.constant) > 1:  # two depths differ by the process alone
            first, last = (HYPOTHESES[level.first + k][1] for k in (0, len(level.constant) - 1))
            kept = basis[:, : level.size] @ (prior - other) @ basis[:, : level.size].T / (last**2 - first**2)
            assert np.abs(kept - covariance(points, points, length)).mean() < lost
    sizes = [level.size for level in filling.levels]
    assert sizes == sorted(sizes) and sizes[0] == 6


@pytest.mark.parametrize("count", [1, 4, 7])
def test_likelihoods_compiled_and_not(count):
    g = torch.Generator().manual_seed(count)
    x = torch.randn(count, 12, 20, dtype=torch.float64, generator=g)
    y = torch.randn(3, 9, 12, dtype=torch.float64, generator=g)
    right, scale = torch.randn(count, 12, dtype=torch.float64, generator=g), torch.rand(count, generator=g).double()
    given = (x @ x.transpose(1, 2), right, y @ y.transpose(1, 2), torch.tensor([9, 4, 6]), scale)
    assert torch.allclose(cpu_likelihood(*given), torch_likelihood(*given), rtol=1e-10)


def test_threads_change_nothing(probe):
    patterns, pattern, centres = fringed(600, 1.0, 2e3, 6)
    start, fitter = torch.as_tensor(centres, dtype=torch.float32), DiskFitter(probe)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                found.append(fitter.fit(patterns, pattern, start))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0].positions, found[1].positions) and torch.equal(found[0].sigma, found[1].sigma)


def test_what_fails_in_a_thread_is_raised():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(ZeroDivisionError):
            shared_out(lambda i: 1 / i, [1, 0, 2], torch.device("cpu"))
        assert torch.get_num_threads() == 2 and shared_out(abs, [-1, -2], torch.device("cpu")) == [1, 2]
    finally:
        torch.set_num_threads(before)


def test_covariance_falls_with_the_distance():
    a = np.array([[0.0, 0.0], [3.0, 4.0]])
    assert covariance(a, a, 5.0) == pytest.approx(np.array([[1, np.exp(-0.5)], [np.exp(-0.5), 1]]))


@pytest.mark.parametrize("radius", [3.0, 12.0])
def test_other_radii(radius):
    """Fringes closer than pixels tell are left out; the hypothesis without fringes stays."""
    probe = Probe.synthetic(radius, (128, 128), edge=EDGE)
    fitter = DiskFitter(probe)
    assert 2 <= len(fitter._filling.precision) <= len(HYPOTHESES)
    centre = np.array([60.3, 70.6])
    image = disk_image(centre, radius, EDGE, (128, 128))
    image = np.random.default_rng(0).poisson(2e4 * image / image.sum() + 0.2)
    found = fitter.fit(torch.as_tensor(image[None].astype(np.float32)), torch.zeros(1), torch.tensor([[60.0, 70.0]]))
    error = np.abs(found.positions[0].numpy() - centre)
    assert found.ok.all() and (error < 0.1).all() and (error < 3 * found.sigma[0].numpy()).all()
