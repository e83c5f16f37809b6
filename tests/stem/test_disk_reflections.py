"""|V_g| from all disks of a pattern together: features, stream, training, and ranks against known structure factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from drawn_disks import disk_image

from crystaldl.models.registry import card, default
from crystaldl.stem.detect import FACTORS, load_network
from crystaldl.stem.disks import DiskOptions, find_disks
from crystaldl.stem.network import FactorNet
from crystaldl.stem.probe import Probe
from crystaldl.stem.recipe.benchmark import benchmark
from crystaldl.stem.recipe.factor_stream import clean_disks, generator, parts_of_like_size, seen
from crystaldl.stem.recipe.factor_training import SMOKE_ARGUMENTS, FactorTask, asked, factor_loss, rank_correlation
from crystaldl.stem.recipe.training import task_for
from crystaldl.stem.reflections import (
    DIRECT_BEAM,
    ORDERS,
    PAIRS,
    TOKENS,
    Reflections,
    differences,
    direct_beam,
    estimated_factors,
    features,
    rocking_moments,
    zernike,
)

torch.set_num_threads(1)
CPU = torch.device("cpu")
PROBE = Probe.synthetic(5.0, (256, 256))


def lattice(n=3, spacing=3.0, seed=0):
    """Disks of an oblique lattice, the direct beam first: indices (M, 2) and Reflections of one pattern."""
    g = torch.Generator().manual_seed(seed)
    hk = torch.cartesian_prod(torch.arange(-n, n + 1), torch.arange(-n, n + 1))
    hk = hk[(hk**2).sum(1).argsort(stable=True)]
    vectors = hk.float() @ torch.tensor([[spacing, 0.4], [-0.7, 1.2 * spacing]])
    count = len(hk)
    moments = torch.randn(1, count, len(ORDERS), generator=g, dtype=torch.complex64)
    intensity, significance = (torch.rand(1, count, generator=g) * 50 + 1 for _ in range(2))
    intensity[:, 0] = 100
    return hk, Reflections(vectors[None], intensity, significance, moments, torch.ones(1, count, dtype=torch.bool))


# ------------------------------------------------------------------------------------------ features


def test_zernike_polynomials_are_orthonormal_over_the_disk():
    y, x = torch.meshgrid(*(torch.linspace(-1, 1, 401, dtype=torch.float64),) * 2, indexing="ij")
    inside = torch.hypot(y, x) <= 1
    functions = torch.cat([torch.ones(int(inside.sum()), 1), zernike(y[inside], x[inside])], 1).to(torch.complex128)
    products = functions.conj().T @ functions / len(functions)
    assert torch.allclose(products, torch.eye(9, dtype=products.dtype), atol=0.02)


def test_moments_are_those_of_the_rocking_curve_along_g():
    shape, radius, centre = (64, 64), 9.0, (31.3, 30.6)
    image = 3 + 50 * disk_image(centre, radius, 0.4, shape, lambda v, u: 1 + 0.4 * v - 0.2 * u + 0.3 * (2 * (v**2 + u**2) - 1))
    image[5, 5] = np.nan
    total = torch.tensor([50 * np.pi * radius**2])
    at = torch.tensor([centre])
    found = rocking_moments(torch.tensor(image)[None].float(), torch.tensor([0]), at.float(), (radius, 0.4), total.float())[0]
    # ⟨v²⟩ = ⟨u²⟩ = 1/4 over the unit disk, and both functions of order 1 are √2 r exp(-iφ)
    assert found[0].numpy() == pytest.approx((0.4 - (-0.2) * 1j) * 2**0.5 / 4, abs=0.01)
    assert found[1].real == pytest.approx(0.3 / 3**0.5, abs=0.01)
    assert found[2:].abs().max() < 0.02


def test_differences_are_those_of_the_indices():
    hk, r = lattice()
    valid = r.valid.clone()
    valid[0, 5] = False
    found = differences(r.g + 0.1 * torch.rand(r.g.shape, generator=torch.Generator().manual_seed(1)), valid)[0]
    place = {tuple(row): i for i, row in enumerate(hk.tolist()) if i != 5}
    expected = [[-1 if 5 in (i, j) else place.get(tuple((a - b).tolist()), -1) for j, b in enumerate(hk)] for i, a in enumerate(hk)]
    assert found.tolist() == expected


def test_features_do_not_depend_on_orientation_unit_or_order():
    _, r = lattice()
    tokens, pairs = features(r)
    assert tokens.shape == (1, 49, TOKENS) and pairs.shape == (1, 49, 49, PAIRS)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    angle = np.arctan2(0.8, 0.6)  # of axis 0 towards axis 1
    phase = torch.polar(torch.ones(len(ORDERS)), -torch.tensor([m * angle for m in (o[1] for o in ORDERS)]).float())
    turned = Reflections(r.g @ turn.T, 7 * r.intensity, r.significance, r.moments * phase, r.valid)
    for a, b in zip((tokens, pairs), features(turned), strict=True):
        assert torch.allclose(a[:, 1:], b[:, 1:], atol=2e-3)
    order = torch.cat([torch.tensor([0]), 1 + torch.randperm(48, generator=torch.Generator().manual_seed(2))])
    mixed = Reflections(*(a[:, order] for a in (r.g, r.intensity, r.significance, r.moments, r.valid)))
    again, between = features(mixed)
    assert torch.allclose(tokens[:, order], again, atol=1e-4) and torch.allclose(pairs[:, order][:, :, order], between, atol=1e-4)
    torch.manual_seed(0)
    network = FactorNet(**SMOKE_ARGUMENTS)
    assert torch.allclose(network(tokens, pairs, r.valid)[:, order], network(again, between, r.valid), atol=1e-4)


def test_the_direct_beam_need_not_be_the_brightest_disk():
    _, r = lattice()
    positions, intensity = 12 * r.g + 128, torch.exp(-0.1 * r.g.norm(dim=2))
    intensity[0, 3] = 1.5
    beams, probability = direct_beam(positions, intensity, r.valid, PROBE)
    assert int(intensity.argmax()) == 3 and beams[0, 0] == 0
    assert probability.sum() == pytest.approx(1) and (probability.diff() <= 0).all()


def test_patterns_stand_for_themselves():
    hk, r = lattice()
    rng, network = np.random.default_rng(0), FactorNet(**SMOKE_ARGUMENTS).eval()
    n, few = len(hk), 4
    patterns = torch.tensor(rng.poisson(20, (3, 256, 256))).float()
    positions = (5 * r.g[0] + 128).repeat(2, 1)
    positions = torch.cat([positions[: n + few], positions[n : 2 * n - 9]])
    pattern = torch.tensor([0] * n + [1] * few + [2] * (n - 9))
    intensity, significance = torch.tensor(rng.uniform(10, 1e4, (2, len(pattern)))).float()
    intensity[[0, n, n + few]] = 1e5
    proposed = torch.tensor(rng.uniform(0.1, 1, len(pattern))).float()
    value = estimated_factors(network, patterns, pattern, positions, intensity, significance, proposed, PROBE)
    assert torch.isnan(value[pattern == 1]).all() and torch.isfinite(value[pattern != 1]).all()
    for p in (0, 2):
        mine = pattern == p
        assert value[mine].sort(descending=True)[0][:2].tolist() == pytest.approx([DIRECT_BEAM, 1.0])
        assert value[mine].argmax() == 0
        measured = (a[mine] for a in (positions, intensity, significance, proposed))
        alone = estimated_factors(network, patterns[p : p + 1], 0 * pattern[mine], *measured, PROBE)
        assert torch.allclose(alone, value[mine], atol=1e-4)


# ------------------------------------------------------------------------------------------ recipe


def test_seen_disks_are_those_of_the_bank(small_bank):
    clean = clean_disks(small_bank, 64, generator(3))
    assert (clean.thickness <= 45).all() and (clean.g[:, 0].norm(dim=1) < 1e-6).all()
    assert (clean.intensity >= 0).all() and (clean.intensity.sum(1) < 1.05).all()
    drawn = seen(clean, generator(4))
    r = drawn.reflections
    assert (r.valid.sum(1) >= 8).all() and r.valid[:, 0].all() and (r.g[:, 0] == 0).all()
    assert all(torch.isfinite(torch.view_as_real(a) if a.is_complex() else a).all() for a in (r.intensity, r.moments))
    after = torch.where(r.valid, r.intensity, 0)[:, 1:]
    assert (after.diff(dim=1) <= 0).all(), "strongest first"
    count = r.valid.sum(1)
    parts = parts_of_like_size(count, 4, generator(5))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(count)))
    for rows in parts:
        mine = drawn.part(rows)
        assert mine.v.shape == (len(rows), int(count[rows].max())) and (mine.reflections.valid.sum(1) == count[rows]).all()


def test_rank_correlation_is_spearmans():
    from scipy.stats import rankdata, spearmanr

    rng = np.random.default_rng(0)
    v = torch.tensor(rng.random((3, 12))).float()
    v[0, 7] = 0
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[1, 9:] = False
    rows = asked(v, valid)
    value = torch.tensor(rng.random((3, 12))).float()
    for i in range(3):
        mine = value[i][rows[i]], v[i][rows[i]]
        ranks, every = torch.tensor(rankdata(mine[0])).float(), torch.ones(1, int(rows[i].sum()), dtype=torch.bool)
        assert float(rank_correlation(ranks[None], mine[1][None], every)) == pytest.approx(spearmanr(*mine).statistic, abs=1e-4)
    best, worst = factor_loss(v.clamp_min(0.02).log(), v, valid)[0], factor_loss(-v, v, valid)[0]
    assert best < 0.1 and worst > 1.5


def test_factor_training_learns_and_resumes_exactly(tmp_path, small_bank):
    pytest.importorskip("lightning")
    from crystaldl.training import loop
    from crystaldl.training.checkpoint import read_checkpoint

    def task():
        return FactorTask([small_bank], small_bank, 0, 96, SMOKE_ARGUMENTS)

    def run(out, **options):
        base = {"device": "cpu", "threads": 1, "warmup_steps": 5, "progress": False, "evaluate_every_minutes": 1e3}
        return loop.train(task(), loop.TrainOptions(out=out, **(base | options)))

    same = task().batch(5, 0, 1, CPU), task().batch(5, 0, 1, CPU), task().batch(6, 0, 1, CPU)
    assert all(torch.equal(same[0][k], same[1][k]) for k in same[0])
    assert same[0]["v"].shape != same[2]["v"].shape or not torch.equal(same[0]["v"], same[2]["v"])
    result = run(tmp_path / "long", max_steps=150, ema_decay=0.9)
    assert result.figures["rank"] > 0.5 and set(result.figures) == {"rank_7", "rank_15", "rank_30", "rank"}
    whole = run(tmp_path / "whole", max_steps=4)
    half = run(tmp_path / "parts", max_steps=4, session_steps=2)
    rest = run(tmp_path / "parts", max_steps=4, resume=half.checkpoint, prefetch=1)
    wanted, found = (read_checkpoint(r.checkpoint)[0] for r in (whole, rest))
    assert all(torch.equal(wanted["model"][k], found["model"][k]) for k in wanted["model"])
    assert task_for("factornet", "smoke", tmp_path).name == "stem-factornet"


# ------------------------------------------------------------------------------------------ the shipped network


def test_a_factor_network_ships():
    entry = card(default(FACTORS))
    assert entry.architecture == "FactorNet" and entry.bytes < 1_000_000
    assert sum(p.numel() for p in load_network(entry.name, "cpu")[0].parameters()) == entry.parameters
    assert entry.figures and all(entry.name in f["command"] and np.isfinite(f["value"]) for f in entry.figures)


def test_the_factor_network_has_a_say_where_disks_were_measured():
    k = next(iter(benchmark(1, 3, draws=1)))
    two = k.patterns[:2]
    ranked, own = (find_disks(two, k.probe, device="cpu", factors=f) for f in (None, False))
    assert np.array_equal(np.sort(ranked.positions, 0), np.sort(own.positions, 0))
    assert not np.allclose(np.sort(ranked.intensity), np.sort(own.intensity))
    for i in range(2):
        values = np.sort(ranked.of(i).intensity)
        assert values[-2:] == pytest.approx([1, DIRECT_BEAM])
        beam = ranked.of(i).positions[ranked.of(i).intensity.argmax()]
        assert np.linalg.norm(beam - k.centres[i][(np.abs(k.g) < 1e-9).all(1)]) < 1
    rough = DiskOptions(refine=False)
    a, b = (find_disks(two, k.probe, device="cpu", options=rough, factors=f) for f in (None, False))
    assert np.array_equal(a.intensity, b.intensity)
