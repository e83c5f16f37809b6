"""From measured patterns to network inputs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crystaldl.physics.lattice import inverse_d_from_two_theta, two_theta_from_inverse_d
from crystaldl.powder.prepare import (
    AXIS_POINTS,
    AXIS_STEP,
    CU_DOUBLET,
    MAX_PEAKS,
    REFERENCE_WAVELENGTH,
    SPECTRUM_LN_Q,
    SPECTRUM_POINTS,
    common_axis,
    find_peaks,
    has_doublet,
    ln_q_of_axis,
    normalise,
    npcnn_input,
    prepare,
    strip_doublet,
    subtract_background,
    to_common_axis,
)
from crystaldl.powder.simulate import Conditions, simulate

AXIS = common_axis()


def gauss(at, fwhm, x=AXIS):
    return np.exp(-4 * np.log(2) * ((x - at) / fwhm) ** 2)


def batch(*rows):
    y = torch.tensor(np.array(rows), dtype=torch.float32)
    return y, torch.ones_like(y)


def position_of(peaks):
    """2θ of Cu Kα1 from the peak list's ln(1/d)."""
    return two_theta_from_inverse_d(np.exp(np.asarray(peaks[..., 0], float)), REFERENCE_WAVELENGTH)


# ------------------------------------------------------------------------------------------------ the axis


@pytest.mark.parametrize("wavelength", [0.7093, 1.540593, 1.788996, 2.2897])
def test_lines_keep_their_spacing_on_the_common_axis(wavelength):
    d = np.array([6.0, 3.1, 2.2])
    x = np.arange(3, 120, 0.005)
    at = np.degrees(2 * np.arcsin(wavelength / (2 * d)))
    y, mask = to_common_axis(x, sum(gauss(a, 0.1, x) for a in at), wavelength)
    expected = np.degrees(2 * np.arcsin(REFERENCE_WAVELENGTH / (2 * d)))
    for e in expected:
        near = np.abs(AXIS - e) < 0.5
        assert (y * AXIS)[near].sum() / y[near].sum() == pytest.approx(e, abs=2e-3)
    assert mask[np.searchsorted(AXIS, 30)] == 1 and y.dtype == mask.dtype == np.float32


@pytest.mark.parametrize("step", [0.005, 0.01, 0.02, 0.0167, 0.05, 0.1])
def test_integrals_are_conserved_at_any_step(step):
    x = np.arange(10, 80, step)
    y = 5 + 100 * gauss(31.234, 0.35, x) + 60 * gauss(50.0, 0.35, x)
    out, mask = to_common_axis(x, y, REFERENCE_WAVELENGTH)
    measured = mask > 0
    assert AXIS[measured][0] == pytest.approx(10, abs=0.021) and AXIS[measured][-1] == pytest.approx(x[-1], abs=0.021)
    area = (out[measured][2:-2].astype(float) - 5).sum() * AXIS_STEP
    assert area == pytest.approx(160 * 0.35 * np.sqrt(np.pi / (4 * np.log(2))), rel=5e-3)
    assert (out[~measured] == 0).all()


def test_gaps_and_masks():
    x = np.concatenate([np.arange(10, 30, 0.02), np.arange(40, 70, 0.02)])
    y, mask = to_common_axis(x, np.full(x.size, 7.0), REFERENCE_WAVELENGTH)
    assert (mask[(AXIS > 30.1) & (AXIS < 39.9)] == 0).all() and (mask[(AXIS > 40.1) & (AXIS < 69.9)] == 1).all()
    assert y[(mask > 0) & (AXIS > 10.1) & (np.abs(AXIS - 35) > 5.1) & (AXIS < 69.9)] == pytest.approx(7.0, rel=1e-3)
    x = np.arange(10, 70, 0.02)
    values = np.full(x.size, 3.0)
    values[(x > 20) & (x < 22)] = np.nan
    _, mask = to_common_axis(x, values, REFERENCE_WAVELENGTH, mask=(x > 50) & (x < 55))
    assert (mask[(AXIS > 20.1) & (AXIS < 21.9)] == 0).all() and (mask[(AXIS > 50.1) & (AXIS < 54.9)] == 0).all()
    assert (mask[(AXIS > 30) & (AXIS < 49)] == 1).all()
    y, mask = to_common_axis([10.0], [1.0], 1.54)
    assert y.sum() == mask.sum() == 0
    # a coarse scan is interpolated, not full of holes
    _, mask = to_common_axis(np.arange(10, 60, 0.1), np.ones(500), REFERENCE_WAVELENGTH)
    assert (mask[(AXIS > 10.1) & (AXIS < 59.8)] == 1).all()


