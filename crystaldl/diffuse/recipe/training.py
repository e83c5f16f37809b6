"""How DSFU-Net is re-trained: the stream of simulated planes, the losses of Pix2Pix, schedule, evaluation.

Losses as published: least-squares adversarial plus 100 times the mean absolute error for each generator, smooth L1 on the
product of both answers, ½ (real + fake) for each discriminator; Adam with 2e-4 and β = (0.5, 0.999). The publication takes
separate steps in turn; here one step follows the sum, in which each player's gradient is that of its own loss (`network.Pix2Pix`).
Unlike the publication, which stores 198,421 planes without noise, background or Bragg peaks, planes are made on the fly.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import DataError
from ...physics.device import resolve_device
from ..dsfunet import fold_planes, network_input, separate_planes, spread
from ..network import CHANNELS, COMPACT_WIDTH, PUBLISHED_WIDTH, SIDE, Pix2Pix
from ..simulate import SimulatedPlanes
from .stream import DiffuseStream

log = logging.getLogger(__name__)

LATER = 1_000_000_007       # steps ahead, where a batch that cannot be is replaced from
PIXEL_WEIGHT = 100.0
PRODUCT_WEIGHT = 1.0
#: what ``--model`` may name: the width, planes a step, and learning rate; narrow networks on small budgets want longer steps
MODELS = {"dsfunet": (PUBLISHED_WIDTH, 64, 2e-4), f"dsfunet-w{COMPACT_WIDTH}": (COMPACT_WIDTH, 4, 5e-4)}
MODELS["unrolled"] = (CHANNELS, 4, 1e-3)
DEFAULT_MODEL = f"dsfunet-w{COMPACT_WIDTH}"
#: sizes of the stream's banks in evaluation: fewer, since held-out molecules are found by trying
HELD_OUT_BANKS = {"monte_carlo": 32, "orders": 128, "pairs": 192}
SMOKE_BANKS = {"monte_carlo": 5, "orders": 10, "pairs": 16}


@dataclass(frozen=True)
class Settings:
    """Size of a training run.

    Attributes
    ----------
    name : str, of the task and its checkpoints
    width : int, of both networks
    batch_size : int, planes a step
    learning_rate : float
    side : int, pixels an edge of the planes
    seed : int, of the stream
    evaluation_planes : int, of held-out families
    banks : sizes of the stream's banks; its own defaults when empty
    """

    name: str = DEFAULT_MODEL
    width: int = COMPACT_WIDTH
    batch_size: int = 4
    learning_rate: float = 5e-4
    side: int = SIDE
    seed: int = 0
    evaluation_planes: int = 64
    banks: Mapping[str, int] = field(default_factory=dict)


def product(factor: Tensor, sro: Tensor) -> Tensor:
    """What both answers make together, on a scale where two minima do not make a maximum (as published)."""
    return (factor + 2.0) * (sro + 2.0) - 2.0


def targets(planes: SimulatedPlanes) -> dict[str, Tensor]:
    """Form factor, S and their product on the networks' scale, (B, 1, H, W) each."""
    ideal = {"form_factor": planes.form_factor, "sro": planes.sro, "scattering": planes.form_factor * planes.sro}
    return {name: spread(x, x.amax((1, 2)))[:, None] for name, x in ideal.items()}


def zones(planes: SimulatedPlanes) -> Tensor:
    """(B, H, W, 2) h and k of every pixel, from the lattice that the analyst is told."""
    rows, columns = (torch.arange(n, device=planes.sro.device, dtype=planes.centre.dtype) for n in planes.sro.shape[1:])
    x = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)[None] - planes.centre[:, None, None]
    return torch.einsum("bijx,bxy->bijy", x, torch.linalg.inv(planes.given_period.to(x.dtype)))


