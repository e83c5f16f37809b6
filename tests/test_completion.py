"""Shell completion: the shells themselves are asked what they would offer."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from crystaldl import cli
from crystaldl.commands import completion
from crystaldl.models import registry

SHELLS = ("bash", "zsh", "fish")
COMMANDS = {"models", "classify", "separate", "strain", "train", "evaluate", "demo", "completion"}

# what bash's own completion does: words and the position of the cursor in, COMPREPLY out
ASK = """
source {script}
function ask() {{
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
    local function=$(complete -p crystaldl | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
    "$function" crystaldl "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD-1]}}"
    printf '%s\\n' "${{COMPREPLY[@]}}"
}}
ask crystaldl {words}
"""


def test_methods_are_those_of_the_tasks():
    from crystaldl.diffuse.separate import METHODS as SEPARATE
    from crystaldl.powder.classify import METHODS as CLASSIFY
    from crystaldl.stem.disks import METHODS as DISKS

    assert {"classify": tuple(CLASSIFY), "separate": SEPARATE, "strain": DISKS} == completion.METHODS


def test_a_starting_shell_does_not_wait_for_torch():
    pytest.importorskip("shtab")
    code = "import sys; from crystaldl import cli; cli.main(['completion', 'bash']); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=True, timeout=120)


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """Script of each shell, as the command prints it."""
    pytest.importorskip("shtab")
    folder = tmp_path_factory.mktemp("completion")
    for shell in SHELLS:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert cli.main(["completion", shell]) == 0
        (folder / shell).write_text(out.getvalue(), encoding="utf-8")
    return folder


def ask_bash(scripts: Path, words: str, cwd: Path | None = None) -> set[str]:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    code = ASK.format(script=scripts / "bash", words=words)
    done = subprocess.run([bash, "--norc", "-c", code], capture_output=True, text=True, cwd=cwd, timeout=60)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ('""', COMMANDS),
        ("cl", {"classify"}),
        ('train ""', {"powder", "diffuse", "stem"}),
        ("train powder --si", {"--size"}),
        ('train powder --size ""', {"smoke", "full"}),
        ('classify --method ""', {"auto", "network", "npcnn", "indexing"}),
        ("classify --wavelength Cu", {"CuKa", "CuKa1", "CuKb"}),
        ('classify --model ""', set(registry.available("powder"))),
        ('separate --method ""', {"auto", "physics", "dsfunet", "unrolled"}),
        ("separate --laue 4/", {"4/m", "4/mmm"}),
        ("separate --radiation neu", {"neutron"}),
        ('strain --method ""', {"fcunet", "correlation"}),
        ('strain --device ""', {"auto", "cpu", "cuda", "mps"}),
        ("strain --mem", {"--memmap"}),
        ('completion ""', set(SHELLS)),
    ],
)
def test_bash_completes(scripts, words, expected):
    assert ask_bash(scripts, words) == expected


def test_bash_completes_files_and_folders(scripts, tmp_path):
    (tmp_path / "scan.xrdml").touch()
    (tmp_path / "scans").mkdir()
    assert ask_bash(scripts, "classify sc", tmp_path) == {"scan.xrdml", "scans"}
    assert ask_bash(scripts, "strain scan.h5 --out sc", tmp_path) == {"scans"}


def test_every_option_is_known_to_every_shell(scripts):
    options = {
        option for command in COMMANDS - {"train", "evaluate"} for option in re.findall(r"--[a-z-]+", _help(command))
    }
    assert len(options) > 15
    for shell in SHELLS:
        text = (scripts / shell).read_text(encoding="utf-8")
        missing = {o for o in options if o not in text and f"-l {o[2:]}" not in text}
        assert not missing, shell


def _help(command: str) -> str:
    parser = cli._parser()
    (action,) = (a for a in parser._actions if a.dest == "command")
    return action.choices[command].format_usage()


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_shell_understands_its_script(scripts, shell):
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"{shell} is not installed")
    done = subprocess.run([program, "-n", str(scripts / shell)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_fish_completes(scripts):
    fish = shutil.which("fish")
    if fish is None:
        pytest.skip("fish is not installed")
    code = f"source {scripts / 'fish'}; complete -C 'crystaldl strain --method '"
    done = subprocess.run([fish, "-N", "-c", code], capture_output=True, text=True, timeout=60)
    assert {line.split("\t")[0] for line in done.stdout.splitlines()} == {"fcunet", "correlation"}


def test_without_the_library(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["completion", "bash"]) == 2
    error = capsys.readouterr().err
    assert "shtab" in error and error.count("\n") == 1


def test_unknown_shell(capsys):
    with pytest.raises(SystemExit) as leave:
        cli.main(["completion", "csh"])
    assert leave.value.code == 2 and "invalid choice: 'csh'" in capsys.readouterr().err
