"""Pawley fits of drawn patterns, and what their intensities say about absent lines."""

from __future__ import annotations

import numpy as np
import pytest

from crystaldl.physics.symmetry import BRAVAIS_LATTICES, bravais_of_group, extinction_of_group, space_group
from crystaldl.powder.indexing import pawley
from crystaldl.powder.indexing.absences import absence_evidence, forbidden_lines, line_likelihoods, settings
from crystaldl.powder.indexing.bravais import metric_of, niggli_cell
from crystaldl.powder.indexing.extinction import groups_of_lattice, predicted_reflections
from crystaldl.powder.indexing.pawley import FREE_PARAMETERS, compared, pawley_fit
from crystaldl.powder.indexing.profile_kernels import add_up, columns, normal_equations
from crystaldl.powder.prepare import AXIS_POINTS, CU_DOUBLET, REFERENCE_WAVELENGTH, common_axis

CELLS = {
    "cF": (5.64, 5.64, 5.64, 90, 90, 90), "tP": (4.594, 4.594, 2.959, 90, 90, 90), "hP": (4.913, 4.913, 5.405, 90, 90, 120),
    "hR": (4.759, 4.759, 12.992, 90, 90, 120), "oP": (4.76, 10.2, 5.98, 90, 90, 90), "mC": (9.75, 8.93, 5.25, 90, 106.1, 90),
    "mP": (5.68, 15.2, 6.52, 90, 118.4, 90), "aP": (5.22, 5.58, 7.13, 93.2, 104.9, 98.4),
}  # fmt: skip


def coefficients(bravais):
    return metric_of(CELLS[bravais])


def pattern(bravais, group=None, zero=0.0, displacement=0.0, fwhm=0.10, noise=0.003, seed=0, ratio=0.5):
    """A drawn pattern: random intensities, lines that ``group`` forbids left out. Returns y, mask and {hkl: intensity}."""
    rng = np.random.default_rng(seed)
    hkl, q2 = predicted_reflections(coefficients(bravais), bravais, (2 * np.sin(np.radians(35.0)) / REFERENCE_WAVELENGTH) ** 2)
    strength = rng.exponential(1.0, len(q2)) + 0.02
    if group is not None:
        strength[space_group(group).operations().systematic_absences(hkl.astype(np.int32))] = 0.0
    axis, y = common_axis(), np.zeros(AXIS_POINTS)
    for component, share in ((1.0, 1.0), (np.exp(CU_DOUBLET), ratio)):
        theta = np.arcsin(np.sqrt(q2) * REFERENCE_WAVELENGTH / 2 * component)
        x = 2 * np.degrees(theta) + zero + displacement * np.cos(theta)
        for centre, s in zip(x, strength, strict=True):
            if s:
                u = (axis - centre) / fwhm
                y += share * s * (0.5 * np.exp(-4 * np.log(2) * u * u) + 0.5 / (1 + 4 * u * u))
    mask = ((axis > 8) & (axis < 70)).astype(float)
    y = (y / y.max() + rng.normal(0, noise, AXIS_POINTS)) * mask
    return y, mask, dict(zip(map(tuple, hkl.tolist()), strength, strict=True))


@pytest.mark.parametrize("bravais", CELLS)
def test_the_cell_is_refined_from_a_near_one(bravais):
    y, mask, _ = pattern(bravais, zero=0.03)
    one = -1 if bravais[0] in "oma" else 1
    signs = np.array([1, one, 1 if bravais[0] == "c" else -1, 1, 1, 1])
    off = 0.0008 if bravais[0] in "ma" else 0.003  # where lines are dense, farther off is another indexing
    start = coefficients(bravais) * (1 + off * signs)
    fit = pawley_fit(y, mask, bravais, start)
    truth = coefficients(bravais)
    assert fit.metric == pytest.approx(truth, rel=1e-3, abs=1e-5)
    low = fit.zero + fit.displacement * np.cos(np.radians(15))
    assert low == pytest.approx(0.03, abs=0.02)
    assert fit.explained > 0.92 and fit.misfit < 1.3
    assert np.median(fit.width) == pytest.approx(0.10, rel=0.25)


def test_free_parameters_span_the_metrics_of_each_family():
    for bravais in CELLS:
        metric = coefficients(bravais)
        free = FREE_PARAMETERS[bravais[0]]
        assert free @ np.linalg.lstsq(free, metric, rcond=None)[0] == pytest.approx(metric, abs=1e-12)


