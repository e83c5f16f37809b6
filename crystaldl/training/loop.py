"""The one training loop: time budget, averaged weights, checkpoints, exact resume, several devices.

A thin layer over Lightning Fabric. The state of a run is its step, its weights and its optimizer: batches and dropout
are functions of ``(seed, step, rank)``, so nothing about random generators has to be stored.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import os
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from crystaldl import __version__

from ..errors import ModelIntegrityError
from ..physics.device import resolve_device
from .checkpoint import (
    load_checkpoint_weights,
    pack_optimizer,
    read_checkpoint,
    unpack_optimizer,
    write_checkpoint,
)
from .options import Task, TrainOptions, TrainResult
from .records import LOG_FILE

__all__ = ["Task", "TrainOptions", "TrainResult", "load_checkpoint_weights", "train"]

log = logging.getLogger(__name__)

BAD_STEPS_ALLOWED = 50  # steps in a row with a non-finite gradient before the run gives up


def train(task: Task, options: TrainOptions) -> TrainResult:
    """Train `task` within the budget of `options`; see `TrainOptions` for what can be asked.

    SIGINT and SIGTERM end the session after the running step, with a checkpoint; a second signal acts as usual.

    Raises
    ------
    ModelIntegrityError
        The checkpoint or the start weights do not fit.
    FloatingPointError
        The gradient has not been finite for many steps.
    """
    threads = torch.get_num_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        with _Signals() as signals:
            return _Run(task, options, signals).run()
    finally:
        torch.set_num_threads(threads)


def _seed(*numbers: int) -> None:
    """Seed torch's global generators (all devices) from a tuple of integers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def learning_rate_factor(options: TrainOptions, step: int, progress: float) -> float:
    """Learning rate relative to its base, before `step` (counted from 0) at `progress` (0 to 1)."""
    warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    fall = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    low = options.final_lr_fraction
    return warm * (low + (1 - low) * fall[options.schedule])


class _Signals:
    """Turns the first SIGINT or SIGTERM into a flag; does nothing outside the main thread, which alone may."""

    def __init__(self) -> None:
        self.caught = False
        self.raise_now = False  # during an evaluation, which may be long and changes no state
        self._before: dict = {}

    def __enter__(self) -> _Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.caught = True
        self.__exit__()
        if self.raise_now:
            raise KeyboardInterrupt


class _Batches:
    """Batches in order of their step, `ahead` of them made in a background thread."""

    def __init__(self, task: Task, step: int, rank: int, world: int, device: torch.device, ahead: int) -> None:
        self._make = lambda number: self._batch(task, number, rank, world, device)
        self._next = step
        self._ahead = ahead
        self._queue: deque = deque()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches") if ahead > 0 else None

    @staticmethod
    @torch.no_grad()
    def _batch(task: Task, step: int, rank: int, world: int, device: torch.device) -> dict:
        return task.batch(step, rank, world, device)

    def __next__(self) -> dict:
        if self._pool is None:
            self._next += 1
            return self._make(self._next - 1)
        while len(self._queue) <= self._ahead:
            self._queue.append(self._pool.submit(self._make, self._next))
            self._next += 1
        return self._queue.popleft().result()

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


