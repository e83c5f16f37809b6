import time

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from crystaldl.physics.wavelengths import resolve_radiation
from crystaldl.powder.linefit import _profiles
from crystaldl.powder.pattern import PowderPattern


def matched(found, truth, tolerance=0.1):
    nearest = np.abs(found.position[:, None] - truth).argmin(axis=0)
    return nearest, np.abs(found.position[nearest] - truth) < tolerance


@pytest.mark.parametrize("wavelength", ["CuKa", "CuKa1"])
def test_uncertainties_mean_something(wavelength, simulated_lines):
    position, area, found, total, false = [], [], 0, 0, 0
    for seed in range(14):
        x, y, truth, areas = simulated_lines(seed, wavelength)
        peaks = PowderPattern(x, y, wavelength).peaks()
        near, hit = matched(peaks, truth)
        found, total, false = found + hit.sum(), total + truth.size, false + len(peaks) - hit.sum()
        position.extend(((peaks.position[near] - truth) / peaks.position_sigma[near])[hit])
        area.extend(((peaks.intensity[near] - areas) / peaks.intensity_sigma[near])[hit])
    assert 0.8 < np.sqrt(np.mean(np.square(position))) < 1.3
    assert 0.6 < np.sqrt(np.mean(np.square(area))) < 1.3
    assert abs(np.mean(position)) < 0.25
    assert found > 0.93 * total
    assert false <= 2


def test_pure_noise_has_no_lines():
    x = np.arange(10, 90, 0.02)
    lines = [len(PowderPattern(x, np.random.default_rng(s).poisson(200, x.size), "CuKa").peaks()) for s in range(10)]
    assert sum(lines) <= 2


def test_spikes_on_broad_lines_do_not_hide_them():
    """Few large grains: each line 0.4° wide is a heap of spikes, which once were taken for the lines' width."""
    rng, x = np.random.default_rng(4), np.arange(10, 90, 0.02)
    centre, height = np.sort(rng.uniform(15, 85, 14)), np.exp(rng.normal(0, 1, 14))
    lines = (height / height.max() * np.exp(-4 * np.log(2) * ((x[:, None] - centre) / 0.4) ** 2)).sum(1)
    y = lines + 0.01 * (1 + rng.normal(size=x.size))
    grains = gaussian_filter1d(rng.normal(size=x.size), 0.8)
    y += 0.3 * grains / grains.std() * np.clip(y - 0.01, 0, None)
    peaks = PowderPattern(x, 1e4 * np.clip(y, 0, None), 1.5406, background_subtracted=True).peaks()
    _, seen = matched(peaks, centre[height > 0.1 * height.max()])
    assert seen.all() and len(peaks) <= 14 and 0.2 < np.median(peaks.fwhm) < 0.5


@pytest.mark.parametrize("gap", [0.13, 0.2, 0.4])
def test_overlapping_pair(gap):
    """Two lines closer than twice their width, with the Kα2 line of the first between them, are told apart."""
    from crystaldl.powder.linefit import profile

    x = np.arange(30, 60, 0.02)
    truth = np.array([40.0, 40.0 + gap, 50.0])
    y = 50 + 400 * np.sum(profile(x, truth, 0.1, 0.4, resolve_radiation("CuKa")), axis=0)
    peaks = PowderPattern(x, np.random.default_rng(1).poisson(y), "CuKa").peaks()
    assert len(peaks) == 3
    assert np.allclose(peaks.position, truth, atol=0.006)


def test_doublet_is_decided_from_the_data(simulated_lines):
    for wavelength, alpha2 in (("CuKa", True), ("CuKa1", False)):
        x, y, truth, _ = simulated_lines(5, wavelength)
        for number in (1.5406, 1.5418):
            peaks = PowderPattern(x, y, number).peaks()
            assert (peaks.radiation.alpha2 is not None) is alpha2
            near, hit = matched(peaks, truth)
            assert hit.mean() > 0.9
            assert abs(np.mean((peaks.position[near] - truth)[hit])) < 0.003
            if alpha2:  # d comes from Kα1 even where the mean wavelength was given
                d = resolve_radiation("CuKa").wavelength / 2 / np.sin(np.radians(truth / 2))
                assert np.allclose(peaks.d[near][hit], d[hit], rtol=5e-4)


