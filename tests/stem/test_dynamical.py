"""Electron scattering: factors, Bloch waves, multislice, two beams, each checked against another."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from crystaldl.physics.crystals import Crystal
from crystaldl.stem.simulate.bloch import (
    beam_intensities,
    prepare_zone,
    structure_factors,
    two_beam_intensity,
    zone_frame,
    zone_reflections,
)
from crystaldl.stem.simulate.electrons import MAX_Z, coupling, form_factor, wavelength
from crystaldl.stem.simulate.multislice import convergent_probe, diffraction, make_slab, plane_wave_beams, propagate
from crystaldl.stem.simulate.specimens import (
    PROTOTYPES,
    held_out,
    orthogonal_cell,
    prototype_crystal,
    random_specimen,
    zone_axes,
)

torch.set_num_threads(1)
BY_NAME = {p.name: p for p in PROTOTYPES}


def crystal(prototype, a, *numbers):
    p = BY_NAME[prototype]
    cell = np.array(p.shape) * [a, a, a, 1, 1, 1]
    return Crystal([numbers[s] for s in p.species], p.positions, cell, p.space_group, prototype)


SILICON, ALUMINIUM = crystal("diamond", 5.431, 14), crystal("fcc", 4.05, 13)


# ------------------------------------------------------------------------------------------ electrons


@pytest.mark.parametrize(("voltage", "expected"), [(60, 0.048661), (100, 0.037014), (200, 0.025079), (300, 0.019687)])
def test_wavelength(voltage, expected):
    assert wavelength(voltage) == pytest.approx(expected, rel=1e-4)


def test_form_factors_are_gemmis():
    gemmi = pytest.importorskip("gemmi")
    for z in (1, 6, 14, 26, 79, 92):
        for q in (0.0, 0.3, 1.0, 2.5):
            assert form_factor(z, q) == pytest.approx(gemmi.Element(z).c4322.calculate_sf(0.25 * q * q), rel=1e-6)


def test_form_factors_obey_mott_and_bethe():
    """``f_e = (2 / a0) (Z - f_x) / (4π q)² · …`` against X-ray factors of another table."""
    from crystaldl.physics.scattering import xray_form_factor

    for z in (6, 13, 14, 31, 47, 79):
        for q in (0.3, 0.6, 1.0, 1.5):
            expected = 0.023934 * (z - xray_form_factor(z, q * q / 4)) / (q * q / 4)
            assert form_factor(z, q) == pytest.approx(float(expected), rel=0.04)


def test_form_factors_against_py4dstem():
    scattering = pytest.importorskip("py4DSTEM.process.utils").single_atom_scatter
    q = np.array([0.1, 0.4, 0.8, 1.4])
    for z in (6, 14, 29, 79):
        theirs = scattering(elements=[z], composition=[1], q_coords=q, units="A")
        theirs.get_scattering_factor([z], [1], q, "A")
        assert form_factor(z, q) == pytest.approx(np.asarray(theirs.fe, dtype=float), rel=0.05)


@pytest.mark.parametrize("bad", [0, MAX_Z + 1])
def test_unknown_element(bad):
    with pytest.raises(ValueError, match="atomic number"):
        form_factor(bad, 1.0)


def test_structure_factors_and_extinctions():
    hkl = np.array([[1, 1, 1], [2, 2, 0], [2, 0, 0], [2, 2, 2], [1, 0, 0], [0, 0, 0]])
    u = structure_factors(SILICON, hkl, 0.5, 200.0)
    assert np.abs(u[2:5]) == pytest.approx(np.zeros(3), abs=1e-12)
    # extinction distances of Si at 100 kV without thermal motion: 602 Å for 111, 757 Å for 220 (Hirsch et al., 1965)
    u100 = structure_factors(SILICON, hkl, 0.0, 100.0)
    assert 1 / (np.abs(u100[:2]) * wavelength(100.0)) == pytest.approx([602, 757], rel=0.04)
    # mean inner potential of silicon in the independent-atom model: 13.9 V
    assert u[5].real / (coupling(200.0) * np.pi) * 150.412 == pytest.approx(13.9, rel=0.03)


# ------------------------------------------------------------------------------------------ Bloch waves


def test_zone_reflections():
    hkl, g = zone_reflections(SILICON, (1, 1, 0), 1.0)
    assert (hkl @ [1, 1, 0] == 0).all() and not hkl[0].any()
    length = np.linalg.norm(hkl, axis=1) / 5.431
    assert np.linalg.norm(g, axis=1) == pytest.approx(length) and (np.diff(length) > -1e-9).all()
    frame = zone_frame(SILICON, (1, 1, 0))
    assert frame @ frame.T == pytest.approx(np.eye(3)) and np.linalg.det(frame) == pytest.approx(1)


def test_intensities_are_conserved_without_absorption():
    zone = prepare_zone(SILICON, (1, 1, 0), voltage=200, beams=60)
    tilts = torch.tensor([[0.0, 0.0], [0.02, -0.01]])
    total = beam_intensities(zone, tilts, torch.tensor([10.0, 500.0, 1200.0])).sum(2)
    assert torch.allclose(total, torch.ones(2, 3), atol=2e-4)
    lossy = beam_intensities(zone, tilts, torch.tensor([10.0, 500.0, 1200.0]), absorption=0.05).sum(2)
    assert (lossy[:, 1:] < lossy[:, :-1]).all() and (lossy < total).all()


def test_two_beams_are_the_pendelloesung():
    zone = prepare_zone(ALUMINIUM, (0, 0, 1), voltage=200, g_max=0.6)
    at = int(np.flatnonzero((zone.hkl == [2, 0, 0]).all(1))[0])
    two = type(zone)(zone.hkl[[0, at]], zone.g[[0, at]], zone.u[np.ix_([0, at], [0, at])], zone.u0, zone.voltage)
    g = two.g[1]
    k = np.sqrt(1 / wavelength(200) ** 2 + zone.u0)
    thickness = np.linspace(50, 2000, 15)
    for offset in (-0.5, -0.45, -0.52):  # at Bragg's angle, and beside it
        tilt = offset * g
        s = -(2 * tilt @ g + g @ g) / (2 * k)
        ours = beam_intensities(two, torch.tensor(tilt[None]), torch.tensor(thickness), dtype=torch.complex128)[0, :, 1]
        expected = two_beam_intensity(np.abs(two.u[1, 0]), s, thickness, 200)
        assert ours.numpy() == pytest.approx(expected, abs=2e-3)


def test_kinematic_limit():
    """At 1 nm intensities go as |V_g|² (on the Ewald sphere's scale)."""
    zone = prepare_zone(SILICON, (1, 1, 0), voltage=300, g_max=0.8, beams=200)
    intensity = beam_intensities(zone, torch.zeros(1, 2), torch.tensor([10.0]), dtype=torch.complex128)[0, 0].numpy()
    u = zone.structure_factor
    strong = (u > 1e-3 * u.max()) & (np.arange(len(u)) > 0)
    expected = two_beam_intensity(u[strong], 0.5 * wavelength(300) * (zone.g[strong] ** 2).sum(1), 10.0, 300)
    assert intensity[strong] == pytest.approx(expected, rel=0.12)
    assert np.corrcoef(np.log(intensity[strong]), 2 * np.log(u[strong]))[0, 1] > 0.99


def test_beam_choice_follows_the_tilt():
    tilt = np.array([0.6, 0.0])
    straight = prepare_zone(SILICON, (0, 0, 1), voltage=200, beams=40)
    tilted = prepare_zone(SILICON, (0, 0, 1), voltage=200, beams=40, tilt=tilt)
    assert not tilted.hkl[0].any() and tilted.g[:, 0].mean() < straight.g[:, 0].mean() - 0.2


# ------------------------------------------------------------------------------------------ multislice


def by_length(g, intensity, lengths):
    q = np.linalg.norm(g.reshape(-1, 2), axis=1)
    return np.array([intensity.reshape(-1)[np.abs(q - r) < 1e-4].sum() for r in lengths])


@pytest.mark.parametrize("thickness", [10.862, 200.947])
@pytest.mark.parametrize(("specimen", "zone"), [(SILICON, (0, 0, 1)), (SILICON, (1, 1, 0)), (ALUMINIUM, (0, 0, 1))])
def test_bloch_waves_are_multislice(specimen, zone, thickness):
    edges, numbers, positions = orthogonal_cell(specimen, zone)
    thickness = round(thickness / edges[2]) * edges[2]  # whole cells: no forbidden beams from a cut one
    slab = make_slab(edges, numbers, positions, (48, 48), voltage=200, dz=0.7)
    there = plane_wave_beams(slab, torch.zeros(1, 2), [thickness])[0, 0].numpy()
    index = np.fft.fftfreq(48, 1 / 48)
    g_there = np.stack(np.meshgrid(index / edges[0], index / edges[1], indexing="ij"), -1)
    bloch = prepare_zone(specimen, zone, voltage=200, g_max=2.0, beams=160)
    here = beam_intensities(bloch, torch.zeros(1, 2), torch.tensor([thickness]), dtype=torch.complex128)[0, 0].numpy()
    lengths = np.unique(np.linalg.norm(bloch.g, axis=1).round(6))[:7]
    a, b = by_length(bloch.g, here, lengths), by_length(g_there, there, lengths)
    assert there.sum() == pytest.approx(1, abs=0.01)
    assert a == pytest.approx(b, abs=0.02)


def test_tilted_waves_agree():
    edges, numbers, positions = orthogonal_cell(SILICON, (0, 0, 1))
    slab = make_slab(edges, numbers, positions, (48, 48), voltage=200, dz=0.7)
    tilt = np.array([0.09, 0.05])
    bloch = prepare_zone(SILICON, (0, 0, 1), voltage=200, g_max=2.0, beams=160)
    frame = zone_frame(SILICON, (0, 0, 1))
    # the zone's axes in the cell's: both are orthogonal, so the direct beam's intensity must agree for some symmetry copy
    there = plane_wave_beams(slab, torch.tensor([tilt, tilt[::-1].copy()]).float(), [217.24])[0, :, 0, 0].numpy()
    here = beam_intensities(bloch, torch.tensor((frame[:2, :2] @ tilt)[None]), torch.tensor([217.24]))[0, 0, 0]
    assert np.abs(there - float(here)).min() < 0.02


def test_convergent_probe_makes_disks_at_the_reflections():
    edges, numbers, positions = orthogonal_cell(ALUMINIUM, (0, 0, 1))
    voltage, semiangle = 120.0, 2.5e-3
    slab = make_slab(edges, numbers, positions, (240, 240), voltage=voltage, repeat=(15, 15))
    wave = propagate(slab, convergent_probe(slab, semiangle, edge=0.08)[None], [80.0])[0, 0]
    pixel = semiangle / wavelength(voltage) / 6
    scale, centre = (1.02, 0.99), (64.3, 62.8)
    pattern = diffraction(wave, slab, (128, 128), pixel, scale=scale, centre=centre).numpy()
    assert 0.9 < pattern.sum() < 1.01
    y, x = np.indices(pattern.shape)
    for g in ((0, 0), (2 / 4.05, 0), (0, -2 / 4.05)):
        at = np.array(centre) + np.array(g) / pixel * scale
        near = np.hypot(y - at[0], x - at[1]) < 9
        weight = np.minimum(pattern * near, 0.3 * (pattern * near).max())  # the outline, not the filling
        found = [(weight * y).sum() / weight.sum(), (weight * x).sum() / weight.sum()]
        assert found == pytest.approx(at, abs=0.15)


def test_slab_needs_fitting_grid():
    with pytest.raises(ValueError, match="multiples of repeat"):
        make_slab([4, 4, 4], [13], [[0, 0, 0]], (50, 50), voltage=200, repeat=(3, 3))


# ------------------------------------------------------------------------------------------ specimens


@pytest.mark.parametrize("prototype", PROTOTYPES, ids=lambda p: p.name)
def test_prototypes_have_their_space_group(prototype):
    made = prototype_crystal(prototype, np.random.default_rng(0))
    assert made.symmetry().number == prototype.space_group
    per_atom = made.volume / len(made.numbers)
    assert 4 < per_atom < 60


def test_prototypes_have_sensible_bonds():
    from crystaldl.physics.crystals import covalent_radii
    from crystaldl.physics.lattice import cell_matrix

    for prototype in PROTOTYPES:
        made = prototype_crystal(prototype, np.random.default_rng(1))
        delta = made.positions[:, None] - made.positions[None]
        shifts = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T
        d = np.linalg.norm((delta[:, :, None] + shifts) @ cell_matrix(made.cell), axis=-1)
        r = covalent_radii()[made.numbers]
        ratio = np.where(d > 0.1, d / (r[:, None] + r[None])[:, :, None], np.inf).min()
        assert 0.7 < ratio < 1.25, prototype.name


def test_zone_axes():
    axes = zone_axes()
    assert len(axes) == len(set(axes)) and (0, 0, 1) in axes and (3, 3, 2) in axes and (2, 2, 2) not in axes
    assert all(tuple(-i for i in a) not in axes for a in axes)


def test_specimens_are_functions_of_family_and_seed():
    a, b, c = random_specimen(1, 7), random_specimen(1, 7), random_specimen(2, 7)
    assert a.zone == b.zone and np.array_equal(a.crystal.positions, b.crystal.positions)
    assert np.array_equal(a.crystal.cell, c.crystal.cell)
    assert 0.05 < np.mean([held_out(i) for i in range(4000)]) < 0.2


def test_orthogonal_cell():
    edges, numbers, positions = orthogonal_cell(SILICON, (1, 1, 0))
    a = 5.431
    assert sorted(edges) == pytest.approx(sorted([a, a / 2**0.5 * 2, a * 2**0.5])) or len(numbers) % 4 == 0
    assert len(numbers) / np.prod(edges) == pytest.approx(8 / a**3)
    delta = (positions[:, None] - positions[None] + 0.5) % 1 - 0.5
    d = np.linalg.norm(delta * edges, axis=-1)
    assert d[d > 0.1].min() == pytest.approx(a * 3**0.5 / 4, rel=1e-6)
    with pytest.raises(ValueError, match="no orthogonal cell"):
        orthogonal_cell(Crystal([6], [[0, 0, 0]], [4, 5, 6, 80, 95, 103], 1), (1, 1, 1))