class DiffuseTask:
    """The training loop's view of the recipe (see `crystaldl.training.loop.Task`)."""

    #: norm to which gradients are cut; none here, since one norm over two players would let each slow the other down
    clip_norm: float | None = None

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.name = f"diffuse-{settings.name}"
        self.stream = DiffuseStream(settings.seed, settings.side, **settings.banks)
        banks = settings.banks or HELD_OUT_BANKS
        self.held_out = DiffuseStream(settings.seed, settings.side, evaluation=True, **banks)
        self._evaluation: list[SimulatedPlanes] = []

    def model(self) -> nn.Module:
        return Pix2Pix(self.settings.width)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.settings.learning_rate, betas=(0.5, 0.999))

    def batch(self, step: int, rank: int, world: int, device) -> dict:
        planes = draw_planes(self.stream, step * world + rank, self.settings.batch_size, device)
        return {"plane": network_input(planes.intensity, planes.mask), **targets(planes)}

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        truth = {name: batch[name] for name in ("form_factor", "sro")}
        out = model(batch["plane"], batch["scattering"], truth)
        terms, total = {}, 0.0
        for name, part in out.items():
            pixel = F.l1_loss(part["answer"], truth[name])
            adversarial = (part["judged"] - 1).square().mean()
            critic = 0.5 * ((part["real"] - 1).square().mean() + part["fake"].square().mean())
            total = total + adversarial + PIXEL_WEIGHT * pixel + critic
            terms |= {f"{name}_pixel": pixel, f"{name}_adversarial": adversarial, f"{name}_critic": critic}
        answers = product(*(part["answer"] for part in out.values()))
        terms["product"] = F.smooth_l1_loss(answers, product(*truth.values()))
        total = total + PRODUCT_WEIGHT * terms["product"]
        return total, {name: value.detach() for name, value in terms.items()}

    def evaluate(self, model: nn.Module, device) -> dict[str, float]:
        """Figures on planes of held-out families with all corruptions of training; see `accuracy`."""
        if not self._evaluation:
            self._evaluation = held_out_planes(self.held_out, self.settings.evaluation_planes)
        return accuracy(model.pair, self._evaluation, device)


def held_out_planes(stream: DiffuseStream, count: int, size: int = 8) -> list[SimulatedPlanes]:
    """``count`` planes of a stream in batches; a fixed set, since the stream is a function of the step."""
    return [draw_planes(stream, i, min(size, count - start)) for i, start in enumerate(range(0, count, size))]


def draw_planes(stream: DiffuseStream, step: int, count: int, device="cpu", attempts: int = 8) -> SimulatedPlanes:
    """The stream's batch of a step, or where the simulator refuses it (a drawn order whose S is below 0), a later one instead.

    A function of the step alone, as the training loop needs it.
    """
    for attempt in range(attempts):
        try:
            return stream.batch(step + attempt * LATER, count, device)
        except DataError as error:
            log.debug("step %d, attempt %d: %s", step, attempt, error)
            refused = error
    raise refused


@torch.no_grad()
def accuracy(net: nn.Module, batches: list[SimulatedPlanes], device="cpu", method: Callable | None = None) -> dict[str, float]:
    """How well a network separates planes whose truth is known; medians and means over the planes.

    ``method(net, planes)`` gives form factor and S of simulated planes; a pair of DSFU-Net's when left out.

    ``sro_correlation``: of S and the truth, both folded into one zone of 24 × 24 parts (``_mean``, ``_median``);
    ``sro_relative_rms``: of the same (over the rms of the truth); ``form_factor_measured`` and ``form_factor_all``: median
    relative rms error of the form factor over the measured pixels and over all.
    """
    rows = []
    for planes in batches:
        planes = planes.to(device)
        zone = zones(planes)
        if method is None:
            factor, sro = separate_planes(net, planes.intensity, planes.mask, zone)
        else:
            factor, sro = method(net, planes)
        rows.append(torch.stack([*folded_agreement(sro, planes.sro, zone), relative_rms(factor, planes.form_factor, planes.mask),
                                 relative_rms(factor, planes.form_factor, torch.ones_like(planes.mask))], 1).cpu())
    table = torch.cat(rows)
    middle = table.nanmedian(0).values.tolist()
    return {"sro_correlation_mean": float(table[:, 0].mean()), "sro_correlation_median": middle[0], "sro_relative_rms": middle[1],
            "form_factor_measured": middle[2], "form_factor_all": middle[3]}


