"""``crystaldl completion``: what bash, zsh or fish need to complete options, values and file names.

The script is written from the parser by shtab, once: no Python runs when a key is pressed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..models.registry import available
from .common import DONE

SHELLS = ("bash", "zsh", "fish")
_DEVICES = ("auto", "cpu", "cuda", "mps")
#: METHODS of the tasks: said again, since to import these loads torch, and a shell that starts should not wait for it
METHODS = {
    "classify": ("auto", "network", "npcnn", "indexing"),
    "separate": ("auto", "physics", "dsfunet", "unrolled"),
    "strain": ("fcunet", "correlation"),
}
_HOW = """\
Examples:
  bash   crystaldl completion bash > ~/.local/share/bash-completion/completions/crystaldl
  zsh    crystaldl completion zsh > ~/.zfunc/_crystaldl     (in ~/.zshrc, before compinit: fpath+=(~/.zfunc))
  fish   crystaldl completion fish > ~/.config/fish/completions/crystaldl.fish
For one session of bash: eval "$(crystaldl completion bash)"
"""


def add_completion(commands: Any, whole: argparse.ArgumentParser) -> None:
    """Add ``completion`` to the subcommands of a parser, which it is going to describe."""
    parser = commands.add_parser(
        "completion",
        help="completion of this command for bash, zsh or fish",
        description="Write the script by which a shell completes commands, options, values and file names.",
        epilog=_HOW,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=SHELLS, help="the shell that is to complete")
    parser.set_defaults(run=lambda args: _completion(args.shell, whole))


def _completion(shell: str, parser: argparse.ArgumentParser) -> int:
    try:
        import shtab
    except ImportError:
        raise ImportError("completion needs the package shtab, which is not installed: pip install shtab") from None
    for command, part in _subparsers(parser).items():
        _name_values(part, _values(command))
        part.description = None  # the line of help is enough beside a command
    sys.stdout.write(shtab.complete(parser, shell=shell))
    return DONE


def _subparsers(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Every command with its parser: ``{"classify": …, "train powder": …}``."""
    found = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, part in action.choices.items():
                found[name] = part
                found |= {f"{name} {below}": p for below, p in _subparsers(part).items()}
    return found


def _name_values(parser: argparse.ArgumentParser, values: dict[str, Sequence[str]]) -> None:
    """Tell shtab what an option takes: one of a few words, a file or a folder."""
    import shtab

    for action in parser._actions:
        words = next((values[name] for name in action.option_strings if name in values), None)
        if words is not None:
            action.choices = list(words)
        elif action.type is Path or "--probe" in action.option_strings:
            folder = action.metavar == "DIR" or action.dest == "out"
            action.complete = shtab.DIRECTORY if folder else shtab.FILE  # type: ignore[attr-defined]


def _values(command: str) -> dict[str, Sequence[str]]:
    """The words that the options of a command take, where the parser itself leaves them open."""
    values: dict[str, Sequence[str]] = {"--device": _DEVICES}
    if command in METHODS:
        values["--method"] = METHODS[command]
    if command == "classify":
        from ..physics.wavelengths import known_names

        return values | {"--model": available("powder"), "--wavelength": known_names()}
    if command == "separate":
        from ..diffuse.symmetry import LAUE_CLASSES

        words = {"--model": available("diffuse"), "--laue": LAUE_CLASSES}
        return values | words | {"--plane": ["hk0", "h0l", "0kl", "hhl"]}
    if command == "strain":
        return values | {"--model": available("stem")}
    return values
