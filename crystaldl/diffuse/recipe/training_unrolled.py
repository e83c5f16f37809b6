"""How the unrolled network is trained: the stream and the figures of DSFU-Net's recipe, losses on every round.

Each round is asked for the exact form factor everywhere, hidden pixels included, the exact order, and the sum of background
and Bragg residues. Errors are relative to the root mean square of the truth of the plane, so that no plane outweighs another.
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from ..network import UnrolledNet
from ..simulate import SimulatedPlanes
from ..unrolled import Geometry, run_padded, scaled, unrolled_planes
from .training import DiffuseTask, accuracy, draw_planes, held_out_planes, zones

EARLIER = 0.25          # weight of the losses of a round before the last
ROOT_WEIGHT = 2.0       # of the mean absolute error of √D
BACKGROUND_WEIGHT = 0.5
FLOOR = 0.1             # added to the rms of S - 1, so that planes without order do not dominate


def geometry(planes: SimulatedPlanes) -> Geometry:
    """Where the pixels of simulated planes are, from the lattice that the analyst is told."""
    rows, columns = (torch.arange(n, device=planes.sro.device, dtype=planes.centre.dtype) for n in planes.sro.shape[1:])
    x = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), -1)[None] - planes.centre[:, None, None]
    q = torch.einsum("bijx,bxy,bijy->bij", x, planes.metric.to(x.dtype), x).clamp_min(0.0).sqrt()
    even = torch.ones(len(planes), dtype=torch.bool, device=x.device)
    return Geometry(zones(planes), planes.given_period.to(x.dtype), q, even)


def separate_unrolled(net: nn.Module, planes: SimulatedPlanes) -> tuple[Tensor, Tensor]:
    """Form factor and S (B, H, W) of simulated planes, for `training.accuracy`."""
    answer = unrolled_planes(net, planes.intensity, planes.mask, geometry(planes))
    return answer["form_factor"], answer["sro"]


def _rms(x: Tensor) -> Tensor:
    return (x.square().mean((1, 2)) + 1e-12).sqrt()


class UnrolledTask(DiffuseTask):
    """The training loop's view of the recipe (see `crystaldl.training.loop.Task`)."""

    clip_norm = 1.0

    def model(self) -> nn.Module:
        return UnrolledNet(self.settings.width)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(model.parameters(), lr=self.settings.learning_rate, weight_decay=1e-3)

    def batch(self, step: int, rank: int, world: int, device) -> dict:
        planes = draw_planes(self.stream, step * world + rank, self.settings.batch_size, device)
        data, top = scaled(planes.intensity, planes.mask)
        unit = top[:, None, None]
        return {"plane": data, "mask": planes.mask, "geometry": geometry(planes), "form_factor": planes.form_factor / unit,
                "sro": planes.sro.clamp_min(0.0), "background": ((planes.background + planes.bragg) / unit).clamp(0.0, 1.0)}

    def loss(self, model: nn.Module, batch: dict) -> tuple[Tensor, dict]:
        answers = run_padded(model, batch["plane"], batch["mask"], batch["geometry"])
        factor, order, background = (batch[k] for k in ("form_factor", "sro", "background"))
        total, terms = 0.0, {}
        for number, answer in enumerate(answers):
            terms = {
                "sro": (_rms(answer["sro"] - order) / (_rms(order - 1.0) + FLOOR)).mean(),
                "form_factor": (_rms(answer["form_factor"] - factor) / _rms(factor)).clamp_max(3.0).mean(),
                "root": ((answer["form_factor"] + 1e-6).sqrt() - (factor + 1e-6).sqrt()).abs().mean(),
                "background": ((answer["background"] + 1e-4).sqrt() - (background + 1e-4).sqrt()).abs().mean(),
            }
            part = terms["sro"] + terms["form_factor"] + ROOT_WEIGHT * terms["root"] + BACKGROUND_WEIGHT * terms["background"]
            total = total + (1.0 if number == len(answers) - 1 else EARLIER) * part
        return total, {name: value.detach() for name, value in terms.items()}

    def evaluate(self, model: nn.Module, device) -> dict[str, float]:
        """Figures on planes of held-out families with all corruptions of training; see `training.accuracy`."""
        if not self._evaluation:
            self._evaluation = held_out_planes(self.held_out, self.settings.evaluation_planes)
        return accuracy(model, self._evaluation, device, separate_unrolled)
