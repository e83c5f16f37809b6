"""What a training run leaves beside its checkpoint: the log of its figures, and what the person who ran it noted."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

__all__ = ["LOG_FILE", "NOTES_FILE", "learning_curve", "logged", "noted"]

#: one JSON object a line, see `crystaldl.training.loop`; and one object of anything worth keeping (hardware, commit)
LOG_FILE, NOTES_FILE = "log.jsonl", "facts.json"


def noted(run: Path) -> dict:
    """What was noted in a run's folder; nothing where there is no such file."""
    file = Path(run) / NOTES_FILE
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def logged(run: Path) -> list[dict]:
    """The rows of a run's log, first to last; none where there is no log."""
    file = Path(run) / LOG_FILE
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def learning_curve(rows: Iterable[dict], unit: str, names: Iterable[str]) -> list[dict]:
    """Figures ``names`` of each evaluation of a log, with the number of samples seen under the name ``unit``."""
    names = tuple(names)
    return [
        {unit: row["samples"]} | {name: round(row["figures"][name], 4) for name in names if name in row["figures"]}
        for row in rows if row["figures"]
    ]  # fmt: skip
