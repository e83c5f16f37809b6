"""The task: patterns in, disks out, whatever the patterns' form."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from crystaldl.errors import DataError, DeviceError, UnknownModelError
from crystaldl.models.registry import available
from crystaldl.stem.correlate import Candidates
from crystaldl.stem.disks import NETWORK_SIGMA_FACTOR, DiskOptions, Disks, combined, find_disks
from crystaldl.stem.network import DiskNet, FCUNet
from crystaldl.stem.peaks.refine import DiskFits
from crystaldl.stem.probe import Probe

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def probe():
    return Probe.synthetic(6.0, (128, 128), edge=0.6)


@pytest.fixture(scope="module")
def drawn(draw):
    return draw(3, counts=3000, uneven=0.3, seed=11)


def same(a: Disks, b: Disks) -> bool:
    names = ("pattern", "positions", "sigma", "intensity", "confidence", "fitted")
    return len(a) == len(b) and all(np.allclose(getattr(a, n), getattr(b, n), rtol=1e-4, atol=1e-3) for n in names)


def test_finds_and_measures_every_disk(probe, drawn):
    patterns, pattern, centres = drawn
    disks = find_disks(patterns, probe, method="correlation", device="cpu", options=DiskOptions(min_confidence=0.9))
    assert disks.n_patterns == 3 and len(disks) == len(centres)
    for i in range(3):
        mine = disks.of(i)
        distance, which = cKDTree(mine.positions).query(centres[pattern == i])
        assert len(set(which)) == len(mine) and np.sqrt((distance**2).mean()) < 0.15
        assert (np.diff(mine.intensity) <= 0).all() and mine.n_patterns == 1
    assert disks.intensity == pytest.approx(3000, rel=0.25) and np.array_equal(disks.intensity, disks.fitted)
    assert ((disks.sigma > 0) & (disks.sigma < 0.3)).all() and (disks.confidence <= 1).all()
    for name in ("positions", "intensity", "pattern"):
        with pytest.raises(ValueError, match="read-only"):
            getattr(disks, name)[0] = 0


@pytest.mark.parametrize("dtype", [">u2", "<u4", ">f8", "f2", "i8", "u1"])
def test_any_type_and_byte_order(probe, drawn, dtype):
    patterns = np.minimum(drawn[0], 255)
    wanted = find_disks(patterns, probe, method="correlation", device="cpu")
    assert same(find_disks(patterns.astype(dtype), probe, method="correlation", device="cpu"), wanted)


def test_forms_of_patterns_and_probe(probe, drawn):
    patterns = drawn[0]
    wanted = find_disks(patterns, probe, method="correlation", device="cpu", batch_size=1)
    options = {"method": "correlation", "device": "cpu"}
    assert same(find_disks(patterns, probe, batch_size=2, **options), wanted)
    assert same(find_disks(patterns[1], probe, **options), wanted.of(1))
    assert same(find_disks(np.asfortranarray(patterns), probe.image, **options), wanted)
    assert same(find_disks(np.ma.masked_array(patterns), probe, **options), wanted)


def test_not_measured_pixels(probe, drawn):
    patterns, pattern, centres = drawn
    holed = patterns.copy()
    holed[:, 62:65] = np.nan
    holed[:, :, 100:] = np.nan
    disks = find_disks(holed, probe, method="correlation", device="cpu", options=DiskOptions(min_confidence=0.9))
    far = (np.abs(centres[:, 0] - 63) > 9) & (centres[:, 1] < 92)
    for i in range(3):
        distance, _ = cKDTree(disks.of(i).positions).query(centres[far & (pattern == i)])
        assert distance.max() < 0.6
    assert (disks.positions[:, 1] < 106).all()


def test_patterns_without_disks(probe):
    empty = np.zeros((2, 128, 128))
    noise = np.random.default_rng(0).poisson(2.0, (3, 128, 128))
    constant = np.full((1, 128, 128), 7)
    nothing = np.full((1, 128, 128), np.nan)
    for patterns in (empty, constant, nothing):
        disks = find_disks(patterns, probe, method="correlation", device="cpu")
        assert len(disks) == 0 and disks.n_patterns == len(patterns) and len(disks.of(0)) == 0
    few = find_disks(noise, probe, method="correlation", device="cpu", options=DiskOptions(min_confidence=0.8))
    assert len(few) <= 3


def test_options_are_obeyed(probe, drawn):
    patterns = drawn[0]

    def run(**options):
        return find_disks(patterns, probe, method="correlation", device="cpu", options=DiskOptions(**options))

    assert max(len(run(max_disks=4).of(i)) for i in range(3)) == 4
    inside = run(edge_boundary=30).positions
    assert inside.min() > 28 and inside.max() < 99
    assert len(run(min_significance=1e6)) == 0
    raw = run(refine=False)
    assert np.isnan(raw.fitted).all() and len(raw) >= len(run())
    spaced = run(min_spacing=40.0)
    for i in range(3):
        p = spaced.of(i).positions
        assert cKDTree(p).query(p, k=2)[0][:, 1].min() > 38


def test_networks_propose(probe, drawn):
    torch.manual_seed(0)
    for network in (DiskNet(), FCUNet(filters=2, depth=1, levels=3)):
        disks = find_disks(drawn[0], probe, network=network, device="cpu", options=DiskOptions(min_confidence=0.0))
        assert disks.n_patterns == 3 and ((disks.confidence >= 0) & (disks.confidence <= 1)).all()
        assert np.isfinite(disks.positions).all() and np.isfinite(disks.intensity).all()


def test_proposals_and_fits_are_combined():
    fit = DiskFits(
        positions=torch.tensor([[10.0, 10], [20, 20], [30, 30]]), sigma=torch.tensor([[0.01, 0.1], [0.2, 0.2], [2, 2]]),
        intensity=torch.ones(3), significance=torch.ones(3), chi2=torch.ones(3), ok=torch.tensor([True, True, False]),
    )  # fmt: skip
    found = Candidates(
        torch.zeros(3), fit.positions + 0.4, torch.ones(3), torch.ones(3), torch.tensor([[0.1, 0.1], [0.1, 0.1], [0.3, 0.3]])
    )
    positions, sigma = combined(fit, found)
    # far less certain than the fit, the network counts for nothing: both see the same electrons
    assert positions[0, 0] == 10 and sigma[0, 0] == fit.sigma[0, 0] and 10.1 < positions[0, 1] < 10.25
    assert (positions[1] > 20.2).all() and (sigma[1] < 0.14).all() and (sigma[1] > 0.09).all()
    assert torch.equal(positions[2], found.positions[2]) and torch.allclose(sigma[2], NETWORK_SIGMA_FACTOR * torch.tensor(0.3))
    assert (sigma[:2] <= fit.sigma[:2] + 1e-6).all()
    found.sigma = None
    assert combined(fit, found)[0] is fit.positions


def test_concatenate(probe, drawn):
    disks = find_disks(drawn[0], probe, method="correlation", device="cpu")
    again = Disks.concatenate([disks.of(0), disks.of(1), disks.of(2)])
    assert again.n_patterns == 3 and same(again, disks)
    none = Disks.concatenate([])
    assert none.n_patterns == 0 and len(none) == 0 and none.positions.shape == (0, 2)
    with pytest.raises(IndexError, match="3 patterns"):
        disks.of(3)


PATTERNS = np.ones((1, 64, 64))
GOOD = Probe.synthetic(5.0, (64, 64))


@pytest.mark.parametrize(
    ("patterns", "probe_", "options", "error", "message"),
    [
        (np.ones((2, 2, 64, 64)), GOOD, {}, DataError, "shape"),
        (np.zeros((0, 64, 64)), GOOD, {}, DataError, "at least one"),
        (np.ones((1, 64, 64), complex), GOOD, {}, DataError, "real"),
        (np.array([["a"]]), GOOD, {}, DataError, "real"),
        (np.ones((1, 64, 32)), GOOD, {}, DataError, "probe has 64 × 64"),
        (PATTERNS, np.zeros((64, 64)), {}, DataError, "probe is constant"),
        (PATTERNS, Probe.synthetic(20.0, (64, 64)), {}, DataError, "too large"),
        (PATTERNS, GOOD, {"method": "hough"}, ValueError, "method"),
        (PATTERNS, GOOD, {"model": "stem-none-v9"}, UnknownModelError, "stem-none-v9"),
        (PATTERNS, GOOD, {"method": "correlation", "model": "x"}, ValueError, "no network"),
        (PATTERNS, GOOD, {"method": "correlation", "options": {"degree": 2}}, TypeError, "DiskOptions"),
        (PATTERNS, GOOD, {"method": "correlation", "batch_size": 0}, ValueError, "batch_size"),
        (PATTERNS, GOOD, {"method": "correlation", "device": "tpu"}, DeviceError, "tpu"),
        (PATTERNS, GOOD, {"network": torch.nn.Linear(2, 2)}, UnknownModelError, "Linear"),
        (PATTERNS, GOOD, {"network": "best.pt"}, TypeError, "network"),
    ],
)
def test_bad_input(patterns, probe_, options, error, message):
    with pytest.raises(error, match=message):
        find_disks(patterns, probe_, **({"device": "cpu"} | options))


def test_model_of_another_wing_is_refused():
    powder = available("powder")
    if powder:
        with pytest.raises(UnknownModelError, match="finds no disks"):
            find_disks(PATTERNS, GOOD, model=powder[0], device="cpu")


def test_without_a_model_says_what_to_do(monkeypatch):
    monkeypatch.setattr("crystaldl.models.registry.available", lambda *_, **__: [])
    with pytest.raises(UnknownModelError, match="method='correlation'"):
        find_disks(PATTERNS, GOOD, device="cpu")
