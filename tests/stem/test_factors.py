"""|V_g| from disks: pairs, products, and ranks against known structure factors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from crystaldl.errors import DataError
from crystaldl.stem.factors import structure_factors
from crystaldl.stem.recipe.benchmark import benchmark
from crystaldl.stem.recipe.factors import MEASURES, bloch_ranks, bloch_table, factor_ranks, factor_table
from crystaldl.stem.simulate.bloch import beam_intensities, prepare_zone
from crystaldl.stem.simulate.electrons import wavelength
from crystaldl.stem.simulate.patterns import SceneOptions, simulate
from crystaldl.stem.simulate.specimens import PROTOTYPES, held_out, random_specimen

HK = np.array([(0, 0), (1, 0), (-1, 0), (0, 1), (2, 1)])


def test_pairs_and_products():
    fitted = np.array([1e4, 24.0, 8.0, 4.0, 1.0])
    estimate = np.array([1.0, 0.9, 0.7, 0.5, 0.5])
    expected = np.array([4 * 0.8, 4 * 0.8, 2 * 0.5, 0.5]) / 3.2
    found = structure_factors(HK, fitted, estimate)
    assert np.isnan(found[0]) and found[1:] == pytest.approx(expected)
    assert structure_factors(HK, fitted)[1:] == pytest.approx([1, 1, 0.5, 0.25])


def test_patterns_stand_for_themselves_in_any_unit():
    rng = np.random.default_rng(0)
    fitted, estimate = rng.uniform(1, 9, (2, 5, 3, 4))
    whole = structure_factors(HK, fitted * rng.uniform(1, 100, (3, 4)), 7 * estimate)
    assert whole.shape == (5, 3, 4)
    assert whole[:, 1, 2] == pytest.approx(structure_factors(HK, fitted[:, 1, 2], estimate[:, 1, 2]), nan_ok=True)
    assert (np.nanmax(whole, 0) == 1).all()


def test_what_is_missing_stays_missing():
    fitted = np.array([[1e4, 9.0, np.nan, 4.0, 0.0], [1e4, 9.0, 1.0, np.nan, np.nan], [np.nan] * 5]).T
    found = structure_factors(HK, fitted)
    assert found[1:, 0] == pytest.approx([1, np.nan, 2 / 3, np.nan], nan_ok=True)  # -g unseen: g counts alone
    assert found[1:, 1] == pytest.approx([1, 1, np.nan, np.nan], nan_ok=True)
    assert np.isnan(found[:, 2]).all()
    # without fits the estimate ranks alone
    alone = structure_factors(HK, np.full(5, np.nan), [1.0, 0.9, 0.7, 0.4, 0.2])
    assert alone[1:] == pytest.approx([1, 1, 0.5, 0.25])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((HK.astype(float), np.ones(5)), "expected integers"),
        ((HK[0], np.ones(5)), r"hk has the shape \(2,\)"),
        ((HK, np.ones(4)), r"fitted has the shape \(4,\)"),
        ((HK, np.ones(5), np.ones((5, 2))), r"estimate has the shape \(5, 2\)"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(DataError, match=message):
        structure_factors(*arguments)


def test_pairs_rank_tilted_crystals_better():
    names, gains = {p.name for p in PROTOTYPES}, []
    for family in (f for f in range(400) if held_out(f)):
        specimen = random_specimen(1, family)
        if specimen.crystal.name.split()[0] not in names or len(gains) == 12:
            continue
        zone = prepare_zone(specimen.crystal, specimen.zone, voltage=120, b_iso=0.5, g_max=1.3, beams=60)
        if len(zone.hkl) < 12:
            continue
        tilts = torch.tensor([[0.003, 0.001]], dtype=torch.float64) / wavelength(120)
        intensity = beam_intensities(zone, tilts, torch.tensor([150.0]))[0, 0].numpy().astype(float)
        basis = np.linalg.svd(zone.hkl.astype(float))[2][:2]
        axes = np.argsort(-np.abs(basis).max(0))[:2]  # any two indices that tell the reflections of the zone apart
        hk = zone.hkl[:, sorted(axes)]
        if len(np.unique(hk, axis=0)) < len(hk):
            continue
        v = zone.structure_factor
        rows = (np.arange(len(v)) > 0) & (v > 1e-3 * v[1:].max()) & (intensity > 1e-5)
        better = spearmanr(structure_factors(hk, intensity)[rows], v[rows]).statistic
        gains.append(better - spearmanr(intensity[rows], v[rows]).statistic)
    assert len(gains) > 6 and np.mean(gains) > 0.03


def test_ranks_of_multislice_patterns():
    known = list(benchmark(3, 23, draws=1, tilt=5e-3))
    ranks = factor_ranks(known)
    fitted, network, together, final = (ranks[name][0] for name in MEASURES)
    assert final > 0.8 and final > fitted + 0.05 and final > network + 0.05 and together > network + 0.03
    assert f"{final:.3f}" in factor_table(ranks)
    published = factor_ranks(known[:1], model="stem-fcunet-v1")
    assert published[MEASURES[1]] == published[MEASURES[2]], "what another network proposed keeps its estimate"


def test_ranks_of_bloch_patterns(small_bank):
    g = torch.Generator().manual_seed(0)
    patterns = [simulate(small_bank, 6, g, SceneOptions((160, 160), 5.0, 0.5, off_centre=0.1))]
    ranks = bloch_ranks(patterns)
    assert set(ranks) == set(MEASURES[:3]) and all(np.nanmax(np.abs(row)) <= 1 for row in ranks.values())
    assert f"{ranks[MEASURES[2]][-1]:.3f}" in bloch_table(ranks)