def test_background_and_scale_do_not_move_lines(simulated_lines):
    x, y, *_ = simulated_lines(6)
    raw = PowderPattern(x, y, "CuKa")
    reference = raw.peaks(8)
    for other in (raw.subtract_background(), PowderPattern(x, y / y.max(), "CuKa")):
        near, hit = matched(other.peaks(4), reference.position, 0.03)
        assert hit.mean() > 0.95
        assert np.median(np.abs(other.peaks(4).position[near] - reference.position)[hit]) < 0.002


def test_derivatives_of_the_profile():
    radiation = resolve_radiation("CuKa")
    x, position = np.linspace(58, 62, 300), np.array([60.0])
    value = lambda p, w, e: _profiles(x, p, w, e, radiation)[0]  # noqa: E731
    _, by_position, by_width, by_eta = _profiles(x, position, 0.2, 0.4, radiation)
    h = 1e-5
    scale = np.abs(by_position).max()
    assert np.allclose(
        (value(position + h, 0.2, 0.4) - value(position - h, 0.2, 0.4)) / (2 * h), by_position, atol=1e-4 * scale
    )
    assert np.allclose(
        (value(position, 0.2 * np.exp(h), 0.4) - value(position, 0.2 * np.exp(-h), 0.4)) / (2 * h), by_width, atol=1e-4
    )
    assert np.allclose((value(position, 0.2, 0.4 + h) - value(position, 0.2, 0.4 - h)) / (2 * h), by_eta, atol=1e-4)


def test_uneven_and_coarse_axes(simulated_lines):
    x, y, truth, _ = simulated_lines(7)
    keep = np.random.default_rng(0).random(x.size) > 0.1
    near, hit = matched(PowderPattern(x[keep], y[keep], "CuKa").peaks(), truth)
    assert hit.mean() > 0.85
    moved = PowderPattern(x, y, "CuKa").to_wavelength("MoKa").peaks()
    d = resolve_radiation("CuKa").wavelength / 2 / np.sin(np.radians(truth / 2))
    assert np.mean(np.abs(moved.d[:, None] / d - 1).min(axis=0) < 5e-4) > 0.85
    short = PowderPattern(x[:50], y[:50], "CuKa").peaks()
    assert len(short) <= 2


def test_list(simulated_lines):
    x, y, *_ = simulated_lines(8)
    peaks = PowderPattern(x, y, "CuKa").peaks()
    assert np.all(np.diff(peaks.position) > 0)
    assert np.allclose(peaks.significance, peaks.intensity / peaks.intensity_sigma)
    frame = peaks.to_dataframe()
    assert len(frame) == len(peaks) == len(list(peaks))
    assert list(frame.columns)[:3] == ["position", "position_sigma", "d"]
    assert f"{len(peaks)} lines" in repr(peaks)
    assert "<table" in peaks._repr_html_()
    top = PowderPattern(x, y, "CuKa").peaks(max_peaks=5)
    assert len(top) == 5
    assert set(top.position) <= set(peaks.position)
    assert len(peaks[peaks.significance > 20]) < len(peaks)
    assert len(peaks[0]) == 1
    assert next(iter(peaks))["position"] == peaks.position[0]


def test_measured_patterns(shared_data):
    """Strong lines of measured minerals are where their maxima are; sixty lines take less than 0.3 s."""
    data = np.load(shared_data / "powder" / "rruff_measured.npz")
    x = data["two_theta"].astype(float)
    seconds = []
    for row in data["intensity"][::60].astype(float):
        taken = []
        for _ in range(3):  # the CPU, not the clock, and the best of three: other work may share the machine
            start = time.process_time()
            peaks = PowderPattern(x, row, "CuKa", background_subtracted=True).peaks()
            taken.append(time.process_time() - start)
        seconds.append(min(taken))
        assert 3 <= len(peaks) <= 120
        assert np.abs(peaks.position - x[row.argmax()]).min() < 0.08
    assert np.median(seconds) < 0.3