# ------------------------------------------------------------------------------------------------ Kα2


def with_alpha2(at, fwhm, ratio=0.5):
    q = inverse_d_from_two_theta(at, REFERENCE_WAVELENGTH)
    second = two_theta_from_inverse_d(q, REFERENCE_WAVELENGTH * np.exp(CU_DOUBLET))
    return gauss(at, fwhm) + ratio * gauss(second, fwhm), float(second)


@pytest.mark.parametrize("fwhm", [0.1, 0.15, 0.3])
@pytest.mark.parametrize("at", [20.0, 45.0, 88.0])
def test_alpha2_is_removed(at, fwhm):
    y, second = with_alpha2(at, fwhm)
    stripped = strip_doublet(batch(y)[0], torch.tensor([0.5]))[0].numpy().astype(float)
    left = stripped - gauss(at, fwhm)
    # less than 3 % of the removed component, as area; the shape follows within the error of interpolation
    kalpha2 = 0.5 * gauss(second, fwhm)
    assert abs(left.sum()) < 0.03 * kalpha2.sum()
    assert np.abs(left).max() < 0.05 * kalpha2.max()
    untouched = strip_doublet(batch(y)[0], torch.tensor([0.0]))[0].numpy()
    assert np.allclose(untouched, y, atol=1e-6)


def test_sharp_patterns_show_whether_alpha2_is_there(seeded, quiet):
    rng = np.random.default_rng(3)
    q = torch.tensor(rng.uniform(0.4, 0.85, (40, 8)), dtype=torch.float32)
    intensity = torch.tensor(rng.uniform(0.4, 1, (40, 8)), dtype=torch.float32)
    sharp = replace(quiet, instrument_fwhm=(0.05, 0.08), peak_to_noise=(100.0, 500.0))
    for single in (0.0, 1.0):
        p = simulate(q, intensity, seeded(1), replace(sharp, single_share=single))
        assert (has_doublet(p.y, p.mask) == (single == 0.0)).float().mean() > 0.95


def test_in_doubt_alpha2_is_assumed(random_lines, tensors, seeded):
    """Crowded, broad or noisy patterns do not show it; laboratory data have it."""
    q, intensity = tensors(random_lines)
    p = simulate(q, intensity, seeded(), Conditions(cu_share=1.0, single_share=0.0))
    assert has_doublet(p.y, p.mask).float().mean() > 0.95
    assert has_doublet(torch.zeros(1, AXIS_POINTS), torch.ones(1, AXIS_POINTS)).dtype == torch.bool


# ------------------------------------------------------------------------------------------------ peaks


