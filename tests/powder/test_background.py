import numpy as np
import pytest

from crystaldl.powder.background import METHODS, estimate_background
from crystaldl.powder.pattern import PowderPattern


def smooth(x):
    return 300 * np.exp(-x / 25) + 80 + 120 * np.exp(-(((x - 25) / 10) ** 2))


@pytest.mark.parametrize("method", ["arpls", "asls", "snip"])
def test_known_background(method, simulated_lines):
    x, y, position, _ = simulated_lines(1, background=0.0)
    truth = smooth(x)
    y = np.random.default_rng(0).poisson(y + truth)
    found = estimate_background(x, y, method)
    away = np.min(np.abs(x[:, None] - position), axis=1) > 1.0
    bias = np.mean((found - truth)[away] / np.sqrt(truth[away]))
    assert abs(bias) < (0.35 if method == "arpls" else 2.5)
    assert np.sqrt(np.mean((found - truth) ** 2)) < 0.15 * truth.mean()


@pytest.mark.parametrize("method", METHODS)
def test_masked_points_bear_no_weight(method, simulated_lines):
    x, y, *_ = simulated_lines(2)
    y[500:600] = np.nan
    pattern = PowderPattern(x, y, "CuKa").subtract_background(method)
    assert np.all(np.isfinite(pattern.background))
    assert np.isnan(pattern.intensity).sum() == 100
    assert 100 < pattern.background[550] < 260


def test_uncertainty_comes_from_the_counts(simulated_lines):
    x, y, *_ = simulated_lines(3)
    pattern = PowderPattern(x, y, "CuKa").subtract_background()
    assert np.allclose(pattern.sigma, np.sqrt(np.maximum(y, 1)))
    assert np.allclose(pattern.intensity + pattern.background, y)
    quiet = pattern.intensity[np.abs(pattern.intensity) < 3 * pattern.sigma]
    assert abs(np.mean(quiet)) < 0.25 * np.median(pattern.sigma)  # neither clipped nor lifted


def test_broad_lines_survive():
    x = np.arange(20, 80, 0.05)
    y = 100 + 1000 * np.exp(-4 * np.log(2) * ((x - 45) / 1.5) ** 2)
    found = estimate_background(x, y)
    assert found.max() < 180


def test_scale_does_not_matter(simulated_lines):
    x, y, *_ = simulated_lines(4)
    assert np.allclose(estimate_background(x, y) * 1e-4, estimate_background(x, y * 1e-4), rtol=1e-3)
