"""The simulator: exact centres, counts that add up, honest labels, nothing that depends on anything but its seed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystaldl.stem.disks import DiskOptions, find_disks
from crystaldl.stem.peaks.refine import DiskFitter
from crystaldl.stem.probe import Probe
from crystaldl.stem.simulate import bank as bank_module
from crystaldl.stem.simulate.bank import (
    EXTENT,
    GRID,
    HELD_OUT_SEMIANGLES,
    HELD_OUT_VOLTAGES,
    DiskBank,
    build_bank,
    directions,
    interpolation,
)
from crystaldl.stem.simulate.corruption import Corruption, count, detect, diffuse_background, plasmon_blur
from crystaldl.stem.simulate.patterns import SceneOptions, aperture, cut_apertures, draw_disks, simulate
from crystaldl.stem.simulate.specimens import held_out

torch.set_num_threads(1)
CLEAN = Corruption(
    log_dose=(7.5, 7.5), diffuse=(1e-4, 2e-4), plasmon=(0, 0), read_noise=(1e-3, 2e-3), bad_pixels=0, saturation=0, stop=0
)  # fmt: skip


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------ bank


def test_bank(small_bank):
    b = small_bank
    assert b.g.shape == (10, 48, 2) and b.values.shape == (10, 4, 48, 61) and len(b) == 10
    assert torch.equal(b.g[:, 0], torch.zeros(10, 2))  # 000 comes first
    total = b.values.float().sum(2)
    assert (total < 1.02).all() and (total > 0).all()
    assert not any(held_out(int(f)) for f in b.family) and not set(b.voltage.tolist()) & set(HELD_OUT_VOLTAGES)
    assert ((b.v >= 0) & (b.v[:, 1:].amax(1, keepdim=True) <= 1.0001)[:, :1]).all()
    assert (b.thickness > 0.9).all() and (b.thickness < 121).all()


def test_bank_is_a_function_of_its_seed(small_bank, tmp_path):
    same = build_bank(2, seed=2, beams=50, stored=48, thicknesses=4)
    assert torch.equal(same.values, small_bank.values[:2]) and torch.equal(same.v, small_bank.v[:2])
    other = build_bank(1, seed=3, beams=50, stored=48, thicknesses=4)
    assert not torch.equal(other.thickness[0], small_bank.thickness[0])
    small_bank.save(tmp_path / "bank.safetensors")
    again = DiskBank.load(tmp_path / "bank.safetensors")
    assert torch.equal(again.values, small_bank.values) and list(tmp_path.iterdir()) == [tmp_path / "bank.safetensors"]


def test_evaluation_bank_shares_nothing_with_training():
    b = build_bank(2, seed=0, evaluation=True, beams=30, stored=30, thicknesses=2)
    assert all(held_out(int(f)) for f in b.family) and set(b.voltage.tolist()) <= set(HELD_OUT_VOLTAGES)


def test_interpolation_over_the_disk():
    d = directions()
    assert d.shape == (61, 2) and np.hypot(*d.T).max() == pytest.approx(1)
    axis = np.linspace(-EXTENT, EXTENT, GRID)
    v, u = np.meshgrid(axis, axis, indexing="ij")
    inside = np.hypot(v, u) < 1

    def fringes(v, u):
        return 1 + np.cos(6 * v + 2 * u) * 0.7 + 0.3 * u

    found = (fringes(*d.T) @ interpolation()).reshape(GRID, GRID)
    assert np.abs(found - fringes(v, u))[inside].max() < 0.16


# ------------------------------------------------------------------------------------------ drawing


def test_disks_are_drawn_at_their_centres():
    o = SceneOptions((96, 96), radius=6.0, edge=0.6)
    centres = torch.tensor([[[30.3, 40.7], [70.05, 20.5], [float("nan")] * 2, [3.0, 90.0], [500.0, 5.0]]])
    images, sums = draw_disks(torch.ones(1, 5, GRID, GRID), centres, o.radius * torch.eye(2)[None], o)
    assert sums[0, :2] == pytest.approx(np.pi * 36, rel=0.02) and not sums[0, 2] and not sums[0, 4]
    assert float(images.sum()) < float(sums.sum())  # the fourth is cut by the edge
    image = images[0].numpy()
    y, x = np.indices(image.shape)
    for c in centres[0, :2].numpy():
        w = image * (np.hypot(y - c[0], x - c[1]) < 10)
        assert [(w * y).sum() / w.sum(), (w * x).sum() / w.sum()] == pytest.approx(c, abs=0.02)
    probe = Probe.synthetic(6.0, (96, 96), edge=0.6)
    fit = DiskFitter(probe).fit(images, torch.zeros(2), centres[0, :2] + 0.3)
    assert fit.positions.numpy() == pytest.approx(centres[0, :2].numpy(), abs=0.03)


def test_orientation_of_the_filling():
    """A map that grows along axis 0 makes a disk brighter at larger rows, whatever part of the cone is cut."""
    axis = torch.linspace(-EXTENT, EXTENT, GRID)
    ramp = (2 + axis[:, None]).expand(GRID, GRID)
    bank = build_bank(1, seed=5, beams=20, stored=20, thicknesses=1)
    d = torch.as_tensor(directions()).float()
    bank.values = (2 + d[:, 0]).half().expand(1, 1, 20, 61).clone()
    zero = torch.zeros(1, dtype=torch.long)
    maps = cut_apertures(bank, zero, zero, torch.tensor([0.5]), torch.tensor([[0.3, 0.0]]))
    assert torch.allclose(maps[0, 0, 4:12, 4:12], (2 + 0.5 * axis[4:12, None] + 0.3).expand(8, 8), atol=0.02)
    o = SceneOptions((64, 64), radius=8.0)
    image, _ = draw_disks(ramp[None, None], torch.tensor([[[32.0, 32.0]]]), 8 * torch.eye(2)[None], o)
    assert image[0, 37, 32] > 1.3 * image[0, 27, 32] and image[0, 32, 27] == pytest.approx(float(image[0, 32, 37]), rel=1e-3)


def test_aperture():
    r = torch.linspace(0, 2, 50)
    plain, rings = aperture(r, 0.1), aperture(r, 0.1, 0.8)
    assert plain[0] == pytest.approx(1) and aperture(torch.tensor(1.0), 0.1) == pytest.approx(0.5) and plain[-1] < 1e-6
    assert (rings <= plain + 1e-6).all() and rings[0] == pytest.approx(0.2)


# ------------------------------------------------------------------------------------------ patterns


def test_positions_follow_the_affine_map(small_bank):
    p = simulate(small_bank, 6, seeded(1), SceneOptions((160, 160), 5.0, strain=0.03))
    g = small_bank.g[p.entry]
    expected = p.beam[:, None] + torch.einsum("bij,bmj->bmi", p.matrix, g)
    assert torch.allclose(p.centres, expected, equal_nan=True)
    assert torch.equal(p.centres[:, 0], p.beam)
    finite = torch.isfinite(p.centres).all(2)
    for i in range(6):
        c = p.centres[i][finite[i]]
        d = torch.cdist(c, c) + 1e3 * torch.eye(len(c))
        assert d.min() > 1.85 * 5.0  # disks stay apart, strain and distortion included


def test_measuring_clean_patterns_gives_the_truth(small_bank):
    p = simulate(small_bank, 8, seeded(2), SceneOptions((200, 200), 6.0, 0.6, corruption=CLEAN, off_centre=0.05))
    which, disk = (p.visible & (p.contrast > 50)).nonzero(as_tuple=True)
    fit = DiskFitter(p.probe).fit(p.patterns, which, p.centres[which, disk])
    error = (fit.positions - p.centres[which, disk]).norm(dim=1)[fit.ok]
    assert len(error) > 30 and error.median() < 0.12
    gain = fit.intensity / p.counts[which, disk]
    scaled = gain[fit.ok] / gain[fit.ok].median()  # half of the patterns have an unknown gain
    assert torch.isfinite(scaled).all()


def test_labels(small_bank):
    p = simulate(small_bank, 12, seeded(3), SceneOptions((160, 160), 5.0))
    exists = torch.isfinite(p.centres).all(2)
    assert not (p.visible & p.ignore).any() and not (p.visible & ~exists).any()
    assert not (p.visible & (p.v == 0)).any(), "an extinct reflection is never to be found"
    assert (p.contrast[p.visible] > 4.5).all()
    inside = ((p.centres > 0) & (p.centres < 160)).all(2)
    assert inside[p.visible].all() and (p.ignore | p.visible | ~exists | (p.contrast <= 1.0)).all()
    assert p.visible.sum() > 12


def test_visible_disks_can_be_found(small_bank):
    """What is labelled visible is mostly found by correlation, too: labels mean something."""
    o = SceneOptions((160, 160), 5.0, off_centre=0.1, corruption=Corruption(log_dose=(5.5, 6.5), bad_pixels=0, stop=0))
    p = simulate(small_bank, 12, seeded(4), o)
    disks = find_disks(
        p.patterns.numpy(), p.probe, method="correlation", device="cpu", options=DiskOptions(min_relative_intensity=1e-3)
    )
    found = total = 0
    for i in range(12):
        true = p.centres[i][p.visible[i]].numpy()
        mine = disks.of(i).positions
        total += len(true)
        found += int((np.linalg.norm(true[:, None] - mine[None], axis=2).min(1) < 2.5).sum()) if len(mine) else 0
    assert found > 0.7 * total


def test_simulation_is_a_function_of_its_seed(small_bank):
    o = SceneOptions((96, 96), 4.0)
    a, b, c = (simulate(small_bank, 3, seeded(s), o) for s in (5, 5, 6))
    assert torch.equal(a.patterns.nan_to_num(), b.patterns.nan_to_num()) and np.array_equal(a.probe.image, b.probe.image)
    assert not torch.equal(a.beam, c.beam)


@pytest.mark.parametrize("split", [False, True])
def test_semiangles_of_the_split(small_bank, split):
    p = simulate(small_bank, 64, seeded(7), SceneOptions((64, 64), 4.0, held_out=split))
    # radius of the aperture as a share of the cone, from the map's scale
    scale = torch.linalg.det(p.matrix).sqrt()
    angle = 4.0 / scale * small_bank.semiangle[p.entry]
    reserved = sum(((angle > lo * 1.06) & (angle < hi * 0.94)).sum() for lo, hi in HELD_OUT_SEMIANGLES)
    possible = sum(((angle > lo * 0.94) & (angle < hi * 1.06)).sum() for lo, hi in HELD_OUT_SEMIANGLES)
    if split:
        assert possible > 5  # where a cone reaches a reserved angle, it is taken
    else:
        assert reserved == 0


# ------------------------------------------------------------------------------------------ corruption


def test_background_and_blur_keep_electrons():
    centre = torch.tensor([[32.0, 30.0], [20.0, 40.0]])
    background = diffuse_background(seeded(), Corruption(), centre, (64, 64), 5.0)
    assert (background >= 0).all() and torch.allclose(background.sum((1, 2)), torch.ones(2), atol=1e-5)
    clean = torch.zeros(2, 64, 64)
    clean[:, 32, 32] = 1
    blurred = plasmon_blur(clean, torch.tensor([0.3, 0.1]), torch.tensor([1.0, 4.0]))
    assert torch.allclose(blurred.sum((1, 2)), torch.tensor([0.3, 0.1]), rtol=1e-3)
    assert blurred[0, 32, 32] == blurred[0].max()


def test_counts_are_poisson():
    c = Corruption(log_dose=(5, 5), diffuse=(0.3, 0.3001), plasmon=(0, 0), read_noise=(1e-6, 2e-6))
    clean = torch.zeros(400, 16, 16)
    clean[:, 4:12, 4:12] = 1 / 64
    out = count(seeded(), c, clean, torch.full((400, 2), 7.5), 4.0)
    expected = 0.7 * clean * 1e5 + out.background
    z = (out.patterns - expected) / expected.sqrt()
    assert z.mean().abs() < 0.02 and z.std() == pytest.approx(1, abs=0.02)
    assert out.patterns.sum((1, 2)).mean() == pytest.approx(1e5, rel=0.01)


def test_detector():
    c = Corruption(bad_pixels=0.01, saturation=1.0, stop=1.0)
    counted = count(seeded(), Corruption(), torch.full((8, 32, 32), 1 / 1024), torch.full((8, 2), 16.0), 4.0)
    out = detect(seeded(1), c, counted)
    assert torch.isnan(out[0]).any() and torch.isfinite(out[1:]).all()
    assert not torch.equal(out[1:], counted.patterns[1:])
    untouched = detect(seeded(1), Corruption(bad_pixels=0, saturation=0, stop=0), counted)
    ratio = untouched[:, 16, 16] / counted.patterns[:, 16, 16]
    assert torch.allclose(untouched, ratio[:, None, None] * counted.patterns, rtol=1e-3, atol=1e-3)


def test_module_constants_agree():
    assert not set(bank_module.VOLTAGES) & set(HELD_OUT_VOLTAGES)
