"""Lines of all widths: found where they are, as high and wide as they are, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystaldl.powder.line_scales import SCALES, _accept, _answer, _kernels, search_lines
from crystaldl.powder.prepare import AXIS_POINTS, AXIS_STEP, REFERENCE_WAVELENGTH, common_axis, find_peaks

AXIS = common_axis()
MASK = np.ones(AXIS_POINTS)


def two_theta(peaks) -> np.ndarray:
    return np.degrees(2 * np.arcsin(np.exp(peaks[:, 0]) * REFERENCE_WAVELENGTH / 2))


def pattern(lines, noise=0.002, seed=0, lorentz=0.0) -> np.ndarray:
    """Lines (2θ, height, σ in points) as pseudo-Voigt functions with noise."""
    y = np.random.default_rng(seed).normal(0, noise, AXIS_POINTS)
    for at, height, sigma in lines:
        x = (AXIS - at) / AXIS_STEP / sigma
        y += height * ((1 - lorentz) * np.exp(-0.5 * x * x) + lorentz / (1 + (x / 1.18) ** 2))
    return y


@pytest.mark.parametrize("sigma", [1.8, 3.0, 6.0, 12.0, 24.0])
def test_lines_of_one_width_are_measured(sigma):
    places = np.arange(15.0, 85.0, 6.0)
    heights = np.linspace(1.0, 0.1, len(places))
    found = search_lines(pattern([(x, h, sigma) for x, h in zip(places, heights, strict=True)]), MASK)
    order = np.argsort(found[:, 0])
    assert len(found) == len(places)
    np.testing.assert_allclose(two_theta(found[order]), places, atol=0.1 * sigma * AXIS_STEP)
    np.testing.assert_allclose(np.exp(found[order, 1]), heights, rtol=0.16)
    # the width of the filter says most about the width of a line: good enough to tell 0.1° from 0.3°
    ratio = np.exp(found[order, 3]) / 0.8165 / sigma
    assert 0.7 < np.median(ratio) < 1.6 and ratio.max() < 2.1
    assert (found[:-1, 1] >= found[1:, 1]).all()


def test_sharp_and_broad_lines_in_one_pattern():
    sharp, broad = [(20.0, 0.6, 2.2), (29.5, 0.4, 2.2), (44.0, 0.3, 2.2)], [(28.4, 1.0, 25.0), (56.0, 0.4, 30.0)]
    y = pattern(sharp + broad, noise=0.01)
    found = two_theta(search_lines(y, MASK))
    for at, _, sigma in sharp + broad:
        assert np.abs(found - at).min() < 0.25 * sigma * AXIS_STEP
    assert len(found) == 5
    # one width for the whole pattern, which the network reads, does not find them all
    single, seen = find_peaks(torch.as_tensor(y[None], dtype=torch.float32), torch.ones(1, AXIS_POINTS))
    assert min(np.abs(two_theta(single[0][seen[0]].numpy()) - 56.0)) > 0.25 or int(seen.sum()) != 5


def test_noise_on_a_broad_line_is_not_taken_for_lines():
    rng = np.random.default_rng(3)
    y = pattern([(40.0, 1.0, 25.0)], noise=0.0)
    y = rng.poisson(400 * (y + 0.05)) / 400.0 - 0.05
    assert np.abs(two_theta(search_lines(y, MASK)) - 40.0).max() < 0.05


@pytest.mark.parametrize("lorentz", [0.5, 1.0])
def test_a_pointed_top_is_one_line(lorentz):
    lines = [(x, 1.0, 14.0) for x in (25.0, 40.0, 55.0)]
    found = np.sort(two_theta(search_lines(pattern(lines, noise=5e-4, lorentz=lorentz), MASK)))
    near = np.abs(found[:, None] - np.array([25.0, 40.0, 55.0])).min(1) < 1.5
    assert near.sum() == 3


def test_two_sharp_lines_are_not_one_broad_one():
    found = search_lines(pattern([(30.0, 1.0, 3.0), (30.0 + 3.6 * 3.0 * AXIS_STEP, 0.8, 3.0), (50.0, 0.5, 3.0)]), MASK)
    np.testing.assert_allclose(np.sort(two_theta(found)), [30.0, 30.216, 50.0], atol=0.02)


def test_humps_of_the_background_are_no_lines():
    y = pattern([(30.0, 0.3, 150.0), (26.0, 1.0, 3.0), (45.0, 0.5, 3.0)], noise=0.002)
    np.testing.assert_allclose(np.sort(two_theta(search_lines(y, MASK))), [26.0, 45.0], atol=0.02)


def test_noise_alone_and_nothing_at_all():
    assert sum(len(search_lines(np.random.default_rng(s).normal(0, 1, AXIS_POINTS), MASK)) for s in range(5)) < 10
    assert search_lines(np.zeros(AXIS_POINTS), MASK).shape == (0, 4)
    assert search_lines(pattern([(40.0, 1.0, 3.0)]), np.zeros(AXIS_POINTS)).shape == (0, 4)


def test_candidates_of_which_none_is_accepted_are_no_lines():
    """The surest one is far too low beside its sharper neighbour, and that neighbour stands too little out of the noise."""
    response, noise = np.zeros((len(SCALES), AXIS_POINTS)), np.ones((len(SCALES), AXIS_POINTS))
    response[6, 1000], noise[6, 1000] = 0.01, 0.001
    response[4, 1005], noise[4, 1005] = 100.0, 20.0
    assert all(len(column) == 0 for column in _accept(response, noise, np.full(AXIS_POINTS, 100.0)))


def test_what_was_not_measured_and_the_ends_hold_no_lines():
    mask = ((AXIS > 20) & (AXIS < 60) & ~((AXIS > 38) & (AXIS < 39))).astype(float)
    y = (pattern([(30.0, 1.0, 4.0), (50.0, 0.5, 4.0)]) + 0.3) * mask
    np.testing.assert_allclose(np.sort(two_theta(search_lines(y, mask))), [30.0, 50.0], atol=0.02)


def test_answers_follow_the_formula():
    t = np.arange(-400, 401)
    plain, _ = _kernels()
    from scipy.fft import irfft

    for k, sigma, offset in ((0, 3.0, 0), (4, 5.0, 3), (7, 4.0, 10), (9, 22.0, -15)):
        kernel = np.roll(irfft(plain[k]), len(t) // 2)[: len(t)]
        line = np.exp(-0.5 * ((t + offset) / sigma) ** 2)
        assert kernel @ line == pytest.approx(_answer(offset, sigma, SCALES[k]), abs=0.02)
