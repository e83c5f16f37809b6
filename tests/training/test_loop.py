"""The training loop: it learns, stops in time, and a resumed run equals an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from crystaldl.errors import ModelIntegrityError
from crystaldl.training.checkpoint import SHARD_BYTES, find_checkpoint, read_checkpoint, write_checkpoint
from crystaldl.training.loop import TrainOptions, learning_rate_factor, load_checkpoint_weights, train

pytest.importorskip("lightning")


class Line:
    """Fit y = sum(x) with a network that has dropout and batch statistics: both must survive a resume."""

    name = "line"

    def __init__(self, evaluation_seconds: float = 0.0, hook=None, nan_at=()) -> None:
        self.evaluation_seconds, self.hook, self.nan_at = evaluation_seconds, hook, nan_at
        self.steps: list[int] = []

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))

    def batch(self, step: int, rank: int, world: int, device: torch.device) -> dict:
        self.steps.append(step)
        generator = torch.Generator().manual_seed(1000 * step + rank)
        x = torch.randn(32, 4, generator=generator)
        if step in self.nan_at:
            x[0, 0] = torch.nan
        if self.hook:
            self.hook(step)
        return {"x": x.to(device), "y": x.sum(1, keepdim=True).to(device)}

    def loss(self, model: nn.Module, batch: dict):
        loss = nn.functional.mse_loss(model(batch["x"]), batch["y"])
        return loss, {"mse": loss}

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=1e-2)

    def evaluate(self, model: nn.Module, device: torch.device) -> dict:
        assert not model.training
        time.sleep(self.evaluation_seconds)
        x = torch.randn(256, 4, generator=torch.Generator().manual_seed(7)).to(device)
        return {"rms": float((model(x) - x.sum(1, keepdim=True)).square().mean().sqrt())}


def options(out: Path, **changes) -> TrainOptions:
    base = {"out": out, "max_steps": 20, "device": "cpu", "threads": 1, "warmup_steps": 5, "progress": False}
    return TrainOptions(**(base | changes))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("prefetch", [0, 3])
def test_resume_is_exact(tmp_path, prefetch):
    whole = train(Line(), options(tmp_path / "whole"))
    half = train(Line(), options(tmp_path / "parts", session_steps=10, prefetch=prefetch))
    assert (half.steps, half.finished, whole.steps, whole.finished) == (10, False, 20, True)
    rest = train(Line(), options(tmp_path / "parts", resume=half.checkpoint, prefetch=prefetch))
    assert rest.steps == 20 and rest.figures == whole.figures
    groups, state = read_checkpoint(rest.checkpoint)
    wanted, _ = read_checkpoint(whole.checkpoint)
    assert state["samples"] == 20 * 32
    for group in ("model", "ema", "optimizer"):
        assert same(groups[group], wanted[group]), group


def test_it_learns_and_logs(tmp_path):
    before = train(Line(), options(tmp_path / "a", max_steps=1))
    result = train(Line(), options(tmp_path / "b", max_steps=400, evaluate_every_minutes=0.001, seed=3))
    assert result.figures["rms"] < 0.5 * before.figures["rms"]
    lines = [json.loads(line) for line in (tmp_path / "b" / "log.jsonl").read_text().splitlines()]
    assert len(lines) > 1 and lines[-1]["step"] == 400 and lines[-1]["samples"] == 400 * 32
    assert lines[-1]["figures"] == result.figures and lines[-1]["losses"]["mse"] > 0


def test_steps_are_asked_for_in_order(tmp_path):
    task = Line()
    train(task, options(tmp_path, prefetch=2))
    assert task.steps == sorted(task.steps) and task.steps[:20] == list(range(20))


def test_stops_in_time(tmp_path):
    start = time.monotonic()
    task = Line(evaluation_seconds=0.3)
    run = options(tmp_path, max_steps=None, minutes=3 / 60, evaluate_every_minutes=1 / 60)
    result = train(task, run)
    # the allowance is for a busy machine, not part of the promise
    assert result.finished and 1.5 < time.monotonic() - start < 8
    again = train(task, options(tmp_path, max_steps=None, minutes=3 / 60, resume=tmp_path))
    assert again.finished and again.steps == result.steps and again.checkpoint == tmp_path


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint(tmp_path, number):
    task = Line(hook=lambda step: os.kill(os.getpid(), number) if step == 7 else None)
    result = train(task, options(tmp_path))
    assert result.interrupted and not result.finished and result.steps == 8
    whole = train(Line(), options(tmp_path / "whole"))
    rest = train(Line(), options(tmp_path, resume=tmp_path))
    assert same(load_checkpoint_weights(rest.checkpoint), load_checkpoint_weights(whole.checkpoint))


def test_non_finite_gradients_are_left_out(tmp_path, caplog):
    result = train(Line(nan_at=(4,)), options(tmp_path))
    # batch statistics saw the NaN; the weights did not
    weights = load_checkpoint_weights(result.checkpoint, ema=False)
    assert all(torch.isfinite(v).all() for k, v in weights.items() if "running" not in k)
    assert "not finite" in caplog.text
    with pytest.raises(FloatingPointError, match="in a row"):
        train(Line(nan_at=range(100)), options(tmp_path / "b", max_steps=100))


def test_learning_rate(tmp_path):
    run = options(tmp_path, warmup_steps=10, final_lr_fraction=0.1)
    assert learning_rate_factor(run, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate_factor(run, 100, 0.5) == pytest.approx(0.55)
    assert learning_rate_factor(run, 100, 1.0) == pytest.approx(0.1)


def test_start_weights(tmp_path):
    first = train(Line(), options(tmp_path / "a", max_steps=200))
    second = train(Line(), options(tmp_path / "b", max_steps=1, init=first.checkpoint, seed=9))
    assert second.figures["rms"] == pytest.approx(first.figures["rms"], rel=0.2)


def test_bad_options(tmp_path):
    with pytest.raises(ValueError, match="neither minutes nor max_steps"):
        TrainOptions(out=tmp_path)
    with pytest.raises(ValueError, match="max_steps=-1"):
        options(tmp_path, max_steps=-1)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint"):
        train(Line(), options(tmp_path, resume=tmp_path / "nowhere"))
    done = train(Line(), options(tmp_path, max_steps=2))
    with pytest.raises(ValueError, match="seed=5 differs"):
        train(Line(), options(tmp_path, resume=done.checkpoint, seed=5))
    other = Line()
    other.name = "other"
    with pytest.raises(ModelIntegrityError, match="'line', not 'other'"):
        train(other, options(tmp_path, resume=done.checkpoint))


class TestCheckpointFiles:
    def tensors(self) -> dict:
        generator = torch.Generator().manual_seed(0)
        return {
            "big": torch.randn(3, 2_000_000, generator=generator),
            "half": torch.randn(5, 7, generator=generator).half(),
            "count": torch.tensor(3),
            "empty": torch.zeros(0, 4),
        }

    def test_round_trip_in_small_files(self, tmp_path):
        where = write_checkpoint(tmp_path / "c", {"model": self.tensors()}, {"step": 1})
        assert all(p.stat().st_size < 16_000_000 for p in where.iterdir()) and SHARD_BYTES < 16_000_000
        groups, state = read_checkpoint(tmp_path / "c")
        assert state["step"] == 1 and same(groups["model"], self.tensors())
        assert all(groups["model"][k].dtype == v.dtype for k, v in self.tensors().items())

    def test_interrupted_write_leaves_the_old_one(self, tmp_path, monkeypatch):
        write_checkpoint(tmp_path / "c", {"model": {"a": torch.ones(2)}}, {"step": 1})

        def fail(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("crystaldl.training.checkpoint.save_file", fail)
            write_checkpoint(tmp_path / "c", {"model": {"a": torch.zeros(2)}}, {"step": 2})
        assert read_checkpoint(tmp_path / "c")[1]["step"] == 1
        (tmp_path / "c").rename(tmp_path / "c.old")  # between the two renames
        assert find_checkpoint(tmp_path / "c") == tmp_path / "c.old"
        write_checkpoint(tmp_path / "c", {"model": {"a": torch.zeros(2)}}, {"step": 2})
        assert read_checkpoint(tmp_path / "c")[1]["step"] == 2 and not (tmp_path / "c.old").exists()

    def test_truncated_file(self, tmp_path):
        where = write_checkpoint(tmp_path / "c", {"ema": {"a": torch.ones(100)}}, {"step": 1})
        file = next(where.glob("ema*"))
        file.write_bytes(file.read_bytes()[:-10])
        with pytest.raises(ModelIntegrityError, match="ema-00000"):
            load_checkpoint_weights(where)


@pytest.mark.slow
def test_two_processes_by_torchrun(tmp_path):
    """DDP on the CPU: both processes end with the same weights, and a resumed run equals a whole one."""
    script = tmp_path / "run.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_loop import Line, options, train\n"
        "for run in sys.argv[1:]:\n"
        "    out, resume, session = run.split(':')\n"
        "    train(Line(), options(Path(out), resume=Path(resume) if resume else None, session_steps=int(session)))\n"
    )
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([root, *sys.path])}

    def launch(*runs: str) -> None:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
        subprocess.run([*command, *runs], check=True, env=environment, timeout=240, capture_output=True, cwd=tmp_path)

    launch("whole::100", "parts::10")
    launch("parts:parts:100")
    whole, state = read_checkpoint(tmp_path / "whole")
    parts, _ = read_checkpoint(tmp_path / "parts")
    assert state["world"] == 2 and state["samples"] == 20 * 64
    assert same(whole["model"], parts["model"]) and same(whole["ema"], parts["ema"])