def test_isolated_lines_are_found(random_lines, tensors, seeded, quiet):
    """Recall of isolated lines above ten times the noise, position error, false lines."""
    widths = {"instrument_fwhm": (0.06, 0.14), "size": (500.0, 4000.0), "strain": (1e-5, 5e-4)}
    conditions = replace(quiet, peak_to_noise=(80.0, 800.0), **widths)
    q, intensity = tensors(random_lines, 200)
    p = simulate(q, intensity, seeded(9), conditions, keep_clean=True)
    peaks, found = find_peaks(normalise(p.y, p.mask), p.mask)
    assert peaks.shape == (200, MAX_PEAKS, 4) and found.shape == (200, MAX_PEAKS)
    wanted = hit = false = total = 0
    errors = []
    # neighbouring points of some simulated scans are correlated; being safe against those costs a few lines in white noise
    noise = (p.y - p.clean) * p.mask
    white = (noise[:, 1:] * noise[:, :-1]).sum(1) < 0.4 * (noise**2).sum(1)
    for k in np.flatnonzero(white.numpy()):
        x, clean = position_of(peaks[k][found[k]]), p.clean[k].numpy()
        real = random_lines.intensity[k] > 0
        lines = two_theta_from_inverse_d(random_lines.q[k][real].astype(float), REFERENCE_WAVELENGTH)
        height = np.interp(lines, AXIS, clean)
        limit = AXIS[p.mask[k].numpy() > 0][[0, -1]] + [0.5, -0.5]
        if len(x) < MAX_PEAKS:
            for i, at in enumerate(lines):
                alone = np.sum(np.abs(lines - at) < 0.6) == 1 and np.sum(np.abs(x - at) < 0.6) <= 1
                if not (alone and limit[0] < at < limit[1]):
                    continue
                local = noise[k].numpy()[np.abs(AXIS - at) < 0.5].std()
                if height[i] > 10 * local and height[i] > 0.006:
                    wanted += 1
                    near = np.abs(x - at)
                    if len(near) and near.min() < 0.06:
                        hit += 1
                        errors.append(near.min())
        total += len(x)
        false += sum(np.abs(lines - at).min() > 0.15 for at in x)
    assert white.sum() > 100
    assert wanted > 300 and hit >= 0.92 * wanted
    assert np.sqrt(np.mean(np.square(errors))) < 0.02
    assert false < 0.01 * total


def test_peak_features():
    y, mask = batch(gauss(30, 0.15) + 0.25 * gauss(50, 0.15) + 0.0005 * np.random.default_rng(0).normal(size=AXIS_POINTS))
    peaks, found = find_peaks(y, mask)
    order = position_of(peaks[0][found[0]])
    assert order[:2] == pytest.approx([30, 50], abs=2e-3)  # strongest first
    assert peaks[0, 1, 1] - peaks[0, 0, 1] == pytest.approx(np.log(0.25), abs=0.02)
    assert peaks[0, 0, 2] > peaks[0, 1, 2] > np.log(20)
    assert (peaks[0][~found[0]] == 0).all()
    nothing, flags = find_peaks(torch.zeros(2, AXIS_POINTS), torch.ones(2, AXIS_POINTS))
    assert torch.isfinite(nothing).all() and not flags.any()


# ------------------------------------------------------------------------------------------------ background


def test_background_is_removed_and_lines_are_left():
    lines = sum(h * gauss(at, 0.15) for at, h in ((22.0, 800), (34.0, 300), (47.0, 120), (47.5, 90), (68.0, 60)))
    background = 400 * np.exp(-AXIS / 12) + 150 + 120 * gauss(25.0, 14.0) - 0.4 * AXIS
    raw = np.random.default_rng(0).poisson(lines + background).astype(float)
    y, mask = batch(raw, 1000 * raw)
    mask[:, AXIS > 85] = mask[:, AXIS < 8] = 0
    y = y * mask
    out = subtract_background(y, mask)
    assert out[1] == pytest.approx(1000 * out[0], abs=60)
    out = out[0].numpy()
    inside = mask[0].numpy() > 0
    empty = inside & (np.convolve(lines, np.ones(50) / 50, "same") < 0.05) & (np.abs(AXIS - 46.5) < 38)
    assert abs(out[empty].mean()) < 15 and np.abs(np.convolve(out, np.ones(50) / 50, "same")[empty]).max() < 45  # of 400
    for at, h in ((22.0, 800), (34.0, 300), (68.0, 60)):
        near = np.abs(AXIS - at) < 0.5
        assert out[near].sum() == pytest.approx(lines[near].sum(), abs=25 * int(near.sum()))
        assert out[near].max() == pytest.approx(h, abs=0.08 * h + 55)
    assert (out[~inside] == 0).all()


def test_flat_pattern_stays_flat():
    y, mask = batch(np.full(AXIS_POINTS, 50.0))
    assert subtract_background(y, mask).abs().max() < 0.5
    assert torch.isfinite(normalise(torch.zeros(1, AXIS_POINTS), mask)).all()


# ------------------------------------------------------------------------------------------------ together


@pytest.fixture(scope="module")
def patterns(random_lines, tensors):
    q, intensity = tensors(random_lines, 32)
    return simulate(q, intensity, torch.Generator().manual_seed(0))


