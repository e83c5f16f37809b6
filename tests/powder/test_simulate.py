"""The simulator: Bragg's law, doublets, areas, wavelengths, mixtures, seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from crystaldl.physics.crystals import Crystal
from crystaldl.physics.lattice import two_theta_from_inverse_d
from crystaldl.powder.prepare import AXIS_POINTS, AXIS_STEP, REFERENCE_WAVELENGTH, common_axis
from crystaldl.powder.simulate import MAX_LINES, Conditions, LineLibrary, lines_of, simulate

AXIS = common_axis()


def apex(y, near=None, width=0.6):
    """Position of the maximum (near a place), by a parabola through three points."""
    y = np.asarray(y, float)
    allowed = np.ones(AXIS_POINTS, bool) if near is None else np.abs(AXIS - near) < width
    i = int(np.argmax(np.where(allowed, y, -1)))
    left, mid, right = y[i - 1:i + 2]
    return AXIS[i] + AXIS_STEP * 0.5 * (right - left) / (2 * mid - left - right)


def sticks(*two_theta, intensity=None, copies=1):
    """Lines at 2θ of Cu Kα1 as tensors (copies, n)."""
    q = 2 * np.sin(np.radians(np.array(two_theta) / 2)) / REFERENCE_WAVELENGTH
    intensity = np.ones(len(q)) if intensity is None else np.asarray(intensity, float)
    return torch.tensor(q, dtype=torch.float32).repeat(copies, 1), torch.tensor(intensity, dtype=torch.float32).repeat(copies, 1)


def area(y, at, width=1.5):
    return float(np.asarray(y, float)[np.abs(AXIS - at) < width].sum() * AXIS_STEP)


def test_same_seed_same_batch(random_lines, tensors, seeded):
    q, intensity = tensors(random_lines, 32)
    one, two, other = (simulate(q, intensity, seeded(s), second=(q.flip(0), intensity.flip(0)), keep_clean=True) for s in (1, 1, 2))
    for name in ("y", "mask", "doublet_ratio", "second_share", "clean"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert not torch.equal(one.y, other.y)
    assert one.y.shape == one.mask.shape == (32, AXIS_POINTS) and one.y.dtype == torch.float32 and one.y.device.type == "cpu"
    assert torch.isfinite(one.y).all() and set(one.mask.unique().tolist()) <= {0.0, 1.0}
    assert (one.y[one.mask == 0] == 0).all()
    assert one.clean.amax(1) == pytest.approx(1.0) and one.clean.min() >= 0
    assert simulate(q, intensity, seeded(1)).clean is None


def test_the_strongest_line_lies_on_braggs_law(random_lines, tensors, seeded, quiet):
    q, intensity = tensors(random_lines, 100)
    p = simulate(q, intensity, seeded(), quiet, keep_clean=True)
    checked = 0
    for k in range(len(q)):
        lines = two_theta_from_inverse_d(random_lines.q[k][random_lines.intensity[k] > 0].astype(float), REFERENCE_WAVELENGTH)
        x = apex(p.clean[k])
        nearest = lines[np.argmin(np.abs(lines - x))]
        if np.sum(np.abs(lines - x) < 0.4) == 1:  # alone
            assert x == pytest.approx(nearest, abs=2e-3)
            checked += 1
    assert checked > 20


def test_zero_shift_and_displacement(seeded, quiet):
    q, intensity = sticks(30.0, 80.0, copies=400)
    shifted = simulate(q, intensity, seeded(), replace(quiet, zero=0.05), keep_clean=True).clean
    low, high = (np.array([apex(y, at) - at for y in shifted]) for at in (30.0, 80.0))
    assert low == pytest.approx(high, abs=3e-3)  # the same everywhere
    assert low.std() == pytest.approx(0.05, rel=0.12) and abs(low.mean()) < 0.01
    displaced = simulate(q, intensity, seeded(), replace(quiet, displacement=0.05), keep_clean=True).clean
    low, high = (np.array([apex(y, at) - at for y in displaced]) for at in (30.0, 80.0))
    big = np.abs(low) > 0.03
    assert (high / low)[big] == pytest.approx(np.cos(np.radians(40)) / np.cos(np.radians(15)), abs=0.06)


def test_alpha2_at_its_place(seeded, quiet):
    q, intensity = sticks(80.0)
    y = simulate(q, intensity, seeded(3), replace(quiet, single_share=0.0), keep_clean=True)
    second = float(two_theta_from_inverse_d(float(q[0, 0]), 1.544427))
    assert apex(y.clean[0], 80.0, 0.1) == pytest.approx(80.0, abs=3e-3)
    assert apex(y.clean[0], second, 0.1) == pytest.approx(second, abs=5e-3)
    middle = 0.5 * (80.0 + second)
    right, left = (float(y.clean[0][torch.as_tensor(s)].sum()) for s in ((middle < AXIS), (middle >= AXIS)))
    assert right / left == pytest.approx(0.5, abs=0.06) and y.doublet_ratio[0] == 0.5
    alone = simulate(q, intensity, seeded(3), quiet)
    assert alone.doublet_ratio[0] == 0


def test_broadening_conserves_areas(seeded, quiet):
    """Areas of separate lines follow m|F|² LP, whatever their widths."""
    at = (30.0, 55.0, 80.0)
    q, intensity = sticks(*at, intensity=[1.0, 0.5, 0.8], copies=8)
    theta = np.radians(np.array(at) / 2)
    wide = replace(quiet, instrument_fwhm=(0.15, 0.15), size=(1500.0, 1500.0), strain=(3e-4, 3e-4))
    for conditions in (quiet, wide, replace(quiet, asymmetry=0.06)):
        clean = simulate(q, intensity, seeded(1), conditions, keep_clean=True).clean
        for y in clean:
            areas = np.array([area(y, x, 10.0) for x in at])
            lorentz = np.array([1.0, 0.5, 0.8]) / (np.sin(theta) ** 2 * np.cos(theta))
            expected = [lorentz * (1 + p * np.cos(2 * theta) ** 2) for p in (1, 0.8)]
            error = min(np.abs(areas / areas[0] - e / e[0]).max() for e in expected)
            assert error < 0.01
    narrow = simulate(q, intensity, seeded(1), quiet, keep_clean=True).clean
    broad = simulate(q, intensity, seeded(1), wide, keep_clean=True).clean
    assert (broad.sum(1) > 1.5 * narrow.sum(1)).all()  # the strongest line is 1 in both


def test_debye_waller_and_scatter(seeded, quiet):
    q, intensity = sticks(30.0, 80.0, copies=4)
    ratio = [[area(y, 80.0) / area(y, 30.0) for y in simulate(q, intensity, seeded(2), c, keep_clean=True).clean]
             for c in (quiet, replace(quiet, b_iso=(2.0, 2.0)))]  # fmt: skip
    expected = np.exp(-0.5 * 2.0 * float(q[0, 1] ** 2 - q[0, 0] ** 2))
    assert np.array(ratio[1]) / np.array(ratio[0]) == pytest.approx(expected, rel=5e-3)


def test_common_axis_does_not_depend_on_the_wavelength(seeded, quiet):
    q, intensity = sticks(14.0, 24.0, 36.0, intensity=[0.5, 1.0, 1.0], copies=80)
    p = simulate(q, intensity, seeded(5), replace(quiet, cu_share=0.0), keep_clean=True)
    for y in p.clean:
        for at in (14.0, 24.0, 36.0):
            assert apex(y, at) == pytest.approx(at, abs=0.01)
    widths = [(y > 0.5 * y.max()).sum().item() for y in p.clean[:, torch.as_tensor(np.abs(AXIS - 24) < 2)]]
    assert max(widths) > 1.7 * min(widths)  # a short wavelength is wide on copper's axis


def test_second_phase(seeded, quiet):
    q, intensity = sticks(30.0, copies=200)
    other = sticks(45.0, copies=200)
    half = replace(quiet, second_phase_share=0.5)
    p = simulate(q, intensity, seeded(), half, second=other, keep_clean=True)
    present = p.second_share > 0
    assert 0.35 < present.float().mean() < 0.65
    assert p.second_share[present].min() >= 0.01 and p.second_share.max() <= 0.2
    ratio = np.array([area(y, 45.0, 1.0) / area(y, 30.0, 1.0) for y in p.clean])
    assert ratio == pytest.approx(p.second_share.numpy(), abs=2e-3)


def test_noise_follows_peak_to_noise(seeded, quiet):
    q, intensity = sticks(30.0, copies=20)
    p = simulate(q, intensity, seeded(), replace(quiet, peak_to_noise=(100.0, 100.0)), keep_clean=True)
    empty = torch.as_tensor(AXIS > 60)
    noise = (p.y - p.clean)[:, empty & (p.mask[0] > 0)].std(1)
    assert (noise > 0.0095).all() and (noise < 0.025).all()
    rectified = simulate(q, intensity, seeded(), replace(quiet, peak_to_noise=(100.0, 100.0), offset_share=1.0))
    assert rectified.y.min() >= 0


def test_cut_ranges(random_lines, tensors, seeded):
    q, intensity = tensors(random_lines, 64)
    mask = simulate(q, intensity, seeded(), Conditions(cut_share=1.0)).mask.numpy()
    first, last = AXIS[mask.argmax(1)], AXIS[AXIS_POINTS - 1 - mask[:, ::-1].argmax(1)]
    assert first.min() >= 4 and first.max() > 15 and last.min() < 60 and last.max() > 90
    assert (mask.sum(1) == (last - first) / AXIS_STEP + 1).all() or np.allclose(mask.sum(1), (last - first) / AXIS_STEP + 1, atol=1)


def test_lines_of_a_crystal():
    silicon = Crystal([14] * 8, [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0], [0.25, 0.25, 0.25], [0.25, 0.75, 0.75],
                                 [0.75, 0.25, 0.75], [0.75, 0.75, 0.25]], [5.43102] * 3 + [90] * 3, 227)  # fmt: skip
    q, intensity = lines_of(silicon)
    assert q.shape == intensity.shape == (MAX_LINES,) and q.dtype == intensity.dtype == np.float32
    real = intensity > 0
    n = np.sort(np.round((q[real] * 5.43102) ** 2, 3))
    assert n.tolist() == [3, 8, 11, 16, 19, 24, 27]  # up to 1/d = 1 Å⁻¹
    assert q[0] * 5.43102 == pytest.approx(3**0.5, rel=1e-5)  # strongest first
    textured = lines_of(silicon, ((1.0, 1.0, 1.0), 0.5))[1]
    assert textured[0] == pytest.approx(intensity[0]) and textured[1] < 0.9 * intensity[1]


def test_line_library_files(tmp_path, random_lines):
    random_lines.save(tmp_path / "lines.npz")
    again = LineLibrary.load(tmp_path / "lines.npz")
    assert len(again) == 300 and np.array_equal(again.q, random_lines.q) and np.array_equal(again.volume, random_lines.volume)
    parts = LineLibrary.concatenate([random_lines.subset(slice(0, 100)), random_lines.subset(slice(100, 300))])
    assert np.array_equal(parts.space_group, random_lines.space_group) and np.array_equal(parts.intensity, random_lines.intensity)
