"""The sample data, the demo, and the code in the README."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import crystaldl as cdl
from crystaldl import demo, examples
from crystaldl.errors import DataError, UnknownModelError
from crystaldl.models import registry

ROOT = Path(__file__).parents[1]
NAMES = examples.examples("powder")
DIFFUSE = examples.examples("diffuse")
STEM = examples.examples("stem")
SHIPPED = bool(registry.available("powder"))
needs_model = pytest.mark.skipif(not SHIPPED, reason="the shipped models are not part of this installation")


@pytest.fixture(scope="module")
def make_samples():
    """``data/make_samples.py`` as a module."""
    path = ROOT / "data" / "make_samples.py"
    if not path.exists():
        pytest.skip("not a source checkout")
    spec = importlib.util.spec_from_file_location("make_samples", path)
    module = sys.modules["make_samples"] = importlib.util.module_from_spec(spec)  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["make_samples"]


# ---------------------------------------------------------------------- sample data


def test_every_crystal_system_has_a_sample():
    systems = {phase["crystal_system"] for name in NAMES for phase in examples.example_facts(name)["phases"]}
    assert len(systems) == 7


@pytest.mark.parametrize("name", NAMES)
def test_files_are_those_of_the_manifest(name):
    facts = examples.example_facts(name)
    content = (examples._folder() / facts["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == facts["sha256"]
    assert facts["licence"] == "CC0-1.0" and all(phase["structure"] for phase in facts["phases"])


def test_no_file_is_without_an_entry_and_all_are_small():
    files = {p for p in (examples._folder() / "powder").iterdir() if p.suffix in (".xy", ".xye", ".csv")}
    assert {p.name for p in files} == {Path(examples.example_facts(n)["file"]).name for n in NAMES}
    assert sum(p.stat().st_size for p in files) < 2_000_000


def test_samples_are_made_again_byte_for_byte(make_samples, tmp_path):
    manifest = make_samples.write(tmp_path)
    assert (tmp_path / "MANIFEST.json").read_bytes() == (examples._folder() / "MANIFEST.json").read_bytes()
    for name in [*NAMES, *DIFFUSE, *STEM]:
        content = (tmp_path / manifest["samples"][name]["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == examples.example_facts(name)["sha256"]


def test_structures_have_the_symmetry_they_claim(make_samples):
    from crystaldl.physics.crystals import find_symmetry

    for name, structure in make_samples.STRUCTURES.items():
        numbers, positions = make_samples.cell_content(structure)
        found = find_symmetry(np.array(structure.cell, dtype=float), positions, numbers)
        assert found.number == structure.space_group, name


@pytest.mark.parametrize("name", NAMES)
def test_load_example(name):
    pattern, facts = cdl.load_example(name), examples.example_facts(name)
    assert pattern.name == facts["title"] and not pattern.background_subtracted
    assert pattern.radiation.anode == facts["radiation"][:2] and pattern.radiation.doublet is True
    assert np.all(pattern.intensity >= 0) and np.array_equal(pattern.intensity, np.round(pattern.intensity))
    assert (pattern.sigma is not None) == facts["file"].endswith(".xye")


@pytest.mark.parametrize("name", DIFFUSE)
def test_diffuse_examples_follow_from_their_truth(name):
    """The counts are those of the molecule, order parameters and scale of the JSON file, but for counting noise."""
    from crystaldl.diffuse.disorder import structure_factor
    from crystaldl.diffuse.molecular import Molecule, difference_form_factor

    volume, facts = cdl.load_example(name), examples.example_facts(name)
    content = (examples._folder() / facts["file"]).read_bytes()
    assert hashlib.sha256(content).hexdigest() == facts["sha256"] and len(content) < 2_000_000
    truth = facts["truth"]
    assert volume.name == facts["title"] == truth["title"] and list(volume.lattice) == facts["cell"] == truth["cell"]
    xyz = np.array([row[1:] for row in truth["atoms"]])
    pair = [Molecule([row[0] for row in truth["atoms"]], sign * xyz, truth["b_iso"]) for sign in (1, -1)]
    table = np.array(truth["alpha"])
    order = structure_factor(table[:, :3], table[:, 3], volume.hkl()[volume.mask])
    factor = difference_form_factor(volume, *pair, concentration=truth["concentration"])[volume.mask]
    expected, counts = truth["scale"] * factor * order, volume.data[volume.mask]
    bright = expected > 20
    assert 0.4 < volume.mask.mean() < 0.95 and counts.min() >= 0 and np.array_equal(counts, np.round(counts))
    assert np.mean((counts - expected)[bright] ** 2 / expected[bright]) == pytest.approx(1.0, abs=0.03)
    assert counts.sum() == pytest.approx(expected.sum(), rel=2e-3)


# the strongest line of each from powder diffraction tables, d in Å
STRONGEST = {"halite": 2.820, "silicon": 3.136, "rutile": 3.247, "zincite": 2.476, "quartz": 3.343, "quartz_mo": 3.343,
             "calcite": 3.035, "baddeleyite": 3.164, "rutile_with_corundum": 3.247}  # fmt: skip


@pytest.mark.parametrize(("name", "d"), STRONGEST.items(), ids=STRONGEST)
def test_strongest_line(name, d):
    pattern = cdl.load_example(f"powder/{name}")
    assert abs(pattern.d[np.argmax(pattern.intensity)] - d) < 0.005


@pytest.mark.parametrize("name", ["quartz", "powder/diamond", "", None, 3])
def test_unknown_example(name):
    with pytest.raises(DataError, match="powder/halite, powder/silicon"):
        cdl.load_example(name)


def test_facts_are_a_copy():
    examples.example_facts("powder/quartz")["phases"].clear()
    assert examples.example_facts("powder/quartz")["phases"]


def test_missing_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(examples, "__file__", str(tmp_path / "crystaldl" / "examples.py"))
    with pytest.raises(FileNotFoundError, match="sample data are missing"):
        examples._folder()


# ---------------------------------------------------------------------- demo


@needs_model
def test_demo(tmp_path, capsys):
    start = time.perf_counter()
    assert demo.run(tmp_path / "new" / "folder") == 0
    assert time.perf_counter() - start < 120
    out = capsys.readouterr().out
    folder = tmp_path / "new" / "folder"
    assert {p.name for p in folder.iterdir()} == {"powder.png", "diffuse.png", "strain.png", "summary.txt"}
    assert (folder / "powder.png").read_bytes().startswith(b"\x89PNG") and (
        folder / "powder.png"
    ).stat().st_size > 50_000
    summary = (folder / "summary.txt").read_text(encoding="utf-8")
    assert summary.strip() in out
    for name in NAMES:
        assert examples.example_facts(name)["title"] in summary
    assert registry.default("powder") in summary


def test_demo_without_a_model_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "PACKAGE_FOLDER", tmp_path)
    with pytest.raises(UnknownModelError):
        demo.run(tmp_path / "out")


def test_report():
    report = demo.Report("Title", ("a", "long header"), (("1", "2"), ("three", "4")), ("Remark.",), ())
    assert str(report).splitlines() == [
        "Title", "", "a      long header", "-----  -----------", "1      2", "three  4", "", "Remark.",
    ]  # fmt: skip


def test_titles():
    assert demo._typeset_title("Corundum Al2O3") == "Corundum Al$_{2}$O$_{3}$"
    assert demo._typeset_title("Rutile with 40 % corundum") == "Rutile with 40 % corundum"


# ---------------------------------------------------------------------- README


@needs_model
def test_readme_code_runs(tmp_path, monkeypatch):
    import matplotlib

    matplotlib.use("Agg")
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert blocks
    shutil.copy(examples._folder() / "powder" / "quartz.xy", tmp_path / "scan.xy")
    shutil.copy(examples._folder() / "diffuse" / "rods.h5", tmp_path / "volume.h5")
    shutil.copy(examples._folder() / "stem" / "strained_scan.h5", tmp_path / "scan.h5")
    monkeypatch.chdir(tmp_path)
    space: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), space)


@needs_model
def test_readme_is_finished():
    """Links inside the repository lead somewhere, and every figure is filled in."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links and not [link for link in links if not (ROOT / link).exists()]
    assert "@@" not in text


def test_manifest_is_plain_json():
    manifest = json.loads((examples._folder() / "MANIFEST.json").read_text(encoding="utf-8"))
    assert list(manifest["samples"]) == [*NAMES, *DIFFUSE, *STEM]
