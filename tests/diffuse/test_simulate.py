"""The simulator against the physics it states, and the stream's promises."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import pytest
import torch

from crystaldl.diffuse import disorder
from crystaldl.diffuse.corruption import Corruption, gaussian_blur
from crystaldl.diffuse.masks import read_masks
from crystaldl.diffuse.molecules import axis_rotation, random_pair
from crystaldl.diffuse.recipe.stream import SYMMETRIES, DiffuseStream, is_held_out, orbits, random_order
from crystaldl.diffuse.simulate import (
    PlaneSpec,
    difference_form_factor,
    form_factor,
    plane_form_factor,
    plane_sro,
    simulate_planes,
)
from crystaldl.errors import DataError, FileFormatError
from crystaldl.physics.scattering import scattering_factor

HEXAGONAL = 2 * np.pi / 6.0 * np.array([[1.0, 3**-0.5], [0.0, 2 * 3**-0.5]])          # a = 6 Å, 120° in direct space
SQUARE = 2 * np.pi / 6.0 * np.eye(2)
MOLECULE = (np.array([6, 8, 7, 1]), np.array([[0.0, 0, 0], [1.2, 0.2, 0.1], [-0.7, 1.1, 0.3], [0.3, -0.9, -0.5]]))


def plane(pair=None, reciprocal=SQUARE, pixels=64, reach=4.0, beta=(0.1, 0.12), **more):
    """A plane of a turned molecule with mean-field order."""
    pair = pair or (*MOLECULE, MOLECULE[0], MOLECULE[1] @ axis_rotation((0.3, 0.2, 1), 70).T)
    vectors, alpha = disorder.prune(*disorder.krivoglaz_clapp_moss([[1, 0], [0, 1]], beta, cutoff=6, points=32), 1e-6)
    return PlaneSpec(pair, reciprocal, np.eye(2) * reach / (pixels / 2), vectors, alpha, **more)


def q_of(spec, size):
    centre = ((size[0] - 1) / 2, (size[1] - 1) / 2) if spec.centre is None else spec.centre
    x = np.stack(np.meshgrid(np.arange(size[0]) - centre[0], np.arange(size[1]) - centre[1], indexing="ij"), -1)
    flat = x @ spec.steps
    return x, torch.as_tensor(np.concatenate([flat, np.full((*size, 1), spec.offset)], -1))


# ---------------------------------------------------------------- form factors


def test_forward_scattering():
    """F(0) is the number of electrons, and D at the origin is m_A m_B ΔZ²."""
    q = torch.zeros(1, 3, dtype=torch.float64)
    f = form_factor(*MOLECULE, 2.0, q)
    assert f.real.item() == pytest.approx(22, rel=5e-3) and f.imag.item() == pytest.approx(0)
    pair = ([35], [[0, 0, 0]], [17], [[0, 0, 0]])
    assert difference_form_factor(pair, q).item() == pytest.approx(18**2, rel=1e-2)
    spec = plane(pair, concentration=0.3, centre=(32, 32))
    d = plane_form_factor([spec], (65, 65), dtype=torch.float64)
    assert d[0, 32, 32].item() == pytest.approx(0.21 * 18**2, rel=1e-2)


def test_form_factor_is_the_sum_over_atoms():
    q = np.random.default_rng(0).normal(0, 3, (5, 4, 3))
    for radiation in ("xray", "electron", "neutron"):
        s2 = (q**2).sum(-1) / (4 * np.pi) ** 2
        atoms = zip(*MOLECULE, strict=True)
        expected = sum(scattering_factor(int(z), s2, radiation) * np.exp(-1.3 * s2 + 1j * (q @ r)) for z, r in atoms)
        found = form_factor(*MOLECULE, 1.3, torch.as_tensor(q), radiation).numpy()
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("radiation", ["xray", "electron", "neutron"])
def test_separable_phases_equal_the_sum(radiation):
    rng = np.random.default_rng(1)
    specs = []
    for k in range(5):
        turned = np.array([[0.9, 0.2], [-0.3, 1.1]]) * 0.11
        spec = plane(random_pair(rng), radiation=radiation, offset=0.4 * k, b_iso=0.7 * k, centre=(20.0 + k, 33.3))
        specs.append(dataclasses.replace(spec, steps=turned))
    found = plane_form_factor(specs, (40, 56), dtype=torch.float64)
    for spec, d in zip(specs, found, strict=True):
        expected = 0.25 * difference_form_factor(spec.pair, q_of(spec, (40, 56))[1], spec.b_iso, radiation)
        assert d.numpy() == pytest.approx(expected.numpy(), rel=1e-8, abs=1e-10 * float(expected.max()))
    single = plane_form_factor(specs, (40, 56))
    assert single.numpy() == pytest.approx(found.numpy(), abs=2e-5 * float(found.max()))


def test_patterson_ends_at_the_support():
    """D is band-limited: its transform is nothing beyond the longest interatomic vector and the width of the atoms."""
    spec = plane(pixels=128, reach=14.0, b_iso=1.0, offset=0.5)
    d = plane_form_factor([spec], (128, 128), dtype=torch.float64)[0]
    window = torch.hann_window(128, periodic=False, dtype=torch.float64)
    patterson = torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(d * window[:, None] * window))).abs()
    step = 2 * np.pi / (128 * spec.steps[0, 0])
    i = torch.arange(128) - 64
    r = step * (i[:, None] ** 2 + i**2).sqrt()
    assert patterson[r > spec.support + 2.0].max() < 2e-3 * patterson.max()
    assert patterson[(r > spec.support - 0.4) & (r < spec.support + 0.4)].max() > 0.02 * patterson.max()


def test_support_is_in_the_plane_and_ignores_common_atoms():
    pair = ([6, 8, 9], [[0, 0, 0], [3, 4, 7], [9, 9, 9]], [6, 17, 9], [[0, 0, 0], [0, 0, 1], [9, 9, 9]])
    assert plane(pair).support == pytest.approx(5.0)
    assert plane(([6], [[0, 0, 0]], [7], [[0, 0, 0]])).support == 0.0


def test_symmetric_turns():
    """A pair turned by a symmetry of the square lattice turns its plane of intensities."""
    pair = random_pair(np.random.default_rng(4))
    turned = pair.transformed(axis_rotation((0, 0, 1), 90))
    specs = [plane(p, beta=(0.1, 0.1)) for p in (pair, turned)]
    first, second = simulate_planes(specs, size=64, dtype=torch.float64).intensity
    assert torch.rot90(first, 1, (0, 1)).numpy() == pytest.approx(second.numpy(), rel=1e-8, abs=1e-9)


# ---------------------------------------------------------------- short-range order and geometry


def test_clean_plane():
    specs = [plane(), plane(reciprocal=HEXAGONAL, beta=(-0.1, 0.15), b_iso=2.0)]
    found = simulate_planes(specs, size=(64, 60), dtype=torch.float64)
    assert (found.intensity - found.form_factor * found.sro).abs().max() == 0
    assert found.mask.all() and (found.sro > 0).all() and not found.background.any() and not found.bragg.any()
    assert (found.given_period == found.period).all()
    for k, spec in enumerate(specs):
        x, _ = q_of(spec, (64, 60))
        hk = x @ np.linalg.inv(spec.period)
        assert found.sro[k].numpy() == pytest.approx(disorder.structure_factor(spec.vectors, spec.alpha, hk))
        n = int(found.count[k])
        assert (found.vectors[k, :n].numpy() == spec.vectors).all() and found.alpha[k, :n].numpy() == pytest.approx(spec.alpha)
        assert not found.alpha[k, n:].any()


def test_mean_over_a_zone_is_one():
    """A period of 16 × 16 pixels: S repeats exactly and averages to 1; so does the mean over whole zones only."""
    spec = dataclasses.replace(plane(), steps=SQUARE / 16)
    sro, *_ = plane_sro([spec], (48, 48), dtype=torch.float64)
    assert sro[0, :16, :16].mean().item() == pytest.approx(1.0) and sro.mean().item() == pytest.approx(1.0)
    assert sro[0, 16:].numpy() == pytest.approx(sro[0, :-16].numpy())
    assert simulate_planes([spec], size=48).period[0].numpy() == pytest.approx(16 * np.eye(2))


def test_geometry():
    spec = plane(reciprocal=HEXAGONAL, centre=(30.0, 33.5))
    found = simulate_planes([spec], size=64, dtype=torch.float64)
    assert (found.period[0].numpy() @ spec.steps) == pytest.approx(HEXAGONAL)
    m = found.metric[0].numpy()
    step = found.period[0].numpy()
    lengths = np.sqrt(np.einsum("kx,xy,ky->k", step, m, step))
    assert lengths == pytest.approx(np.linalg.norm(HEXAGONAL, axis=1))
    assert step[0] @ m @ step[1] / lengths.prod() == pytest.approx(0.5)         # 60° between a* and b*
    assert found.centre[0].tolist() == [30.0, 33.5]


def test_batching_changes_nothing():
    specs = [plane(), plane(reciprocal=HEXAGONAL, beta=(0.16, 0.16)), plane(random_pair(np.random.default_rng(2)))]
    together = simulate_planes(specs, size=64, dtype=torch.float64)
    for k, spec in enumerate(specs):
        alone = simulate_planes([spec], size=64, dtype=torch.float64)
        assert alone.intensity[0].numpy() == pytest.approx(together.intensity[k].numpy(), rel=1e-10)


def test_inadmissible_order_is_refused():
    with pytest.raises(DataError, match="alpha makes S as low as -0.59"):
        simulate_planes([dataclasses.replace(plane(), vectors=[[1, 0]], alpha=[0.8])], size=64)


# ---------------------------------------------------------------- what experiments do


def test_counting_noise():
    found = simulate_planes([plane(), plane(beta=(-0.1, 0.1))], Corruption(counts=1000), size=128, seed=3)
    mean = found.form_factor * found.sro
    assert mean.amax((1, 2)).numpy() == pytest.approx([1000, 1000], rel=1e-4)
    assert (found.intensity == found.intensity.round()).all()
    z = ((found.intensity - mean) / mean.clamp_min(1e-3).sqrt())[mean > 5]
    assert z.mean().item() == pytest.approx(0, abs=0.03) and z.var().item() == pytest.approx(1, abs=0.05)
    assert found.sigma.numpy() == pytest.approx(found.intensity.clamp_min(1).sqrt().numpy())


def test_seeds_and_devices():
    c = Corruption(counts=(10, 100), masks="procedural", bragg=1.0, background=0.05, lattice_error=0.01)
    a, b, other = (simulate_planes([plane()] * 3, c, size=48, seed=s) for s in (1, 1, 2))
    for name, value in a.as_dict().items():
        assert torch.equal(value, b.as_dict()[name])
    assert not torch.equal(a.intensity, other.intensity) and not torch.equal(a.intensity[0], a.intensity[1])


def test_procedural_masks():
    found = simulate_planes([plane()] * 64, Corruption(masks="procedural", missing=(0.1, 0.5)), size=96, seed=1)
    share = (~found.mask).double().mean((1, 2))
    assert share.min() > 0.03 and share.max() < 0.65 and share.std() > 0.08
    assert not found.intensity[~found.mask].any(), "nothing leaks out of hidden pixels"
    assert len({m.numpy().tobytes() for m in found.mask}) == 64
    fixed = simulate_planes([plane()] * 16, Corruption(masks="procedural", missing=0.4), size=96, seed=1)
    assert (~fixed.mask).double().mean((1, 2)).median().item() == pytest.approx(0.4, abs=0.03)


def test_mask_bank():
    bank = np.zeros((2, 64, 64), bool)
    bank[0, :32], bank[1, :, :32] = True, True
    found = simulate_planes([plane()] * 12, Corruption(masks=bank), size=64, seed=0)
    kinds = {m.numpy().tobytes() for m in found.mask}
    assert kinds == {b.tobytes() for b in bank}
    with pytest.raises(DataError, match="masks has shape"):
        simulate_planes([plane()], Corruption(masks=bank), size=65)


def test_holes_are_on_the_lattice():
    spec = dataclasses.replace(plane(), steps=SQUARE / 16, centre=(32, 32))
    found = simulate_planes([spec], Corruption(hole_radius=2.5), size=65)
    i = np.arange(65) - 32
    near = np.hypot(*np.meshgrid((i + 8) % 16 - 8, (i + 8) % 16 - 8, indexing="ij")) < 2.5
    assert (found.mask[0].numpy() == ~near).all()
    wide = simulate_planes([spec], Corruption(hole_radius=50.0), size=65)
    assert 0.3 < (~wide.mask).double().mean() < 0.45, "holes never grow together"


def test_bragg_peaks():
    spec = dataclasses.replace(plane(), steps=SQUARE / 16, centre=(32, 32))
    found = simulate_planes([spec] * 8, Corruption(bragg=5.0, bragg_width=1.0), size=65, seed=4)
    assert (found.intensity - found.form_factor * found.sro - found.bragg).abs().max() < 1e-3 * found.bragg.max()
    on = found.bragg[:, ::16, ::16]
    between = found.bragg[:, 8::16, 8::16]
    assert between.max() < 1e-6 * on.max() and (on.flatten(1) > 0).double().mean() > 0.6
    assert found.bragg.numpy() == pytest.approx(found.bragg.flip((1, 2)).numpy(), rel=1e-3, abs=1e-3), "Friedel"
    profile = found.bragg[:, 32, 33] / found.bragg[:, 32, 32]
    assert profile.numpy() == pytest.approx(np.full(8, np.exp(-0.5)), rel=1e-3)
    assert (found.bragg <= 100.01 * found.peak[:, None, None]).all()


@pytest.mark.parametrize("kind", ["flat", "smooth", "ring"])
def test_backgrounds(kind):
    found = simulate_planes([plane()] * 4, Corruption(background=0.03, background_kind=kind), size=64, seed=2)
    assert (found.background >= 0).all()
    level = found.background.amax((1, 2)) if kind == "ring" else found.background.mean((1, 2))
    assert (level / found.peak).numpy() == pytest.approx(np.full(4, 0.03), rel=1e-3)
    assert (found.intensity - found.form_factor * found.sro - found.background).abs().max() < 1e-5 * found.peak.max()
    if kind == "ring":              # constant on circles about the centre
        assert found.background.numpy() == pytest.approx(torch.rot90(found.background, 1, (1, 2)).numpy(), rel=1e-3, abs=1e-5)


def test_blur_keeps_the_sum():
    spec = plane(reach=12.0, b_iso=4.0)
    sharp, soft = (simulate_planes([spec], c, size=64).intensity for c in (Corruption(), Corruption(blur=1.5)))
    assert soft.sum().item() == pytest.approx(sharp.sum().item(), rel=1e-3)
    assert soft.max() < sharp.max()
    image = torch.zeros(1, 33, 33)
    image[0, 16, 16] = 1
    x = torch.arange(33.0) - 16
    shape = torch.exp(-0.5 * (x / 1.5) ** 2)
    expected = shape[:, None] * shape / shape.sum() ** 2
    assert gaussian_blur(image, torch.tensor([1.5]))[0].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_no_order_at_all():
    random = dataclasses.replace(plane(), alpha=[], vectors=[])
    assert simulate_planes([random, plane()], size=32).sro[0].unique().tolist() == [1.0]


def test_lattice_error():
    specs = [plane(reciprocal=HEXAGONAL)] * 32
    found = simulate_planes(specs, Corruption(lattice_error=0.01), size=32, dtype=torch.float64)
    strain = torch.linalg.solve(found.period, found.given_period) - torch.eye(2, dtype=torch.float64)
    assert strain.numpy() == pytest.approx(strain.transpose(1, 2).numpy(), abs=1e-12)
    largest = torch.linalg.eigvalsh((strain + strain.transpose(1, 2)) / 2).abs().amax(1)
    assert largest.numpy() == pytest.approx(np.full(32, 0.01))


def test_size_effect():
    """Q·v with v odd and periodic, zero at Q = 0, as strong as asked, and never negative."""
    atoms = ([35], [[0, 0, 0]], [17], [[0, 0, 0]])
    spec = dataclasses.replace(plane(atoms), steps=SQUARE / 16, centre=(32, 32))
    found = simulate_planes([spec] * 3, Corruption(size_effect=0.3), size=65, dtype=torch.float64)
    change = found.intensity / (found.form_factor * found.sro) - 1
    assert change.abs().amax((1, 2)).numpy() == pytest.approx(np.full(3, 0.3))
    assert change[:, 32, 32].abs().max() < 1e-12
    assert change.numpy() == pytest.approx(change.flip((1, 2)).numpy(), abs=1e-10)          # centrosymmetric plane
    # with v odd and periodic, (G + δ)·v(δ) - (G - δ)·v(δ) = 2 δ·v(δ) about the node G = (1, 0)
    pair = change[:, 44:53, 28:37] + change[:, 44:53, 28:37].flip((1, 2))
    assert pair.numpy() == pytest.approx(2 * change[:, 28:37, 28:37].numpy(), abs=1e-9)
    assert (found.intensity >= 0).all()


def test_shares():
    c = Corruption(counts=50, hole_radius=2, share={"counts": 0.5, "hole_radius": 0.0})
    found = simulate_planes([plane()] * 60, c, size=32)
    noisy = (found.intensity == found.intensity.round()).flatten(1).all(1)
    assert 15 < noisy.sum() < 45 and found.mask.all()


# ---------------------------------------------------------------- the stream


@pytest.fixture(scope="module")
def stream():
    return DiffuseStream(seed=5, size=64, monte_carlo=10, orders=30, pairs=200)


def test_stream_is_a_function_of_seed_and_step(stream):
    first = stream.batch(7, 4)
    stream.batch(8, 4)
    again = DiffuseStream(seed=5, size=64, monte_carlo=10, orders=30, pairs=200).batch(7, 4)
    for name, value in first.as_dict().items():
        assert torch.equal(value, again.as_dict()[name]), name
    assert not torch.equal(first.intensity, stream.batch(8, 4).intensity)


def test_stream_truth(stream):
    specs = [s for step in range(8) for s in stream.specs(step, 24)]
    found = simulate_planes(specs[:48], size=64)
    assert found.sro.min() >= -1e-4
    for spec in specs:
        cell = disorder.cell_structure_factor(spec.vectors, spec.alpha)
        assert cell.mean() == pytest.approx(1.0) and cell.min() > -1e-3
        lengths = np.linalg.norm(2 * np.pi * np.linalg.inv(spec.reciprocal), axis=0)
        assert (lengths > 3.49).all() and (lengths < 12.01).all()
        assert np.linalg.norm(spec.period, axis=1).min() > 7
        assert 0 <= spec.b_iso <= 5 and len(spec.atoms[0]) > 0
    unit = np.array([s.reciprocal / np.linalg.norm(s.reciprocal, axis=1, keepdims=True) for s in specs])
    angles = np.degrees(np.arccos(np.clip((unit[:, 0] * unit[:, 1]).sum(1), -1, 1)))
    right, sixty = np.isclose(angles, 90), np.isclose(angles, 60)
    assert right.mean() > 0.3 and sixty.mean() > 0.1 and (~right & ~sixty).any()
    assert {s.radiation for s in specs} == {"xray", "electron", "neutron"}


def test_held_out_molecules_stay_out(stream):
    train = {s.family for step in range(20) for s in stream.specs(step, 16)}
    other = DiffuseStream(seed=5, size=64, monte_carlo=10, orders=30, pairs=60, evaluation=True)
    evaluation = {s.family for step in range(6) for s in other.specs(step, 16)}
    assert not any(is_held_out(f) for f in train) and all(is_held_out(f) for f in evaluation)

    def names(families):
        return {n for f in families for n in f.split(":")[1].split("/") if is_held_out(n)}

    assert names(evaluation) and not names(train)
    named = next(iter(train)).split(":")[1].split("/")[0]
    kept = DiffuseStream(seed=5, size=64, monte_carlo=10, orders=30, pairs=200, held_out=(named,))
    assert all(named not in s.family.split(":")[1].split("/") for step in range(20) for s in kept.specs(step, 16))


@pytest.mark.parametrize("symmetry", list(SYMMETRIES))
@pytest.mark.parametrize("kind", ["kcm", "monte_carlo", "oscillator", "sharp"])
def test_orders_are_admissible(kind, symmetry):
    rng = np.random.default_rng(3)
    for _ in range(4):
        vectors, alpha = random_order(kind, symmetry, rng)
        assert disorder.half_space(vectors).all() and len(np.unique(vectors, axis=0)) == len(vectors)
        assert disorder.minimum(vectors, alpha) >= -1e-6 and 0.02 < np.abs(alpha).max() <= 1


def test_orbits():
    vectors = disorder.lattice_vectors(2.3)
    sizes = {s: np.bincount(orbits(vectors, s)).tolist() for s in SYMMETRIES}
    assert sorted(sizes["square"]) == [2, 2, 2, 4] and set(sizes["oblique"]) == {1}
    hexagonal = disorder.lattice_vectors(1.01, [[1, -0.5], [-0.5, 1]])
    assert (orbits(hexagonal, "hexagonal") == 0).all() and len(hexagonal) == 3


@pytest.mark.slow
def test_throughput():
    """Twenty planes a second of 256 × 256 on one core, the bank apart."""
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        stream = DiffuseStream(seed=0, size=256, monte_carlo=5, orders=30, pairs=100)
        stream.batch(0, 4)
        start = time.process_time()
        for step in range(1, 6):
            stream.batch(step, 8)
        assert 40 / (time.process_time() - start) > 20
    finally:
        torch.set_num_threads(torch_threads)


# ---------------------------------------------------------------- files and bad input


def test_real_masks(shared_data):
    path = shared_data / "diffuse" / "dsfu_net" / "masks_1-4.npz"
    if not path.is_file():
        pytest.skip(f"no file {path}")
    masks = read_masks(path, count=8)
    missing = 1 - masks.mean((1, 2))
    assert masks.shape == (8, 256, 256) and (missing > 0.01).all() and (missing < 0.6).all()
    found = simulate_planes([plane(pixels=256)], Corruption(masks=masks), size=256)
    assert any((found.mask[0].numpy() == m).all() for m in masks)


def test_masks_round_trip(tmp_path):
    volume = np.random.default_rng(0).random((16, 16, 16)) < 0.7
    np.savez(tmp_path / "m.npz", shape=np.array(volume.shape), mask1=np.packbits(volume))
    masks = read_masks(tmp_path / "m.npz", count=3)
    slices = {s.tobytes() for a in range(3) for s in np.moveaxis(volume, a, 0)}
    assert all(m.tobytes() in slices for m in masks)
    np.savez(tmp_path / "bad.npz", other=np.ones(3))
    with pytest.raises(FileFormatError, match="bad.npz holds other"):
        read_masks(tmp_path / "bad.npz")
    with pytest.raises(FileNotFoundError, match="expected an .npz"):
        read_masks(tmp_path / "none.npz")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: simulate_planes([]), "specs is list of 0"),
        (lambda: simulate_planes([1]), "expected at least one PlaneSpec"),
        (lambda: simulate_planes([plane()], size=4), "size is"),
        (lambda: dataclasses.replace(plane(), steps=np.zeros((2, 2))), "steps is"),
        (lambda: dataclasses.replace(plane(), reciprocal=np.ones((2, 2))), "reciprocal is"),
        (lambda: dataclasses.replace(plane(), alpha=[0.1]), "vectors hold"),
        (lambda: dataclasses.replace(plane(), vectors=[[0, 0]], alpha=[0.1]), "one of every"),
        (lambda: plane(([120], [[0, 0, 0]], [6], [[0, 0, 0]])), "pair has atomic numbers"),
        (lambda: plane(concentration=1.0), "concentration is 1.0"),
        (lambda: Corruption(counts=0), "counts is 0"),
        (lambda: Corruption(blur=-1), "blur is -1"),
        (lambda: Corruption(blur=(2, 1)), "blur is"),
        (lambda: Corruption(background_kind="square"), "background_kind is 'square'"),
        (lambda: Corruption(masks="real"), "masks is 'real'"),
        (lambda: Corruption(share={"noise": 1}), "share names noise"),
        (lambda: DiffuseStream(pairs=0), "monte_carlo, orders, pairs are"),
        (lambda: DiffuseStream(radiation=(1, 1, 0)), "radiation is"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(DataError, match=message):
        call()