def folded_agreement(sro: Tensor, truth: Tensor, zone: Tensor, fold: int = 24) -> tuple[Tensor, Tensor]:
    """(B,) correlation and relative rms error of S, both folded into one zone."""
    folded = []
    for value in (sro, truth):
        total, number = fold_planes(value, zone, fold)
        folded.append(total / number.clamp_min(1.0))
    seen = (number > 0).to(sro.dtype)
    weight = seen / seen.sum(1, keepdim=True)
    found, wanted = folded
    a = (found - (weight * found).sum(1, keepdim=True)) * weight.sqrt()
    b = (wanted - (weight * wanted).sum(1, keepdim=True)) * weight.sqrt()
    correlation = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-12)
    error = ((weight * (found - wanted).square()).sum(1) / (weight * wanted.square()).sum(1)).sqrt()
    return correlation, error


def relative_rms(found: Tensor, truth: Tensor, where: Tensor) -> Tensor:
    """(B,) rms error over the rms of the truth, over the pixels ``where``."""
    return ((found - truth).square() * where).sum((1, 2)).div((truth.square() * where).sum((1, 2)).clamp_min(1e-30)).sqrt()


# --------------------------------------------------------------------------------------------- command line


def settings_for(model: str | None = None, size: str = "full", seed: int = 0) -> Settings:
    """The settings of ``--model`` and ``--size``; smoke runs have tiny networks on planes of 64 × 64."""
    model = model or DEFAULT_MODEL
    if model not in MODELS:
        raise ValueError(f"model is {model!r}; expected one of {', '.join(MODELS)}.")
    if size not in ("smoke", "full"):
        raise ValueError(f"size is {size!r}; expected 'smoke' or 'full'.")
    width, batch, rate = MODELS[model]
    if size == "smoke":
        return Settings(model, 4, 4, 1e-3, 64, seed, 16, SMOKE_BANKS)
    return Settings(model, width, batch, rate, SIDE, seed)


def task_for(settings: Settings) -> DiffuseTask:
    """The task of the network that the settings name."""
    if settings.name == "unrolled":
        from .training_unrolled import UnrolledTask

        return UnrolledTask(settings)
    return DiffuseTask(settings)


def precision_for(size: str, device: str) -> str:
    """bfloat16 products halve the time of long runs where the device knows them; the losses stay in float32."""
    return "bf16-mixed" if size == "full" and resolve_device(device).type in ("cpu", "cuda") else "32-true"


def train_command(args) -> int:
    """``crystaldl train diffuse``: DSFU-Net at the published or the compact width, or the unrolled network, on simulated planes."""
    from ...training.checkpoint import read_state
    from ...training.loop import TrainOptions, train

    if args.resume is not None:
        read_state(args.resume)  # says what is wrong before minutes of preparation
    task = task_for(settings_for(args.model, args.size, args.seed))
    steps = args.max_steps
    if steps is None and args.minutes is None and args.size == "smoke":
        steps = 80
    options = TrainOptions(
        out=Path(args.out),
        minutes=args.minutes if args.minutes or steps else 9.0,
        max_steps=steps,
        session_minutes=args.session_minutes,
        device=args.device,
        resume=args.resume,
        seed=args.seed,
        threads=args.threads,
        warmup_steps=20,
        ema_decay=0.99,
        evaluate_every_minutes=6.0,
        clip_norm=task.clip_norm,
        precision=precision_for(args.size, args.device),
    )
    result = train(task, options)
    log.info(
        "%s: %d steps, checkpoint in %s", "finished" if result.finished else "stopped", result.steps, result.checkpoint
    )
    return 0
