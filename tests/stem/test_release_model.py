"""The shipped network on the shipped scan: it loads, finds the disks, and strain follows."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

from crystaldl.errors import ModelIntegrityError
from crystaldl.examples import _folder, example_facts, load_example
from crystaldl.models.registry import card, default, load_weights
from crystaldl.stem.bragg import table_of
from crystaldl.stem.network import DiskNet
from crystaldl.stem.recipe.release import band, card_table, release, shipped_network
from crystaldl.stem.strain.fit import fit_strain

NAME = "stem/strained_scan"


@pytest.fixture(scope="module")
def truth():
    return example_facts(NAME)["truth"]


@pytest.fixture(scope="module")
def bragg():
    cube = load_example(NAME)
    assert cube.data.shape == (20, 20, 96, 96) and cube.data.dtype == np.uint16
    return cube.find_bragg_disks(method="fcunet", device="cpu", progress=False)


def _rows(truth):
    """Which scan rows are layer, and which are neither layer nor vacuum."""
    number = np.arange(20)
    layer = (number >= truth["layer"][0]) & (number < truth["layer"][1])
    return layer, ~layer & (number >= truth["vacuum"][1])


def test_a_model_ships():
    entry = card(default("stem"))
    assert entry.architecture == "DiskNet" and entry.bytes < 2_000_000
    network = shipped_network(entry.name)
    assert not network.training and sum(p.numel() for p in network.parameters()) == entry.parameters
    assert set(load_weights(entry.name)) == set(DiskNet().state_dict())
    assert 0 < entry.operating_point["threshold"] < 1
    assert entry.figures and all(entry.name in f["command"] and np.isfinite(f["value"]) for f in entry.figures)
    assert entry.training["patterns"] == 16 * entry.training["steps"]


def test_the_sample_is_that_of_the_manifest_and_plain_py4dstem_opens_it():
    import py4DSTEM

    path, facts = _folder() / example_facts(NAME)["file"], example_facts(NAME)
    content = path.read_bytes()
    assert hashlib.sha256(content).hexdigest() == facts["sha256"] and len(content) < 3_000_000
    plain = py4DSTEM.read(str(path))
    assert type(plain) is py4DSTEM.DataCube and np.array_equal(plain.data, load_example(NAME).data)
    assert plain.data.sum((2, 3)).mean() == pytest.approx(facts["truth"]["electrons"], rel=0.1)


def test_disks_are_found(bragg, truth):
    table, radius, beam = table_of(bragg), truth["radius"], np.array(truth["beam"])
    layer, _ = _rows(truth)
    seen = wanted = real = found = 0
    for i in range(truth["vacuum"][1], 20):
        g = np.array(truth["layer_g"] if layer[i] else truth["g"])
        for j in range(20):
            centres = beam[i, j] + g
            at = table.positions[table.offsets[20 * i + j] : table.offsets[20 * i + j + 1]]
            bright = np.array(truth["share"])[j] > 2e-3
            bright &= ((centres > radius + 1) & (centres < 95 - radius - 1)).all(1)
            distance = np.linalg.norm(centres[:, None] - at[None], axis=2)
            seen, wanted = seen + (distance[bright].min(1) < 0.4 * radius).sum(), wanted + bright.sum()
            real, found = real + (distance.min(0) < 0.4 * radius).sum(), found + len(at)
    assert wanted > 360 * 8
    assert seen / wanted > 0.8
    assert real / found > 0.9


def test_strain_of_the_layer(bragg, truth):
    layer, around = _rows(truth)
    strain = fit_strain(bragg, np.repeat(around[:, None], 20, axis=1))
    for number, name in enumerate(("e_xx", "e_yy", "e_xy", "theta")):
        line = np.array([np.nan if v is None else v for v in truth["rows"][name]])
        values = strain.data[number]
        assert np.nanmedian(values[layer]) == pytest.approx(line[layer][0], abs=0.003), name
        assert np.nanmedian(values[around]) == pytest.approx(0.0, abs=0.001), name
    assert not strain.data[4][: truth["vacuum"][1]].any() and strain.data[4][truth["vacuum"][1] :].mean() > 0.95


def test_release_refuses_other_runs(tmp_path):
    with pytest.raises(ModelIntegrityError, match="DiskNet"):
        shipped_network(default("powder"))
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "state.json").write_text(json.dumps({"task": "powder-powdernet"}))
    with pytest.raises(ModelIntegrityError):
        release(tmp_path, tmp_path)


def test_figures_of_a_card_stand_beside_those_measured_again(monkeypatch):
    name = default("stem")
    stated = card(name).figures
    rows = [{"data": f["data"], "metric": f["metric"], "value": f["value"] + 0.5} for f in stated[:2]]
    rows.append({"data": "other patterns", "metric": "recall", "value": 0.25})
    monkeypatch.setattr("crystaldl.stem.recipe.release.measure", lambda network, **size: rows)
    lines = card_table(name, crystals=6).splitlines()[1:]
    assert [line.split()[:2] for line in lines[:2]] == [[f"{f['value'] + 0.5:.4f}", f"{f['value']:.4f}"] for f in stated[:2]]
    assert lines[2].split() == ["0.2500", "-", "recall", "(other", "patterns)"]


def test_a_band_counts_thicknesses_alike():
    from crystaldl.stem.recipe.evaluate import Scores

    scores = Scores(strain={5.0: 0.3, 10.0: 0.4, 20.0: 1.0})
    assert band(scores, (0, 10)) == pytest.approx(np.sqrt(0.125))
    assert np.isnan(band(scores, (30, 60)))