def test_prepared_inputs(patterns):
    p = prepare(patterns.y, patterns.mask, patterns.doublet_ratio)
    assert len(p) == 32 and p.spectrum.shape == (32, 2, SPECTRUM_POINTS) and p.peak_mask.dtype == torch.bool
    assert p.spectrum.min() >= 0 and p.spectrum[:, 1].max() <= 1.0001 and p.spectrum[:, 0].max() <= 1.5**0.5 + 1e-6
    assert (p.limits[:, 0] < p.limits[:, 1]).all()
    ln_q = p.peaks[..., 0][p.peak_mask]
    assert torch.isfinite(p.peaks).all() and ln_q.min() > SPECTRUM_LN_Q[0] - 0.4 and ln_q.max() < 0.01
    inside = (p.peaks[..., 0] >= p.limits[:, :1]) & (p.peaks[..., 0] <= p.limits[:, 1:])
    assert inside[p.peak_mask].all()
    part = p[3:5]
    assert len(part) == 2 and torch.equal(part.peaks, p.peaks[3:5]) and torch.equal(p.to("cpu").limits, p.limits)


def test_scale_and_batch_do_not_matter(patterns):
    one = prepare(patterns.y, patterns.mask, patterns.doublet_ratio)
    scaled = prepare(2000 * patterns.y, patterns.mask, patterns.doublet_ratio)
    assert torch.allclose(one.spectrum, scaled.spectrum, atol=1e-3)
    alone = prepare(patterns.y[4:5], patterns.mask[4:5], patterns.doublet_ratio[4:5])
    assert torch.allclose(alone.spectrum[0], one.spectrum[4], atol=1e-5)
    assert torch.equal(alone.peak_mask[0], one.peak_mask[4]) and torch.allclose(alone.peaks[0], one.peaks[4], atol=1e-4)


@pytest.mark.parametrize("bins", [-60, 40])
def test_scaling_the_cell_shifts_the_spectrum(bins, seeded, quiet):
    step = (SPECTRUM_LN_Q[1] - SPECTRUM_LN_Q[0]) / SPECTRUM_POINTS
    rng = np.random.default_rng(2)
    q = torch.tensor(np.sort(rng.uniform(0.25, 0.6, (6, 12))), dtype=torch.float32)
    intensity = torch.tensor(rng.uniform(0.3, 1, (6, 12)), dtype=torch.float32) * q**2  # undo most of the Lorentz factor
    wide = replace(quiet, instrument_fwhm=(0.2, 0.2))
    ratio = torch.zeros(6)
    first, second = (simulate(v, intensity, seeded(1), wide) for v in (q, q * float(np.exp(bins * step))))
    a, b = (prepare(p.y, p.mask, ratio) for p in (first, second))
    x, y = a.spectrum[:, 0].numpy(), b.spectrum[:, 0].numpy()
    for k in range(6):
        shifts = np.arange(-100, 101)
        match = [np.dot(np.roll(x[k], s), y[k]) for s in shifts]
        assert abs(shifts[int(np.argmax(match))] - bins) <= 1
        assert np.corrcoef(np.roll(x[k], bins), y[k])[0, 1] > 0.95
        both = min(a.peak_mask[k].sum(), b.peak_mask[k].sum())
        lines_a, lines_b = (np.sort(p.peaks[k, :, 0][p.peak_mask[k]].numpy()) for p in (a, b))
        if len(lines_a) == len(lines_b) == both:
            assert lines_b - lines_a == pytest.approx(bins * step, abs=1e-3)


def test_npcnn_input():
    y, mask = batch(gauss(30, 0.3) + 0.5 * gauss(60, 0.3))
    x = npcnn_input(y, mask)
    assert x.shape == (1, 8500) and x.min() >= 0 and x.max() <= 1
    two_theta = 5 + 0.01 * np.arange(8500)
    near = np.abs(two_theta - 30) < 1
    assert (x[0].numpy() * two_theta)[near].sum() / x[0].numpy()[near].sum() == pytest.approx(30, abs=2e-3)
    assert float(x[0, 5500]) == pytest.approx(0.5, abs=0.02)


def test_ln_q_of_axis():
    assert ln_q_of_axis(torch.tensor([28.4424])).exp() == pytest.approx(3**0.5 / 5.43102, rel=1e-4)
