"""The sample data as users reach them: by name, as files, from the command line, and from an installed package."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

import crystaldl as cdl
from crystaldl import examples
from crystaldl.errors import DataError

NAMES = examples.examples()


def test_names_by_technique():
    parts = [examples.examples(technique) for technique in ("powder", "diffuse", "stem")]
    assert all(parts) and sum(parts, []) == NAMES
    assert all(name.partition("/")[0] in ("powder", "diffuse", "stem") for name in NAMES)


@pytest.mark.parametrize("technique", ["", "Powder", "powder/", 3, [], {}])
def test_unknown_technique(technique):
    with pytest.raises(DataError, match="technique is .*; expected one of powder, diffuse, stem"):
        examples.examples(technique)


@pytest.mark.parametrize("name", NAMES)
def test_file_is_the_one_of_the_manifest(name):
    path = examples.example_file(name)
    assert isinstance(path, Path) and path.is_absolute()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == examples.example_facts(name)["sha256"]


@pytest.mark.parametrize(
    "name", ["quartz", "powder/../MANIFEST", "/etc/passwd", "", None, 3, [], {}, b"powder/quartz", np.nan]
)
@pytest.mark.parametrize("function", [cdl.load_example, examples.example_file, examples.example_facts])
def test_unknown_name(function, name):
    with pytest.raises(DataError, match="name is .*, which is no sample; expected one of powder/halite"):
        function(name)


def test_file_and_example_are_the_same():
    one, other = cdl.load_example("powder/quartz"), cdl.PowderPattern.from_file(examples.example_file("powder/quartz"))
    assert np.array_equal(one.intensity, other.intensity) and np.array_equal(one.two_theta, other.two_theta)


@pytest.mark.parametrize(
    ("name", "kind"),
    [("powder/halite", "PowderPattern"), ("diffuse/rods", "DiffuseVolume"), ("stem/strained_scan", "DataCube")],
)
def test_each_technique_gives_its_object(name, kind):
    assert isinstance(cdl.load_example(name), getattr(cdl, kind))


def test_installed_samples_come_first(tmp_path, monkeypatch):
    """A wheel holds the samples as ``crystaldl/samples``; a checkout has them in ``data/`` beside the package."""
    package, checkout = tmp_path / "crystaldl", tmp_path / "data"
    monkeypatch.setattr(examples, "__file__", str(package / "examples.py"))
    checkout.mkdir(parents=True)
    (checkout / "MANIFEST.json").write_text("{}")
    assert examples._folder() == checkout
    (package / "samples").mkdir(parents=True)
    (package / "samples" / "MANIFEST.json").write_text("{}")
    assert examples._folder() == package / "samples"