def test_intensities_and_their_uncertainties():
    """Separate lines come back; residuals over σ are of order one."""
    pulls = []
    for seed in range(3):
        y, mask, truth = pattern("tP", seed=seed, noise=0.01)
        fit = pawley_fit(y, mask, "tP", coefficients("tP"))
        total = np.array([sum(truth[tuple(h)] for h in fit.hkl[fit.line == n].tolist()) for n in range(len(fit.intensity))])
        factor = (fit.intensity @ total) / (total @ total)
        assert fit.intensity == pytest.approx(factor * total, abs=0.06 * (factor * total).max())
        pulls.append((fit.intensity - factor * total) / fit.sigma)
    assert 0.2 < np.sqrt(np.mean(np.concatenate(pulls) ** 2)) < 2.0


def test_the_true_lattice_gains_most_from_its_lines():
    y, mask, _ = pattern("oP")
    right = pawley_fit(y, mask, "oP", coefficients("oP"))
    wrong = pawley_fit(y, mask, "oP", coefficients("oP") * [1.08, 1.0, 1.0, 1.0, 1.0, 1.0])
    centred = pawley_fit(y, mask, "oI", coefficients("oP"))
    assert right.gain > 1.2 * wrong.gain and right.gain > 1.2 * centred.gain
    assert right.misfit < wrong.misfit and right.misfit < centred.misfit


def test_second_component_and_curve():
    y, mask, _ = pattern("cF", noise=0.001)
    fit = pawley_fit(y, mask, "cF", coefficients("cF"))
    single = pawley_fit(y, mask, "cF", coefficients("cF"), ratio=0.0)
    assert fit.misfit < single.misfit
    here = slice(fit.first, fit.first + len(fit.curve))
    assert np.abs(y[here] - fit.curve).max() < 0.05


def test_fits_of_unlike_range_can_be_compared(monkeypatch):
    """A fit cut short by too many lines is judged as if it went on like the best: it gains neither less nor more."""
    y, mask, _ = pattern("oP")
    whole = pawley_fit(y, mask, "oP", coefficients("oP"))
    assert compared([whole, None], y, mask) == [whole, None]
    lattice = coefficients("oP") * [0.25, 1.0, 1.0, 1.0, 1.0, 1.0]
    monkeypatch.setattr(pawley, "MAX_LINES", 400)
    double = pawley_fit(y, mask, "oP", lattice)
    monkeypatch.setattr(pawley, "MAX_LINES", 45)
    short = pawley_fit(y, mask, "oP", lattice)
    assert len(short.curve) < 0.8 * len(double.curve) and short.gain < 0.9 * double.gain
    first, second = compared([whole, short], y, mask)
    assert first is whole and second.curve is short.curve
    assert second.gain == pytest.approx(double.gain, rel=0.02)
    assert 0.95 * min(whole.misfit, short.misfit) < second.misfit < 1.05 * max(whole.misfit, short.misfit)
    assert second.explained == pytest.approx(double.explained, abs=0.01)


def test_no_lines_no_fit():
    y, mask, _ = pattern("cF")
    narrow = mask * 0
    narrow[1000:1200] = 1
    assert pawley_fit(y * narrow, narrow, "cF", [0.9, 0.9, 0.9, 0.0, 0.0, 0.0]) is None
    assert pawley_fit(y * 0, mask * 0, "cF", coefficients("cF")) is None


# ------------------------------------------------------------------------------------------ kernels


def test_derivatives_of_the_profile():
    first, second, width, eta = np.array([14.0, 15.1]), np.array([14.04, 15.15]), np.array([0.11, 0.2]), 0.4

    def value(first=first, second=second, width=width, eta=eta):
        v, *_, offset, size = columns(10.0, 0.02, 600, first, second, 0.5, width, eta, 9.0)
        return np.array([add_up(v, np.eye(2)[i], offset, size, 600) for i in range(2)])

    v, by_position, by_width, by_eta, offset, size = columns(10.0, 0.02, 600, first, second, 0.5, width, eta, 9.0)
    spread = lambda t: np.array([add_up(t, np.eye(2)[i], offset, size, 600) for i in range(2)])  # noqa: E731
    h = 1e-6
    numeric = (value(first + h, second + h) - value(first - h, second - h)) / (2 * h)
    assert spread(by_position)[:, 180:330] == pytest.approx(numeric[:, 180:330], abs=2e-2)
    assert spread(by_eta) == pytest.approx((value(eta=eta + h) - value(eta=eta - h)) / (2 * h), abs=1e-5)
    numeric = (value(width=width * (1 + h)) - value(width=width * (1 - h))) / (2 * h * width[:, None])
    assert spread(by_width)[:, 180:330] == pytest.approx(numeric[:, 180:330], abs=2e-2)
    assert value().sum(1) * 0.02 == pytest.approx([1.5, 1.5], rel=0.05)


