"""The command line: what it prints, and one sentence instead of a traceback for bad input."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import numpy as np
import pytest

import crystaldl
from crystaldl import cli
from crystaldl.commands import common
from crystaldl.models.registry import registry

SHIPPED = bool(registry())
needs_weights = pytest.mark.skipif(not SHIPPED, reason="the shipped models are not part of this installation")


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        code = cli.main([str(a) for a in arguments])
    except SystemExit as leave:
        code = leave.code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.fixture
def scan(tmp_path):
    """NaCl-like: Gaussian lines of a face-centred cubic lattice with a = 5.64 Å under Cu Kα1, on a flat background."""
    two_theta = np.arange(10, 90, 0.02)
    intensity = np.full_like(two_theta, 20.0)
    lines = {(1, 1, 1): 9, (2, 0, 0): 100, (2, 2, 0): 62, (3, 1, 1): 2, (2, 2, 2): 18, (4, 0, 0): 7, (4, 2, 0): 17}
    for hkl, strength in lines.items():
        d = 5.64 / np.linalg.norm(hkl)
        centre = 2 * np.degrees(np.arcsin(1.540593 / (2 * d)))
        intensity += 10 * strength * np.exp(-(((two_theta - centre) / 0.06) ** 2))
    path = tmp_path / "halite.xy"
    np.savetxt(path, np.c_[two_theta, np.round(intensity)], fmt="%.4f")
    return path


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, f"crystaldl {crystaldl.__version__}\n")


def test_as_a_module():
    command = [sys.executable, "-m", "crystaldl.cli", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.startswith("crystaldl ")


@pytest.mark.parametrize("arguments", [[], ["fly"], ["classify"], ["train"], ["train", "powder", "--minutes", "soon"]])
def test_usage_errors(capsys, arguments):
    code, out, err = run(capsys, *arguments)
    assert code == 2 and not out and "usage: crystaldl" in err


def test_models(capsys):
    code, out, err = run(capsys, "models")
    assert code == 0 and not err
    for name, card in registry().items():
        assert name in out and f"{card.parameters:,}" in out
    code, out, _ = run(capsys, "models", "--json")
    assert code == 0 and {card["name"] for card in json.loads(out)} == set(registry())


def test_models_table_fits_a_terminal(capsys):
    """Long figures go on below, and those of a model itself stand before those of what it is compared with."""
    _, out, _ = run(capsys, "models")
    assert max(map(len, out.splitlines())) <= cli.WIDTH == 120
    assert "py4DSTEM" not in out or not SHIPPED


def parsers(parser, name="crystaldl"):
    yield name, parser
    for action in parser._actions:
        if hasattr(action, "choices") and isinstance(action.choices, dict):
            for word, below in action.choices.items():
                yield from parsers(below, f"{name} {word}")


@pytest.mark.parametrize("name", [name for name, _ in parsers(cli._parser()) if " " in name])
def test_every_command_shows_an_example_that_it_understands(name, monkeypatch):
    parser = cli._parser()
    text = dict(parsers(parser))[name].format_help()
    example = re.search(r"Examples?:\s(.*)", text, flags=re.DOTALL).group(1)
    words = re.sub(r"[\s\S]*?(?=crystaldl )", "", example, count=1).split(">")[0].split()
    assert words[0] == "crystaldl"
    parser.parse_args(words[1:])  # SystemExit when it does not


def test_models_table(capsys, tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    from crystaldl.models.registry import write_model

    figures = [{"data": "RRUFF", "metric": "system top-1", "value": 0.71234, "command": "x"}]
    fields = {"task": "powder", "title": "t", "architecture": "A", "arguments": {}, "parameters": 1234567}
    write_model({"a": torch.zeros(9)}, fields | {"name": "powder-a-v1", "default": True, "figures": figures}, tmp_path)
    write_model({"a": torch.zeros(9)}, fields | {"name": "powder-b-v1"}, tmp_path)
    monkeypatch.setattr(cli, "registry", lambda: registry(tmp_path))
    _, out, _ = run(capsys, "models")
    rows = out.splitlines()
    assert rows[1].split()[:4] == ["powder-a-v1", "*", "powder", "1,234,567"] and "system top-1 0.712 (RRUFF)" in rows[1]
    assert rows[2].startswith("powder-b-v1  ") and len({row.index("MB") for row in rows[1:3]}) == 1


def test_json_is_strict(capsys):
    common.write_json({"a": (np.float32("nan"), np.arange(2)), "b": float("inf"), "c": "x"})
    assert json.loads(capsys.readouterr().out, parse_constant=pytest.fail) == {"a": [None, [0, 1]], "b": None, "c": "x"}


@needs_weights
class TestClassify:
    def test_table(self, capsys, scan):
        code, out, err = run(capsys, "classify", scan, "--wavelength", "CuKa1", "--device", "cpu")
        header, row = out.splitlines()
        assert code in (0, 1) and not err
        assert header.split() == ["file", "system", "probability", "space", "group", "probability", "confident", "looks", "like"]
        found = re.search(r"halite\.xy +\w+ +[01]\.\d\d +\S.* \(\d+\) +[01]\.\d\d +(yes|no) +Halite$", row)
        assert found and (found[1] == "yes") == (code == 0)

    def test_json_and_exit_code(self, capsys, scan):
        code, out, _ = run(capsys, "classify", scan, "--wavelength", "1.540593", "--device", "cpu", "--json")
        (entry,) = json.loads(out)
        assert entry["file"] == str(scan) and 1 <= entry["space_group"] <= 230
        assert entry["crystal_system"] and code == (0 if entry["confident"] else 1)

    def test_bad_files_do_not_stop_the_rest(self, capsys, scan, tmp_path):
        (tmp_path / "empty.xy").write_text("")
        (tmp_path / "prose.xy").write_text("Dear diary,\nnothing diffracted today.\n")
        files = [tmp_path / "empty.xy", scan, tmp_path / "prose.xy", tmp_path / "nowhere.xy"]
        arguments = ("classify", *files, "--wavelength", "CuKa", "--device", "cpu")
        code, out, err = run(capsys, *arguments)
        assert code == 2 and len(out.splitlines()) == 2 and "halite.xy" in out
        lines = err.splitlines()
        assert len(lines) == 3 and all(line.startswith("crystaldl: error: ") for line in lines)
        for name, line in zip(("empty.xy", "prose.xy", "nowhere.xy"), lines, strict=True):
            assert name in line
        code, out, _ = run(capsys, *arguments, "--json")
        assert code == 2 and ["error" in entry for entry in json.loads(out)] == [True, False, True, True]

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "wavelength"),
            (["--wavelength", "unobtainiumKa"], "unobtainiumKa"),
            (["--wavelength", "-1.54"], "wavelength"),
            (["--wavelength", "CuKa", "--model", "powder-npcnn"], "known"),
            (["--wavelength", "CuKa", "--method", "guess"], "guess"),
            (["--wavelength", "CuKa", "--device", "gpu"], "gpu"),
        ],
    )
    def test_bad_arguments(self, capsys, scan, arguments, words):
        code, out, err = run(capsys, "classify", scan, *arguments)
        assert code == 2 and not out
        assert len(err.splitlines()) == 1 and err.startswith("crystaldl: error: ") and words in err

    def test_implausible_wavelength_warns(self, capsys, scan):
        code, _, err = run(capsys, "classify", scan, "--wavelength", "0.15406", "--device", "cpu")
        assert code in (0, 1, 2) and "crystaldl: " in err and "wavelength" in err


class TestTrain:
    def test_help(self, capsys):
        code, out, _ = run(capsys, "train", "powder", "--help")
        assert code == 0
        for option in ("--minutes", "--max-steps", "--device", "--resume", "--out", "--seed", "--size", "--model", "--shared"):
            assert option in out

    def test_resume_from_nothing(self, capsys, tmp_path):
        pytest.importorskip("lightning")
        pytest.importorskip("crystaldl.powder.recipe.training")
        arguments = ("--size", "smoke", "--max-steps", "2", "--device", "cpu", "--out", tmp_path)
        code, _, err = run(capsys, "train", "powder", *arguments, "--resume", tmp_path / "nowhere")
        assert code == 2 and "holds no checkpoint" in err.splitlines()[-1]
        with pytest.raises(FileNotFoundError):
            cli.main(["--traceback", "train", "powder", *map(str, arguments), "--resume", str(tmp_path / "nowhere")])


# ---------------------------------------------------------------------- diffuse, stem


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("separate", "nothing.h5"), "nothing.h5 does not exist"),
        (("separate", "PLANE", "--method", "magic"), "method is 'magic', expected one of"),
        (("separate", "PLANE", "--laue", "m-3m"), "laue is 'm-3m'"),
        (("separate", "PLANE", "--support", "-1"), "support is -1.0, expected a length"),
        (("strain", "nothing.h5"), "nothing.h5 does not exist"),
        (("strain", "SCAN", "--method", "magic"), "magic"),
        (("strain", "SCAN", "--probe", "nothing.npy"), "probe is 'nothing.npy', which does not exist"),
    ],
)
def test_bad_input_of_the_wings(capsys, tmp_path, arguments, text):
    from crystaldl.examples import _folder

    files = {"PLANE": _folder() / "diffuse" / "hk0_poisson.h5", "SCAN": _folder() / "stem" / "strained_scan.h5"}
    code = cli.main([*(str(files.get(a, a)) for a in arguments), "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert code == 2 and text in error and error.count("\n") == 1


def test_separate_writes_what_it_says(capsys, tmp_path):
    from crystaldl.diffuse.separation import Separation
    from crystaldl.examples import _folder

    plane = str(_folder() / "diffuse" / "hk0_poisson.h5")
    code = cli.main(["separate", plane, "--out", str(tmp_path), "--laue", "112/m", "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert code == 0 and summary["applies"] and len(summary["alpha"]) >= 6
    assert {p.name for p in tmp_path.iterdir()} == {"separation.h5", "separation.png", "alpha.csv", "alpha.png", "summary.json"}
    assert Separation.from_file(tmp_path / "separation.h5").r_factor == pytest.approx(summary["r_factor"])


def test_strain_writes_what_it_says(capsys, tmp_path):
    from crystaldl.examples import _folder

    scan = str(_folder() / "stem" / "strained_scan.h5")
    code = cli.main(["strain", scan, "--method", "correlation", "--out", str(tmp_path), "--json"])
    summary = json.loads(capsys.readouterr().out)
    assert code == 0 and summary["disks"] > 2000 and summary["positions_fitted"] == 360
    assert {p.name for p in tmp_path.iterdir()} >= {"bragg.h5", "strain.h5", "strain.png", "disks.png", "summary.json"}
