"""The figures of the separation: geometry of the planes, scores of made-up answers, candidates, and the command."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from crystaldl.diffuse.corruption import CLEAN, Corruption
from crystaldl.diffuse.disorder import krivoglaz_clapp_moss, structure_factor
from crystaldl.diffuse.geometry import plane_lattice
from crystaldl.diffuse.molecular import difference_form_factor
from crystaldl.diffuse.molecules import Pair, axis_rotation
from crystaldl.diffuse.recipe import evaluate, evaluate_models, evaluate_scores
from crystaldl.diffuse.recipe.evaluate_models import candidates, changed, difference, molecules, rank_models
from crystaldl.diffuse.recipe.evaluate_scores import cell_of, fold, plane_volume, score, simulated_volume
from crystaldl.diffuse.separation import Separation
from crystaldl.diffuse.simulate import PlaneSpec, simulate_planes
from crystaldl.errors import DataError

SIZE = 96
TURN = axis_rotation((0, 0, 1), 20.0)[:2, :2]


def make_spec(offset=0.0, oblique=True, turned=True, beta=(0.16, -0.2, 0.07), radiation="xray") -> PlaneSpec:
    """A head-to-tail pair of Cl-C-C-N on an oblique or square lattice."""
    xyz = np.array([[2.3, 0.4, 0.3], [0.7, 0.0, 0.1], [-0.7, 0.1, -0.2], [-1.8, -0.6, 0.2]])
    z = np.array([17, 6, 6, 7])
    direct = np.array([[6.8, 0.0], [-1.9, 6.1]]) if oblique else np.eye(2) * 6.4
    reciprocal = 2 * np.pi * np.linalg.inv(direct).T
    steps = np.eye(2) * (6.0 / (SIZE / 2)) @ (TURN if turned else np.eye(2))
    vectors, alpha = krivoglaz_clapp_moss(np.array([[1, 0], [0, 1], [1, -1]]), beta, cutoff=9.0, points=64)
    pair = Pair(z, xyz, z, -xyz, "molecule:C2ClN", "rotation")
    return PlaneSpec(pair, reciprocal, steps, vectors, alpha, offset=offset, b_iso=1.0, centre=(47.5, 49.0), radiation=radiation,
                     family=pair.family)  # fmt: skip


@pytest.fixture(scope="module")
def spec() -> PlaneSpec:
    return make_spec()


@pytest.fixture(scope="module")
def planes(spec):
    return simulate_planes([spec], Corruption(masks="procedural", missing=0.2), size=SIZE, seed=3, dtype=torch.float64)


def answer(spec, planes, index=0, **changes) -> Separation:
    """A separation that says the truth, but for what is changed."""
    volume = plane_volume(spec, planes, index)
    factor, order = (getattr(planes, n)[index].double().numpy() for n in ("form_factor", "sro"))
    part = lambda data, sigma: volume.replace(data=data, mask=None, sigma=np.full(volume.shape, sigma))  # noqa: E731
    n = len(spec.alpha)
    given = {
        "measured": volume, "form_factor": part(factor, 1e-6 * factor.max()), "sro": part(order, 1e-6),
        "background": part(0 * order, 1.0), "method": "physics", "link": "linear", "r_factor": 0.0, "r_free": 0.0,
        "lattice": volume.lattice, "period": plane_lattice(volume).nodes, "support": 5.0, "centring": "P", "bragg_radius": 0.0,
        "used": volume.mask, "verdict": "", "applies": True,
        "alpha_vectors": np.concatenate([spec.vectors, np.zeros((n, 1))], 1), "alpha": spec.alpha,
        "alpha_covariance": 1e-12 * np.eye(n),
    }  # fmt: skip
    return Separation(**(given | changes))


# ------------------------------------------------------------------------------------------ planes as volumes


@pytest.mark.parametrize("offset", [0.0, 1.3])
@pytest.mark.parametrize("oblique", [True, False])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("error", [0.0, 0.005])
def test_every_pixel_keeps_its_q_and_has_the_hk_it_is_told(offset, oblique, turned, error):
    spec = make_spec(offset, oblique, turned)
    planes = simulate_planes([spec], Corruption(lattice_error=error), size=(SIZE, 80), dtype=torch.float64)
    volume = plane_volume(spec, planes, 0)
    x = np.stack(np.meshgrid(np.arange(SIZE), np.arange(80), indexing="ij"), -1) - np.array(spec.centre)
    q = np.sqrt(np.square(x @ spec.steps).sum(-1) + offset**2)
    assert volume.q() == pytest.approx(q, rel=1e-6, abs=1e-6)
    assert volume.hkl()[..., :2] == pytest.approx(x @ np.linalg.inv(planes.given_period[0].numpy()), abs=1e-6)
    assert np.array_equal(volume.mask, planes.mask[0].numpy()) and volume.radiation == spec.radiation
    assert (np.abs(volume.hkl()[..., :2] - x @ np.linalg.inv(spec.period)).max() > 1e-3) == (error > 0)


def test_sigma_is_handed_on_only_when_asked(spec):
    planes = simulate_planes([spec], Corruption(counts=100.0), size=SIZE, seed=1)
    assert plane_volume(spec, planes, 0).sigma is None
    with_sigma = plane_volume(spec, planes, 0, sigma=True)
    assert with_sigma.sigma == pytest.approx(np.sqrt(np.maximum(with_sigma.data, 1.0)), rel=1e-6)


def test_the_volume_is_what_its_truth_says():
    volume, truth = simulated_volume(41, counts=400.0, missing=0.1)
    order = structure_factor(truth["vectors"], truth["alpha"], volume.hkl().reshape(-1, 3)).reshape(volume.shape)
    assert truth["sro"] == pytest.approx(order)
    zone = truth["sro"][:40, :40, :40]
    assert zone.mean() == pytest.approx(1.0, abs=1e-9) and truth["sro"].min() > 0
    assert volume.mask.mean() == pytest.approx(0.9, abs=0.01)
    ideal = truth["form_factor"] * truth["sro"]
    assert ideal.max() == pytest.approx(400.0)
    bright = volume.mask & (ideal > 20)
    assert np.mean((volume.data - ideal)[bright] ** 2 / ideal[bright]) == pytest.approx(1.0, abs=0.05)


# ------------------------------------------------------------------------------------------ scores


def test_the_truth_scores_full_marks(spec, planes):
    result = score(answer(spec, planes), spec, planes, 0, 1.5)
    assert result.s_correlation == pytest.approx(1.0, abs=1e-9) and result.s_error < 1e-6 and result.seconds == 1.5
    assert result.d_measured == result.d_hidden == result.d_all == 0 and result.alpha_error < 1e-12
    assert dict(result.coverage) == {f"{name} {level}": 1.0 for name in ("alpha", "S", "D") for level in ("68", "95")}


def test_hidden_and_measured_pixels_are_told_apart(spec, planes):
    mask = planes.mask[0].numpy()
    exact = answer(spec, planes).form_factor
    wrong = exact.replace(data=exact.data * np.where(mask, 1.02, 1.3))
    result = score(answer(spec, planes, form_factor=wrong), spec, planes, 0)
    assert result.d_measured == pytest.approx(0.02) and result.d_hidden == pytest.approx(0.3) and 0.02 < result.d_all < 0.3


def test_order_parameters_are_compared_within_four_cells(spec, planes):
    n = len(spec.alpha)
    parts = answer(spec, planes, alpha=spec.alpha + 0.01, alpha_covariance=0.008**2 * np.eye(n))
    result = score(parts, spec, planes, 0)
    assert result.alpha_error == pytest.approx(0.01)
    assert dict(result.coverage)["alpha 68"] == 0 and dict(result.coverage)["alpha 95"] == 1
    flipped = answer(spec, planes, alpha_vectors=-np.concatenate([spec.vectors, np.zeros((n, 1))], 1))
    assert score(flipped, spec, planes, 0).alpha_error < 1e-12, "R and -R are the same parameter"
    far = np.linalg.norm(spec.vectors @ (2 * np.pi * np.linalg.inv(spec.reciprocal).T), axis=1) > 5 * 6.5
    assert far.any() and score(answer(spec, planes, alpha=spec.alpha + far), spec, planes, 0).alpha_error < 1e-12


def test_order_parameters_between_the_lattice_points_are_not_compared(spec, planes):
    """A centred lattice has vectors that the truth has not; rounded, they would stand for others."""
    n = len(spec.alpha)
    vectors = np.concatenate([spec.vectors, np.zeros((n, 1))], 1)
    between = np.array([[0.5, 0.5, 0.0], [1.5, 0.5, 0.0], [-0.5, 1.5, 0.0]])
    parts = answer(spec, planes, alpha_vectors=np.concatenate([vectors, between]), alpha=np.append(spec.alpha, [0.3, -0.2, 0.1]),
                   alpha_covariance=1e-12 * np.eye(n + 3), centring="C")
    result = score(parts, spec, planes, 0)
    assert result.alpha_error < 1e-12
    assert dict(result.coverage)["alpha 68"] == dict(result.coverage)["alpha 95"] == 1.0


def test_coverage_counts_gaussian_errors(spec, planes):
    rng = np.random.default_rng(0)
    exact = answer(spec, planes)
    parts = {
        name: volume.replace(data=volume.data + 0.1 * rng.normal(size=volume.shape), sigma=np.full(volume.shape, 0.1))
        for name, volume in (("form_factor", exact.form_factor), ("sro", exact.sro))
    }
    inside = dict(score(answer(spec, planes, **parts), spec, planes, 0).coverage)
    for name in ("S", "D"):
        assert inside[f"{name} 68"] == pytest.approx(0.6827, abs=0.02) and inside[f"{name} 95"] == pytest.approx(0.95, abs=0.01)


def test_no_intervals_without_uncertainties(spec, planes):
    exact = answer(spec, planes)
    bare = {n: getattr(exact, n).replace(sigma=None) for n in ("form_factor", "sro")}
    parts = answer(spec, planes, **bare, alpha_vectors=None, alpha=None, alpha_covariance=None, link="network")
    result = score(parts, spec, planes, 0)
    assert result.coverage == () and result.alpha_error < 0.01 and result.s_correlation > 0.995


@pytest.mark.parametrize("link", ["linear", "reciprocal", "log"])
def test_the_cell_is_that_of_the_series(spec, planes, link):
    """1/S (or log S, or S) is a short series: the cell must follow from it exactly, whatever S is between pixels."""
    there = {"linear": lambda s: s, "reciprocal": lambda s: 1 / s, "log": np.exp}[link]
    short = spec.vectors[:3]
    wave = lambda hk: there(1.0 + 2 * np.cos(2 * np.pi * hk @ short.T) @ np.array([0.16, -0.1, 0.07]))  # noqa: E731
    volume = answer(spec, planes).sro
    parts = answer(spec, planes, link=link, sro=volume.replace(data=wave(volume.hkl()[..., :2])))
    grid = np.stack(np.meshgrid(*[np.arange(48) / 48] * 2, indexing="ij"), -1)
    assert cell_of(parts) == pytest.approx(wave(grid), rel=1e-6)


def test_refined_repeats_are_used(spec):
    """Told a wrong lattice, a method that found the right one has the right S."""
    planes = simulate_planes([spec], Corruption(lattice_error=0.005), size=SIZE, seed=5, dtype=torch.float64)
    volume = plane_volume(spec, planes, 0)
    nominal = plane_lattice(volume).nodes
    indices = np.rint(nominal @ volume.basis)[:, :2]
    step = np.array([float(a[1] - a[0]) for a in volume.axes])
    refined = indices @ spec.period * step
    right = score(answer(spec, planes, period=refined, link="network"), spec, planes, 0).s_correlation
    wrong = score(answer(spec, planes, link="network"), spec, planes, 0).s_correlation
    assert right > 0.995 and right > wrong


def test_fold_fills_what_no_pixel_hits():
    hk = np.stack(np.meshgrid(np.arange(64) / 8, np.arange(64) / 8, indexing="ij"), -1)     # eight points a zone and no more
    wave = lambda at: 1 + 0.5 * np.cos(2 * np.pi * at[..., 0]) + 0.2 * np.sin(2 * np.pi * at[..., 1])  # noqa: E731
    grid = np.stack(np.meshgrid(*[np.arange(48) / 48] * 2, indexing="ij"), -1)
    found = fold(wave(hk), hk)
    assert np.isfinite(found).all() and np.corrcoef(found.ravel(), wave(grid).ravel())[0, 1] > 0.98
    assert found[::6, ::6] == pytest.approx(wave(grid)[::6, ::6]), "where pixels are, they are kept"


# ------------------------------------------------------------------------------------------ structural models


@pytest.mark.parametrize("change", evaluate_models.CHANGES)
def test_changes_keep_the_pair_a_pair(spec, change):
    """Both variants are the same molecule in two orientations before and after."""
    z_a, xyz_a, z_b, xyz_b = changed(spec.pair, change, np.random.default_rng(1))
    assert np.array_equal(z_a, z_b)
    length = lambda xyz: np.linalg.norm(xyz[:, None] - xyz[None], axis=-1)  # noqa: E731
    assert length(xyz_a) == pytest.approx(length(xyz_b), abs=1e-9)
    before = tuple(spec.pair)[:4]
    assert not (np.array_equal(z_a, before[0]) and np.allclose(xyz_a, before[1]))
    assert difference(spec, (z_a, xyz_a, z_b, xyz_b)) > 0.01 and difference(spec, before) < 1e-6


def test_candidates_are_similar_but_not_the_same(spec):
    found = candidates(spec, np.random.default_rng(0))
    assert len(found) == 3 and next(iter(found)) == evaluate_models.RIGHT
    low, high = evaluate_models.DIFFERENT
    assert all(low <= difference(spec, pair) <= high for name, pair in found.items() if name != evaluate_models.RIGHT)


@pytest.mark.parametrize("offset", [0.0, 1.3])
@pytest.mark.parametrize("radiation", ["xray", "neutron"])
def test_molecules_are_in_the_frame_of_the_cell(offset, radiation):
    spec = make_spec(offset, radiation=radiation)
    planes = simulate_planes([spec], size=SIZE, dtype=torch.float64)
    volume = plane_volume(spec, planes, 0)
    pair = molecules(spec, volume, tuple(spec.pair)[:4])
    factor = difference_form_factor(volume, *pair) * np.exp(-2 * spec.b_iso * volume.q() ** 2 / (16 * np.pi**2))
    truth = planes.form_factor[0].numpy()
    assert factor == pytest.approx(truth, abs=1e-6 * truth.max())


def test_the_right_model_is_ranked_first(spec, monkeypatch):
    def known(volume, **options):
        return answer(spec, simulate_planes([spec], Corruption(counts=1000.0), size=SIZE, seed=7))

    monkeypatch.setattr(evaluate_models, "separate", known)
    models = candidates(spec, np.random.default_rng(0))
    ranking = rank_models(spec, models, Corruption(counts=1000.0), size=SIZE, seed=7)
    assert ranking.place == {"intensity": 1, "form_factor": 1} and ranking.margin["intensity"] > 10
    shuffled = dict(zip(models, [*list(models.values())[1:], models["right"]], strict=True))
    assert rank_models(spec, shuffled, Corruption(counts=1000.0), size=SIZE, seed=7).place["intensity"] > 1
    text = evaluate_models.format_rankings([ranking])
    assert "by intensity: the right model first in 1 of 1" in text


# ------------------------------------------------------------------------------------------ the command


@pytest.fixture
def quick(monkeypatch, spec):
    """Two planes of 96 pixels an edge, and a method that knows the truth but for α, and fails at residual Bragg peaks."""
    seen = {}
    small = [spec, replace(spec, alpha=spec.alpha * 0.5)]
    monkeypatch.setattr(evaluate, "evaluation_stream", lambda size=SIZE: Namespace(specs=lambda step, count: small[:count]))
    real = simulate_planes

    def watched(specs, corruption, *, size, seed):
        seen["corruption"], seen["planes"] = corruption, real(specs, corruption, size=SIZE, seed=seed)
        return seen["planes"]

    def known(volume, method="auto", **options):
        if np.any(np.asarray(seen["corruption"].bragg) > 0):
            raise DataError("there are Bragg peaks.")
        index = int(not np.array_equal(np.nan_to_num(volume.data), seen["planes"].intensity[0].double().numpy()))
        return answer(small[index], seen["planes"], index, alpha=small[index].alpha + 0.003 * (method == "physics"))

    monkeypatch.setattr(evaluate, "simulate_planes", watched)
    monkeypatch.setattr(evaluate, "separate", known)
    monkeypatch.setattr(evaluate, "available", lambda task: [])
    return seen


def command(**given) -> str:
    return evaluate.evaluate_command(Namespace(**({"planes": 2, "only": ["cases"], "shared": None, "threads": None} | given)))


def test_the_table_has_every_case_and_method(quick):
    text = command()
    rows = [line for line in text.splitlines() if line[24:33].strip() in evaluate.METHODS]
    assert len(rows) == 2 * len(evaluate.cases()) and "dsfunet is left out" in text
    for case in evaluate.cases():
        assert sum(row.startswith(case + " ") for row in rows) == 2
    clean = {row[24:33].strip(): row for row in rows if row.startswith("clean")}
    assert "1.00000" in clean["auto"] and "0.0030  0.0030" in clean["physics"] and "0.0000  0.0000" in clean["auto"]
    assert all("2 of 2 failed: there are Bragg peaks." in row for row in rows if row.startswith(("residual Bragg", "Bragg, P")))
    assert sum("failed" in row for row in rows) == 4 and "C2ClN" in text and text.endswith("\n")
    assert "procedural masks" in text and "detector" not in text


def test_mean_and_worst():
    scores = [evaluate_scores.Score(s_correlation=c, d_all=d, seconds=1.0) for c, d in ((0.9, 0.1), (0.8, 0.3))]
    text = evaluate.format_accuracy({("clean", "auto"): scores})
    assert "0.85000 0.80000" in text and "  0.200   0.300" in text
    assert "S worst on plane 1 (0.80000), D on plane 1 (0.300)" in evaluate.hardest({("clean", "auto"): scores})


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"planes": -1}, ValueError, "planes is -1; expected at least 1"),
        ({"only": ["realism"]}, ValueError, "expected some of cases, models, speed"),
        ({"methods": ["unet"]}, ValueError, "methods names unet; expected some of physics, dsfunet, unrolled, auto"),
        ({"shared": Path("nowhere")}, FileNotFoundError, "shared is 'nowhere', which has no .*masks_1-4.npz"),
    ],
)
def test_bad_arguments_are_one_sentence(quick, given, error, text):
    with pytest.raises(error, match=text):
        command(**given)
    assert not quick, "nothing is simulated before the arguments are known to be good"


def test_methods(monkeypatch):
    monkeypatch.setattr(evaluate, "available", lambda task: ["diffuse-dsfunet-v1"])
    assert evaluate.methods_at_hand() == ("physics", "dsfunet", "auto")
    monkeypatch.setattr(evaluate, "available", lambda task: ["diffuse-unrolled-v2", "diffuse-dsfunet-v1"])
    assert evaluate.methods_at_hand() == evaluate.METHODS
    monkeypatch.setattr(evaluate, "available", lambda task: [])
    assert evaluate.methods_at_hand() == ("physics", "auto") and evaluate.methods_at_hand(["auto"]) == ("auto",)


def test_masks_of_real_detectors(shared_data):
    if not (shared_data / evaluate.MASK_FILE).is_file():
        pytest.skip("no detector masks in the shared data")
    bank = evaluate.mask_bank(shared_data)
    assert bank.shape[1:] == (256, 256) and bank.dtype == bool and 0.3 < bank.mean() < 0.99
    assert "detector masks" in evaluate.cases(bank) and np.array_equal(bank, evaluate.mask_bank(shared_data.parent))


def test_a_real_separation_of_a_pair_of_atoms():
    """From simulation to score with nothing put on."""
    vectors, alpha = krivoglaz_clapp_moss(np.array([[1, 0], [0, 1]]), [0.15, -0.1], cutoff=7.0, points=32)
    pair = Pair(np.array([79]), np.zeros((1, 3)), np.array([29]), np.zeros((1, 3)), "atom:Au/Cu", "substitution")
    spec = PlaneSpec(pair, 2 * np.pi / 3.9 * np.eye(2), np.eye(2) * (2 * np.pi / 3.9 / 12), vectors, alpha, family="atom:Au/Cu")
    scores = evaluate.accuracy([spec], {"clean": (CLEAN, False)}, ["physics"], size=96)
    (result,) = scores["clean", "physics"]
    assert not result.failure and result.s_correlation > 0.99 and result.d_all < 0.05 and result.alpha_error < 0.01
    assert {name for name, _ in result.coverage} == {f"{n} {k}" for n in ("alpha", "S", "D") for k in ("68", "95")}