class _Run:
    """One session of a run."""

    def __init__(self, task: Task, options: TrainOptions, signals: _Signals) -> None:
        self.task, self.options, self.signals = task, options, signals
        self.started = time.monotonic()
        self.step = self.first_step = self.samples = self.bad_steps = 0
        self.elapsed_before = 0.0
        self.longest = {"evaluate": 0.0, "checkpoint": 0.0, "step": 0.0}
        self.figures: dict[str, float] = {}
        self.sums: dict[str, Tensor | float] = {}
        self.summed = self.samples_at_log = 0
        self.training_seconds = 0.0
        self._build()

    # ------------------------------------------------------------------ set-up

    def _build(self) -> None:
        options = self.options
        self.fabric = _fabric(options)
        self.fabric.launch()
        self.device, self.world = self.fabric.device, self.fabric.world_size
        _seed(options.seed)
        model = self.task.model()
        if options.init is not None and options.resume is None:
            _load(model, load_checkpoint_weights(options.init), options.init)
        self.average = copy.deepcopy(model).to(self.device).eval().requires_grad_(False)
        self.wrapped, self.optimizer = self.fabric.setup(model, self.task.optimizer(model))
        self.model = self.wrapped.module
        self.base_rates = [group["lr"] for group in self.optimizer.param_groups]
        if options.resume is not None:
            self._resume(Path(options.resume))
        self.first_step = self.step
        self.samples_at_log = self.samples
        self.last = dict.fromkeys(("evaluate", "checkpoint"), time.monotonic())

    def _resume(self, path: Path) -> None:
        groups, state = read_checkpoint(path)
        if state["task"] != self.task.name:
            raise ModelIntegrityError(f"checkpoint {path} is of the task {state['task']!r}, not {self.task.name!r}.")
        if state["seed"] != self.options.seed:
            raise ValueError(f"seed={self.options.seed} differs from seed={state['seed']} of the checkpoint {path}.")
        if state["world"] != self.world:
            log.warning("the checkpoint is of %d process(es), this session has %d", state["world"], self.world)
        _load(self.model, groups["model"], path)
        _load(self.average, groups["ema"], path)
        unpack_optimizer(self.optimizer.optimizer, groups["optimizer"], state["optimizer"])
        self.step, self.samples, self.elapsed_before = state["step"], state["samples"], state["elapsed"]
        self.longest.update(state["longest"])
        self.figures = state["figures"]

    # ------------------------------------------------------------------ time

    @property
    def session_seconds(self) -> float:
        return time.monotonic() - self.started

    @property
    def elapsed(self) -> float:
        return self.elapsed_before + self.session_seconds

    def _usable(self, minutes: float) -> float:
        """Seconds of a budget that are left for training and the evaluations along the way."""
        budget = 60 * minutes
        closing = 1.1 * self.longest["evaluate"] if self.longest["evaluate"] else 0.05 * budget
        reserve = closing + self.longest["checkpoint"] + self.longest["step"]
        return budget - min(reserve, 0.5 * budget)

    def _progress(self) -> float:
        options = self.options
        steps = self.step / options.max_steps if options.max_steps else 0.0
        seconds = self.elapsed / self._usable(options.minutes) if options.minutes else 0.0
        return min(1.0, max(steps, seconds))

    def _session_over(self) -> bool:
        options = self.options
        done = options.session_steps is not None and self.step - self.first_step >= options.session_steps
        return done or bool(options.session_minutes and self.session_seconds >= self._usable(options.session_minutes))

    def _decide(self) -> dict[str, float]:
        """What to do now. Rank 0's clock counts for all; a signal to any process stops all."""
        now = time.monotonic()
        due = {
            "evaluate": now - self.last["evaluate"] >= 60 * self.options.evaluate_every_minutes,
            "checkpoint": now - self.last["checkpoint"] >= 60 * self.options.checkpoint_every_minutes,
        }
        decision = {"progress": self._progress(), "leave": float(self._session_over())}
        decision |= {name: float(flag) for name, flag in due.items()}
        decision["signal"] = float(self.signals.caught)
        if self.world > 1:
            mine = [v if self.fabric.global_rank == 0 or k == "signal" else 0.0 for k, v in decision.items()]
            shared = torch.tensor(mine, device=self.device)
            torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
            decision = dict(zip(decision, shared.tolist(), strict=True))
        return decision

    # ------------------------------------------------------------------ the loop

    def run(self) -> TrainResult:
        options, rank = self.options, self.fabric.global_rank
        bar = tqdm(
            total=options.max_steps, initial=self.step, unit="step", desc=f"training {self.task.name}",
            disable=not options.progress or rank != 0, mininterval=1.0,
        )  # fmt: skip
        batches = _Batches(self.task, self.step, rank, self.world, self.device, options.prefetch)
        self.wrapped.train()
        decision = self._decide()
        try:
            while decision["progress"] < 1 and not decision["leave"] and not decision["signal"]:
                begin = time.monotonic()
                loss = self._train_step(next(batches), decision["progress"])
                seconds = time.monotonic() - begin
                self.training_seconds += seconds
                if self.step > self.first_step + 1:  # the first step also compiles and allocates
                    self.longest["step"] = max(self.longest["step"], seconds)
                bar.update()
                if self.step % options.log_every_steps == 0:
                    bar.set_postfix(loss=f"{float(loss):.4g}")
                decision = self._decide()
                self._pause(decision)
        finally:
            batches.close()
            bar.close()
        return self._finish(decision)

    def _train_step(self, batch: dict, progress: float) -> Tensor:
        factor = learning_rate_factor(self.options, self.step, progress)
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            group["lr"] = base * factor
        _seed(self.options.seed, self.step, self.fabric.global_rank)
        loss, terms = self.task.loss(self.wrapped, batch)
        self.fabric.backward(loss)
        limit = self.options.clip_norm
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), math.inf if limit is None else limit)
        if torch.isfinite(norm):
            self.optimizer.step()
            self.bad_steps = 0
        else:
            self._bad_step()
        self.optimizer.zero_grad()
        self._update_average()
        self.step += 1
        self.samples += self.world * len(next(value for value in batch.values() if isinstance(value, Tensor)))
        for name, value in {"loss": loss, **terms}.items():
            value = value.detach() if isinstance(value, Tensor) else value
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.summed += 1
        return loss.detach()

    def _bad_step(self) -> None:
        self.bad_steps += 1
        log.warning("step %d: the gradient is not finite; the update is left out", self.step)
        if self.bad_steps > BAD_STEPS_ALLOWED:
            raise FloatingPointError(f"the gradient was not finite for {self.bad_steps} steps in a row.")

    @torch.no_grad()
    def _update_average(self) -> None:
        # early weights are worthless: average over a window that grows with the step
        decay = min(self.options.ema_decay, (1 + self.step) / (10 + self.step))
        target, source = self.average.state_dict(), self.model.state_dict()
        floating = [name for name, value in target.items() if value.is_floating_point()]
        torch._foreach_lerp_([target[n] for n in floating], [source[n] for n in floating], 1 - decay)
        for name in target.keys() - set(floating):
            target[name].copy_(source[name])

    def _pause(self, decision: Mapping[str, float]) -> None:
        """Evaluate and write a checkpoint where they are due and the session does not end anyway."""
        if decision["progress"] >= 1 or decision["leave"] or decision["signal"]:
            return
        if decision["evaluate"]:
            self._evaluate()
        if decision["checkpoint"]:
            self._checkpoint()

    def _finish(self, decision: Mapping[str, float]) -> TrainResult:
        interrupted = bool(decision["signal"])
        if self.step > self.first_step:
            if not interrupted:
                self._evaluate()
            self._checkpoint()
        elif not interrupted:
            log.warning("nothing left to train: the budget was used up at step %d", self.step)
        finished = decision["progress"] >= 1
        trained = self.step > self.first_step
        where = Path(self.options.out) / "checkpoint" if trained else Path(self.options.resume or "")
        return TrainResult(self.step, self.elapsed, dict(self.figures), where, finished, interrupted)

    # ------------------------------------------------------------------ evaluation, checkpoint

    def _evaluate(self) -> None:
        begin = time.monotonic()
        means = {name: float(value) / self.summed for name, value in self.sums.items()} if self.summed else {}
        if self.fabric.is_global_zero:
            _seed(self.options.seed)
            try:
                self.signals.raise_now = True
                with torch.no_grad():
                    figures = self.task.evaluate(self.average.eval(), self.device)
                self.figures = {name: float(value) for name, value in figures.items()}
            except KeyboardInterrupt:
                if not self.signals.caught:
                    raise
            finally:
                self.signals.raise_now = False
            self._write_log(means)
        self.fabric.barrier()
        self.sums, self.summed, self.training_seconds, self.samples_at_log = {}, 0, 0.0, self.samples
        self.last["evaluate"] = time.monotonic()
        self.longest["evaluate"] = max(self.longest["evaluate"], self.last["evaluate"] - begin)

    def _write_log(self, means: Mapping[str, float]) -> None:
        rate = (self.samples - self.samples_at_log) / max(self.training_seconds, 1e-9)
        record = {
            "step": self.step,
            "elapsed": round(self.elapsed, 1),
            "samples": self.samples,
            "samples_per_second": round(rate, 1),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "losses": means,
            "figures": self.figures,
        }
        numbers = " ".join(f"{k}={v:.4g}" for k, v in {**means, **self.figures}.items())
        log.info("step %d  %.0f s  %d samples  %.0f/s  %s", self.step, self.elapsed, self.samples, rate, numbers)
        out = Path(self.options.out)
        out.mkdir(parents=True, exist_ok=True)
        with open(out / LOG_FILE, "a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def _checkpoint(self) -> None:
        begin = time.monotonic()
        if self.fabric.is_global_zero:
            tensors, rest = pack_optimizer(self.optimizer.optimizer)
            groups = {"model": self.model.state_dict(), "ema": self.average.state_dict(), "optimizer": tensors}
            versions = {"crystaldl": __version__, "torch": torch.__version__, "python": platform.python_version()}
            state = {
                "task": self.task.name, "step": self.step, "samples": self.samples, "elapsed": self.elapsed,
                "seed": self.options.seed, "world": self.world, "figures": self.figures, "longest": self.longest,
                "optimizer": rest, "versions": versions,
            }  # fmt: skip
            write_checkpoint(Path(self.options.out) / "checkpoint", groups, state)
        self.fabric.barrier()
        self.last["checkpoint"] = time.monotonic()
        self.longest["checkpoint"] = max(self.longest["checkpoint"], self.last["checkpoint"] - begin)


def _fabric(options: TrainOptions):
    try:
        from lightning.fabric import Fabric
    except ImportError as error:
        raise ImportError("training needs the extra 'train': pip install 'crystaldl[train]'.") from error

    device = resolve_device(options.device)
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # started by torchrun: one process per device
        local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        nodes = int(os.environ["WORLD_SIZE"]) // local
        return Fabric(
            accelerator=device.type, devices=local, num_nodes=nodes, strategy="ddp", precision=options.precision
        )
    devices = [device.index] if device.index is not None and device.type != "cpu" else 1
    return Fabric(accelerator=device.type, devices=devices, precision=options.precision)


def _load(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ModelIntegrityError(f"the weights in {path} do not fit the network: {reason[:300]}") from error
