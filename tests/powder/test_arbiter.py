"""The arbiter between network and lattice search, and how it is fitted."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from crystaldl.physics.symmetry import BRAVAIS_LATTICES, SYSTEM_OF_GROUP, bravais_of_group, extinction_of_group
from crystaldl.powder.indexing.evidence import ARRAYS, FLOOR
from crystaldl.powder.network import ArbiterMember, LatticeArbiter
from crystaldl.powder.prepare import AXIS_POINTS, REFERENCE_WAVELENGTH, common_axis
from crystaldl.powder.recipe import arbiter
from crystaldl.powder.recipe.arbiter import (
    SearchTable,
    arbiter_logits,
    blind_prior,
    combine,
    cross_validated_logits,
    fit_arbiter,
    look_alike_weight,
    search_table,
)
from crystaldl.powder.recipe.training import training_prior

BRAVAIS = bravais_of_group()


def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def likelihood(z, group) -> float:
    """Mean log-probability of the true space groups."""
    return float(log_softmax(z)[np.arange(len(z)), group - 1].mean())


def problem(count: int = 240, seed: int = 0) -> tuple[SearchTable, np.ndarray]:
    """Patterns whose network is vague and whose search knows the lattice; a table and logits (count, 230)."""
    rng = np.random.default_rng(seed)
    group = rng.choice([14, 62, 136, 139, 166, 194, 221, 225], count)
    logits = rng.normal(0, 1.0, (count, 230)).astype(np.float32)
    logits[np.arange(count), group - 1] += 1.5
    right = np.arange(count), BRAVAIS[group - 1]
    scores = np.minimum(rng.normal(-6, 1, (count, 14, 3)), 0.0)
    scores[right] = 0.0
    profile = np.tile(FLOOR, (count, 14, 1))
    profile[right] = 0.0, 0.0, 2.0, 1.0, 0.0, 0.0, 4.0, 5.0, 1.5, 0.0
    facts = np.tile([20.0, 12.0, 24.0, 1.2, 0.8, 0.0, 40.0, 9.0], (count, 1))
    absences = rng.normal(-3, 0.3, (count, 3, 99))
    absences[np.arange(count), :, extinction_of_group()[group - 1]] += 3
    return SearchTable(scores, profile, facts, absences, group), logits


# ------------------------------------------------------------------------------------------ the module


def inputs(count: int = 8, seed: int = 0):
    table, logits = problem(count, seed)
    return table.tensors(logits)


def answer(module, given, blind: bool) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(*given, torch.full((len(given[0]),), blind))


def test_the_networks_order_inside_a_lattice_is_kept_without_evidence():
    torch.manual_seed(0)
    logits, *rest, absences = inputs()
    out = answer(ArbiterMember(), (logits, *rest, torch.zeros_like(absences)), False)
    assert torch.allclose(out.exp().sum(1), torch.ones(8), atol=1e-5), "logits are log-probabilities"
    for lattice in range(14):
        inside = torch.as_tensor(np.flatnonzero(lattice == BRAVAIS))
        assert torch.equal(out[:, inside].argsort(1), logits[:, inside].argsort(1))
        # `inside` starts at 1: differences are the network's own
        assert torch.allclose(
            out[:, inside] - out[:, inside[:1]], logits[:, inside] - logits[:, inside[:1]], atol=2e-4
        )


def test_an_answer_is_the_mean_of_those_with_and_without_the_network():
    torch.manual_seed(0)
    module, given = LatticeArbiter(members=2), inputs()
    parts = [answer(member, given, blind).exp() for member in module.members for blind in (False, True)]
    assert torch.allclose(answer(module, given, False).exp(), sum(parts) / 4, atol=1e-6)
    assert torch.allclose(answer(module, given, True).exp(), (parts[1] + parts[3]) / 2, atol=1e-6)


def test_evidence_moves_groups_inside_their_lattice_only():
    torch.manual_seed(0)
    module, (logits, *rest, absences) = LatticeArbiter(), inputs()
    zero = torch.zeros_like(absences)
    pushed = zero.clone()
    pushed[:, :, extinction_of_group()[61]] = 4.0  # Pnma
    before, after = (answer(module, (logits, *rest, e), False).exp() for e in (zero, pushed))
    member = torch.as_tensor(extinction_of_group() == extinction_of_group()[61])
    assert (after[:, member] > before[:, member]).all()
    for lattice in range(14):
        inside = torch.as_tensor(lattice == BRAVAIS)
        assert torch.allclose(before[:, inside].sum(1), after[:, inside].sum(1), atol=1e-5)


def test_a_blind_arbiter_ignores_the_network():
    torch.manual_seed(0)
    module, (logits, *rest) = LatticeArbiter(), inputs()
    other = torch.randn_like(logits) * 10
    assert torch.equal(answer(module, (logits, *rest), True), answer(module, (other, *rest), True))
    assert not torch.allclose(answer(module, (logits, *rest), False), answer(module, (other, *rest), False))
    # row by row
    mixed = torch.tensor([True, False] * 4)
    with torch.no_grad():
        both = module(logits, *rest, mixed)
    assert torch.allclose(both[mixed], answer(module, (logits, *rest), True)[mixed], atol=1e-6)
    assert torch.allclose(both[~mixed], answer(module, (logits, *rest), False)[~mixed], atol=1e-6)


def test_the_prior_travels_with_the_weights():
    module = LatticeArbiter()
    for member in module.members:
        member.log_prior.copy_(blind_prior())
    copy = LatticeArbiter()
    copy.load_state_dict(module.state_dict())
    assert all(torch.equal(member.log_prior, blind_prior()) for member in copy.members)
    assert blind_prior().exp().sum() == pytest.approx(1, abs=1e-5)


def test_extreme_inputs_stay_finite():
    logits, *rest, absences = inputs()
    for given in (
        (logits * 1e3, *rest, absences),
        (logits, *(t * 0 for t in rest), absences * 0),
        (logits, *rest, absences * 100),
    ):
        for blind in (False, True):
            assert torch.isfinite(answer(LatticeArbiter(), given, blind)).all()


# ------------------------------------------------------------------------------------------ fitting


def test_fitting_improves_the_likelihood_of_unseen_patterns():
    table, logits = problem()
    train, test = np.arange(160), np.arange(160, 240)
    given = table.tensors(logits)
    module = fit_arbiter(tuple(t[train] for t in given), table.group[train], np.ones(160), steps=80)
    unseen = tuple(t[test] for t in given)
    assert not module.training
    fitted = likelihood(arbiter_logits(module, unseen), table.group[test])
    assert fitted > likelihood(logits[test], table.group[test]) + 1.0
    assert fitted > likelihood(arbiter_logits(LatticeArbiter().eval(), unseen), table.group[test]) + 0.1
    # the search alone is better than the prior
    alone = likelihood(arbiter_logits(module, unseen, blind=True), table.group[test])
    assert np.log(training_prior())[table.group[test] - 1].mean() + 1.0 < alone


def test_fitting_is_reproducible_and_weights_matter():
    table, logits = problem(60)
    given = table.tensors(logits)
    fit = partial(fit_arbiter, given, table.group, steps=8)
    one, again, other = (fit(w, seed=s) for w, s in ((np.ones(60), 0), (np.ones(60), 0), (np.arange(60) + 0.1, 0)))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_patterns_of_no_weight_are_never_seen():
    table, logits = problem(60)
    weight = np.where(np.arange(60) < 40, 1.0, 0.0)
    changed = np.where(np.arange(60) < 40, table.group, 1)
    one, other = (fit_arbiter(table.tensors(logits), g, weight, steps=8) for g in (table.group, changed))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_cross_validation_never_trains_on_a_patterns_own_fold(monkeypatch):
    monkeypatch.setattr(arbiter, "fit_arbiter", partial(fit_arbiter, steps=12))
    table, logits = problem(60)
    fold = np.arange(60) % 3
    full, blind = cross_validated_logits(table, logits, np.arange(60), fold)
    assert full.shape == blind.shape == (60, 230) and np.abs(full).sum(1).all()
    # labels of fold 1 shuffled: its own answers stay, those of the others change
    group = table.group.copy()
    group[fold == 1] = np.random.default_rng(0).permutation(group[fold == 1])
    assert (group != table.group).any()
    shuffled = SearchTable(*(getattr(table, k) for k in ARRAYS), group)
    full2, blind2 = cross_validated_logits(shuffled, logits, np.arange(60), fold)
    for before, after in ((full, full2), (blind, blind2)):
        assert np.array_equal(before[fold == 1], after[fold == 1])
        assert not np.array_equal(before[fold == 0], after[fold == 0])
    # blind answers do not read the test pattern's logits either
    noisy = logits.copy()
    noisy[fold == 1] = 0
    _, blind3 = cross_validated_logits(table, noisy, np.arange(60), fold)
    assert np.array_equal(blind[fold == 1], blind3[fold == 1])


# ------------------------------------------------------------------------------------------ tables and weights


def test_a_table_survives_a_file(tmp_path):
    table, logits = problem(12)
    table.logits = logits
    table.save(tmp_path / "table.npz")
    back = SearchTable.load(tmp_path / "table.npz")
    for name in (*ARRAYS, "group", "logits"):
        assert np.array_equal(getattr(back, name), getattr(table, name))


def test_a_table_without_logits_survives_a_file(tmp_path):
    table, _ = problem(5)
    table.save(tmp_path / "table.npz")
    back = SearchTable.load(tmp_path / "table.npz")
    assert back.logits is None and np.array_equal(back.scores, table.scores)


def test_tensors_are_single_precision():
    table, logits = problem(5)
    given = table.tensors(logits.astype(np.float64))
    assert [tuple(t.shape) for t in given] == [(5, 230), (5, 14, 3), (5, 14, 10), (5, 8), (5, 3, 99)]
    assert all(t.dtype == torch.float32 for t in given)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_simulated_patterns_take_their_share(share):
    table, logits = problem(40)
    simulated, extra = problem(100, seed=1)
    simulated.logits = extra
    weight = look_alike_weight(np.arange(40) // 2)
    given, group, w = combine(table.tensors(logits), table.group, weight, simulated, share)
    assert [len(t) for t in given] == [140] * 5 and len(group) == len(w) == 140
    assert torch.equal(given[0][40:], torch.as_tensor(extra)) and np.array_equal(group[40:], simulated.group)
    assert np.array_equal(w[:40], weight)
    assert w[40:].sum() / w.sum() == pytest.approx(share)
    # inside a crystal system each space group weighs as in the training stream, however many patterns there are of it
    prior = training_prior()
    totals = np.bincount(simulated.group, weights=w[40:], minlength=231)[1:]
    for system in range(7):
        inside = (totals > 0) & (system == SYSTEM_OF_GROUP)
        if inside.any():
            assert totals[inside] / totals[inside].sum() == pytest.approx(prior[inside] / prior[inside].sum())


def test_simulated_patterns_make_up_for_missing_systems():
    table, logits = problem(200)
    simulated, simulated.logits = problem(200, seed=1)
    measured = np.flatnonzero(SYSTEM_OF_GROUP[table.group - 1] != 4)
    inputs = tuple(t[measured] for t in table.tensors(logits))
    _, group, w = combine(inputs, table.group[measured], np.ones(len(measured)), simulated, 0.5)
    shares = np.bincount(SYSTEM_OF_GROUP[group - 1], weights=w, minlength=7) / w.sum()
    wanted = np.bincount(SYSTEM_OF_GROUP, weights=training_prior(), minlength=7)
    assert shares[4] > 0.5 * wanted[4]


def test_nothing_simulated_changes_nothing():
    table, logits = problem(10)
    given = table.tensors(logits)
    assert combine(given, table.group, np.ones(10), None) == (given, table.group, pytest.approx(np.ones(10)))


def test_look_alikes_count_as_the_root_of_their_number():
    assert look_alike_weight(np.array([0, 1, 1, 1, 1, 2])) == pytest.approx([1, 0.5, 0.5, 0.5, 0.5, 1])


def test_a_table_of_drawn_patterns():
    """Gaussian lines of halite and rutile on the common axis: the search names their lattices."""
    axis = common_axis()
    y = np.zeros((2, AXIS_POINTS))
    halite = np.sqrt([3, 4, 8, 11, 12, 16, 19, 20, 24]) / 5.64
    rutile = [
        np.sqrt((h * h + k * k) / 4.594**2 + (l / 2.959) ** 2)
        for h, k, l in [(1, 1, 0), (1, 0, 1), (2, 0, 0), (1, 1, 1), (2, 1, 0), (2, 1, 1), (2, 2, 0), (0, 0, 2), (3, 1, 0),
                        (2, 2, 1), (3, 0, 1), (1, 1, 2), (3, 1, 1), (3, 2, 0), (2, 0, 2)]
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    for row, lines in enumerate((halite, rutile)):
        for q in lines:
            centre = 2 * np.degrees(np.arcsin(q * REFERENCE_WAVELENGTH / 2))
            y[row] += rng.uniform(0.2, 1) * np.exp(-0.5 * ((axis - centre) / 0.05) ** 2)
    y += rng.normal(0, 0.002, y.shape)
    table = search_table(
        torch.as_tensor(y, dtype=torch.float32), torch.ones(2, AXIS_POINTS), torch.zeros(2), np.array([225, 136])
    )
    assert [BRAVAIS_LATTICES[i] for i in table.scores[..., 2].argmax(1)] == ["cF", "tP"]
    assert table.absences.shape == (2, 3, 99) and table.facts.shape == (2, 8) and table.profile.shape == (2, 14, 10)
    assert table.logits is None
    assert table.facts[:, 2].tolist() == pytest.approx([9, 15], abs=2)
