"""What a training run is told, what it needs from a recipe, and what it hands back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Task(Protocol):
    """What a recipe gives the loop.

    `batch` must be a function of ``(step, rank)`` and the recipe's own seed alone (its own generators, not torch's
    global one): that is what makes a resumed run equal to an uninterrupted one. `loss` may draw from torch's global
    generator (dropout); the loop seeds it before every step. Every parameter must take part in the loss.
    """

    name: str

    def model(self) -> nn.Module:
        """A fresh network."""

    def batch(self, step: int, rank: int, world: int, device: torch.device) -> dict[str, Any]:
        """The batch of one step; the first dimension of its first tensor counts the samples."""

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, Mapping[str, float | Tensor]]:
        """The loss to minimise, and its terms for the log."""

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer whose parameter groups hold the base learning rates."""

    def evaluate(self, model: nn.Module, device: torch.device) -> Mapping[str, float]:
        """Figures of the averaged weights; called in evaluation mode, without gradients."""


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """Options of one training run. At least one of `minutes` and `max_steps` is needed.

    Parameters
    ----------
    out : Path
        Directory for ``checkpoint/`` and ``log.jsonl``.
    minutes, max_steps : float, int, optional
        The whole run's budget, also over several sessions: wall-clock time (evaluations included) and steps.
    session_minutes, session_steps : float, int, optional
        Leave with a checkpoint after this much in this call; the schedule stays that of the whole run.
    device : str
        As `crystaldl.physics.device.resolve_device`. Under ``torchrun``, one process per device.
    resume : Path, optional
        A checkpoint (or the output directory of a run) to go on from.
    init : Path, optional
        Start weights: a checkpoint or a ``.safetensors`` file. Ignored when resuming.
    seed : int
        Seeds the initial weights and the dropout of every step.
    ema_decay : float
        Decay per step of the averaged weights; smaller during the first steps.
    warmup_steps : int
        Linear warm-up of the learning rate.
    schedule : {"cosine", "linear", "constant"}
        How the learning rate falls with progress ``max(step / max_steps, elapsed / minutes)``.
    final_lr_fraction : float
        Learning rate at the end, relative to its base.
    evaluate_every_minutes, checkpoint_every_minutes : float
        Intervals. An evaluation and a checkpoint always end a session.
    clip_norm : float, optional
        Largest norm of the gradient.
    precision : {"32-true", "bf16-mixed"}
        Arithmetic of the forward pass.
    log_every_steps : int
        How often the bar shows the loss.
    threads : int, optional
        CPU threads of torch during the run.
    progress : bool
        Show a bar that counts training steps.
    prefetch : int
        Batches made ahead in a background thread; their order and content do not change.
    """

    out: Path
    minutes: float | None = None
    max_steps: int | None = None
    session_minutes: float | None = None
    session_steps: int | None = None
    device: str = "auto"
    resume: Path | None = None
    init: Path | None = None
    seed: int = 0
    ema_decay: float = 0.999
    warmup_steps: int = 200
    schedule: str = "cosine"
    final_lr_fraction: float = 0.02
    evaluate_every_minutes: float = 3.0
    checkpoint_every_minutes: float = 3.0
    clip_norm: float | None = 1.0
    precision: str = "32-true"
    log_every_steps: int = 50
    threads: int | None = None
    progress: bool = True
    prefetch: int = 0

    def __post_init__(self) -> None:
        if self.minutes is None and self.max_steps is None:
            raise ValueError("neither minutes nor max_steps is given; training needs at least one budget.")
        for name in ("minutes", "max_steps", "session_minutes", "session_steps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name}={value!r} must be positive.")
        if self.schedule not in ("cosine", "linear", "constant"):
            raise ValueError(f"schedule={self.schedule!r} is not known; expected 'cosine', 'linear' or 'constant'.")
        if self.precision not in ("32-true", "bf16-mixed"):
            raise ValueError(f"precision={self.precision!r} is not known; expected '32-true' or 'bf16-mixed'.")


@dataclass(frozen=True)
class TrainResult:
    """What a session of training ended with.

    Parameters
    ----------
    steps : int
        Steps done in the whole run so far.
    seconds : float
        Wall-clock seconds of the whole run so far.
    figures : dict
        Of the last evaluation.
    checkpoint : Path
        Where to resume from, and where the weights are.
    finished : bool
        The budget is used up (else: the session's share is, or a signal came).
    interrupted : bool
        SIGINT or SIGTERM ended the session.
    """

    steps: int
    seconds: float
    figures: dict[str, float] = field(default_factory=dict)
    checkpoint: Path = Path()
    finished: bool = True
    interrupted: bool = False