def test_normal_equations_equal_the_dense_ones():
    rng = np.random.default_rng(0)
    first = np.array([12.0, 12.2, 16.0])
    v, *_, offset, size = columns(10.0, 0.02, 400, first, first + 0.03, 0.5, np.full(3, 0.12), 0.5, 9.0)
    dense, weight, y = rng.normal(size=(400, 2)), rng.uniform(0.5, 2, 400), rng.normal(size=400)
    full = np.concatenate([np.array([add_up(v, np.eye(3)[i], offset, size, 400) for i in range(3)]).T, dense], 1)
    matrix, right = normal_equations(v, offset, size, dense, weight, y)
    assert matrix == pytest.approx(full.T @ (weight[:, None] * full)) and right == pytest.approx(full.T @ (weight * y))


# ------------------------------------------------------------------------------------------ absent lines


@pytest.mark.parametrize(
    ("bravais", "group"),
    [("oP", 62), ("oP", 19), ("mP", 14), ("mC", 15), ("mC", 12), ("tP", 136), ("cF", 225), ("cF", 227), ("hR", 167)],
)
def test_the_true_extinction_group_is_among_the_best(bravais, group):
    """Averaged over three patterns no group that forbids a visible line comes near, and the true one leads its lattice."""
    total: dict[int, float] = {}
    for seed in range(3):
        y, mask, _ = pattern(bravais, group, seed=seed)
        fit = pawley_fit(y, mask, bravais, coefficients(bravais))
        for key, value in absence_evidence(fit)[1].items():
            total[key] = total.get(key, 0.0) + value
    truth = int(extinction_of_group()[group - 1])
    best = max(total, key=total.get)
    assert total[truth] >= total[best] - 3.0
    assert sum(v > total[truth] for v in total.values()) <= 2


def test_forbidden_lines_follow_the_setting():
    """P 21/c drawn in its n setting: the setting is found."""
    y, mask, _ = pattern("mP", 14, seed=3)
    fit = pawley_fit(y, mask, "mP", coefficients("mP"))
    group = int(extinction_of_group()[13])
    forbidden = forbidden_lines(group, fit)
    allowed, absent = line_likelihoods(fit)
    assert forbidden.sum() > 5 and (absent - allowed)[forbidden].sum() > 0
    for line in np.flatnonzero(forbidden):
        for h, k, l in fit.hkl[fit.line == line]:
            assert (k == 0 and l % 2 == 1) or (h == 0 and l == 0 and k % 2 == 1)


def test_settings_are_distinct_and_of_the_lattice():
    for bravais, groups in groups_of_lattice().items():
        for group in groups:
            found = settings(int(group), bravais)
            assert found, f"no setting of extinction group {group} fits {bravais}"
            assert len({t.tobytes() for t in found}) == len(found)
            assert not any(t[14, 14, 14] for t in found)
    pnma = settings(int(extinction_of_group()[61]), "oP")
    assert len(pnma) == 6
    assert BRAVAIS_LATTICES[bravais_of_group()[61]] == "oP"


def test_noise_of_smoothed_patterns_is_seen():
    rng = np.random.default_rng(3)
    rough = rng.normal(0, 0.01, AXIS_POINTS)
    smooth = np.convolve(rough, np.ones(4) / 2, "same")  # as strong, but neighbours agree
    mask = np.ones(AXIS_POINTS)
    for noise in (rough, smooth):
        assert pawley.noise_level(noise, mask, pawley.LAGS) == pytest.approx(0.01, rel=0.25)


def test_no_line_grows_at_the_cost_of_another_below_zero():
    y, mask, _ = pattern("mC", fwhm=0.35, noise=0.004, seed=2)
    fit = pawley_fit(y, mask, "aP", metric_of(niggli_cell(CELLS["mC"], "C")), 0.0, strict=True)
    assert fit.intensity.min() > -1e-3 * fit.intensity.max()
    assert fit.explained > 0.97


def test_strong_lines_missed_at_first_come_back():
    y, mask, lines = pattern("tP", zero=0.09, fwhm=0.12, noise=0.001, seed=4)
    fit = pawley_fit(y, mask, "tP", coefficients("tP") * 1.004, 0.0, strict=True)
    assert fit.explained > 0.97 and fit.intensity.min() > -1e-3 * fit.intensity.max()
