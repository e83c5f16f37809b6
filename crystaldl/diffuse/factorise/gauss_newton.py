"""Separation by physics alone: diffuse intensity as (molecular form factor) × (short-range order) + background.

Model on the measured pixels::

    I(Q) = D(Q) S(Q) + B(Q)
    D(Q) = g(|Q|) Σ_r  p_r cos(2π Q·r)         r on a fine grid within the support of the Patterson function of Δρ
    S(Q) = 1 + Σ_R 2 α_R cos(2π Q·R)           R over half of the lattice vectors
    B(Q) = Σ_k b_k φ_k(|Q|)                     a few smooth functions, radial unless the data ask for others (`rings`),
                                                and Bragg peaks where there are any (`peaks`)

``D = |ΔF|²`` is the Fourier transform of an autocorrelation that ends at the longest interatomic vector; ``S`` is
periodic with mean 1. A product that obeys both is unique unless the support is so wide that a periodic factor fits
into it, so the support is the smallest that explains the data. All parameters, the lattice among them, are refined together by
Gauss-Newton: the normal matrix of 65,536 pixels and some hundred cosines is a look-up in a few tables of Fourier
sums (`fourier`), and its inverse is the covariance. Parameters have Gaussian priors of zero mean whose variances,
one for each shell of |r| and of |R|, are estimated from the data (evidence maximisation, MacKay, Neural Comput. 4,
415, 1992), which is what keeps unmeasured regions and punched holes sensible.
"""
from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from .cell import OrderCell, cell_of_order
from .columns import SparseColumns
from .folding import Fold, Unfolded, fold_of
from .fourier import FourierGrid, Gram
from .links import LINKS
from .numerics import non_negative, quantum
from .peaks import Peaks
from .states import Basis, Fields, Settings, State

NOISE_FLOOR = 5e-4              # of the mean intensity: nothing measured or modelled is better than that
NOISE_BINS, NOISE_SAMPLE = 24, 8192     # the edges of the bins are those of so many pixels
PROPORTION = 0.1                # of the model: standard deviation that is taken for noise at most
SLACK = 0.02                    # of the model and of the mean: misfit that never makes a pixel an outlier
GUARD = 4.0                     # prior variance of the series where no pixel sees it, of its variance elsewhere
FREE = 0.05                     # of the diffuse intensity: Bragg intensity where the noise may be looked at
BELOW = 3e-3                    # of the mean intensity: how far below zero a background may well go
FOOT = 0.01                     # of the highest ring, the same for splines


class Problem:
    """One volume or plane to be factorised: data, weights and basis, and the normal equations about a state."""

    def __init__(self, intensity: Tensor, valid: Tensor, basis: Basis, settings: Settings, sigma: Tensor | None = None,
                 modes: tuple[Tensor, ...] = (), peaks: Peaks | None = None, like: Problem | None = None,
                 axes: tuple[Tensor, ...] = ()) -> None:
        self.intensity, self.valid, self.basis, self.settings = intensity, valid.double(), basis, settings
        self.sigma, self.modes, self.peaks, self.axes = sigma, modes, peaks, axes
        self.n_pixels = float(self.valid.sum())
        values = intensity[valid].abs().sort().values
        self.scale = float(values[: max(len(values) - len(values) // 200, 1)].mean())
        self.step = quantum(intensity[valid])
        self.hidden: Tensor | None = None
        self._lookups: list[tuple[tuple[int, ...], Gram]] = []
        self.radial = SparseColumns(basis.radial)
        self.fold = self._fold(like)
        even = basis.radial_kind[: len(basis.radial)] < 2
        self._even, self._uneven = torch.nonzero(even)[:, 0], torch.nonzero(~even)[:, 0]
        self._radial_half = self.fold.half(basis.radial[self._even])
        self.cell: OrderCell = cell_of_order(basis.order, basis.order_sine, None if like is None else (like.basis, like.cell))
        self.reach_d = tuple(int(v) for v in basis.patterson.abs().amax(0))
        self.reach_s = tuple(int(v) for v in basis.order.abs().amax(0)) if len(basis.order) else (0,) * intensity.ndim

    def _fold(self, like: Problem | None) -> Fold | Unfolded:
        """Half of the pixels, where all cosines are even on them and the envelope is, too."""
        basis, axes = self.basis, self.axes
        if bool(basis.patterson_sine.any()) or bool(basis.order_sine.any()):
            return Unfolded()
        fold = like.fold if like is not None else fold_of(axes)
        again = fold.whole(fold.half(basis.envelope), basis.envelope.shape)
        even = bool(((again - basis.envelope).abs() <= 1e-9 * basis.envelope.abs()).all())
        return fold if even else Unfolded()

    def under(self, settings: Settings) -> Problem:
        """The same problem with other settings; tables are shared."""
        other = copy.copy(self)
        other.settings = settings
        return other

    def guard(self, hidden: Tensor | None) -> None:
        """Keep the series tame on the parts of the cell that no pixel sees, bool over the points of ``cell``.

        Nothing measured forbids a spike there, and the mean of S over the cell would carry its error everywhere.
        """
        if hidden is None or not bool(hidden.any()) or not len(self.basis.order):
            return
        # from the level of the part that is seen, not from 1: a spike takes the level of all the rest down
        waves = 2.0 * (self.cell.waves[hidden] - self.cell.waves[~hidden].mean(0))
        # as many independent values as that part of the cell has parameters
        self.hidden = waves.T @ waves * (len(self.basis.order) / len(hidden))
        self.seen = ~hidden

    def guard_precision(self, state: State) -> Tensor | None:
        """Prior precision of the series' coefficients that :meth:`guard` adds at a state."""
        if self.hidden is None:
            return None
        spread = float((2.0 * self.cell.series(state.alpha)[self.seen]).var())
        return self.hidden / max(GUARD * spread, 0.25)

    # ------------------------------------------------------------------ forward

    def fields(self, state: State) -> Fields:
        """D, S, B and the model of a state."""
        basis, grid, shape = self.basis, self.fold.grid(state.grid), self.intensity.shape
        factor = basis.envelope * self.fold.whole(self._expand(grid, state.p, basis.patterson, basis.patterson_sine), shape)
        stride = torch.tensor(basis.stride, device=basis.order.device)
        series = 1.0 + self._expand(grid, 2.0 * state.alpha, basis.order * stride, basis.order_sine)
        mean = self.cell_mean(state.alpha)
        order, slope = (self.fold.whole(v / mean, shape) for v in LINKS[self.settings.link](series))
        background = self.radial.sum(state.b) if len(state.b) else torch.zeros_like(factor)
        if self.peaks is None:
            return Fields(factor, order, slope, background, factor * order + background)
        profile = self.peaks.profile(state.grid, state.width, state.shape)
        bragg = self.peaks.image(state.height[:, None] * profile, shape)
        return Fields(factor, order, slope, background, factor * order + background + bragg, bragg)

    def cell_mean(self, alpha: Tensor) -> float:
        """Mean of the unnormalised order over a cell; infinite where the series leaves the domain of the link."""
        if self.settings.link == "linear":
            return 1.0
        series = 1.0 + 2.0 * self.cell.series(alpha)
        if self.settings.link == "reciprocal" and float(series.min()) < 1e-3:
            return math.inf
        return float(LINKS[self.settings.link](series)[0].mean())

    @staticmethod
    def _expand(grid: FourierGrid, values: Tensor, index: Tensor, sine: Tensor) -> Tensor:
        zero = torch.zeros_like(values)
        return grid.synthesize(torch.where(sine, zero, values), torch.where(sine, values, zero), index)

    # ------------------------------------------------------------------ noise and robust weights

    def variance(self, state: State, fields: Fields) -> Tensor:
        """Noise variance of each pixel."""
        model = fields.model.clamp(min=0.0)
        wrong = 0.0 if fields.peaks is None else (state.misfit * fields.peaks).square()
        if self.sigma is not None:
            return self.sigma.square() + state.noise[0] + wrong
        diffuse = model if fields.peaks is None else (fields.model - fields.peaks).clamp(min=0.0)
        # a third of a count more: at a count or less the model is too noisy to be its own variance
        return state.noise[0] + state.noise[1] * (model + state.noise[1] / 3.0) + state.noise[2] * diffuse.square() + wrong

    def weights(self, state: State, fields: Fields) -> Tensor:
        """Statistical weight × Tukey's biweight, zero where not measured."""
        variance = self.variance(state, fields)
        weight = self.valid / variance
        if self.settings.robust:
            weight = weight * self._biweight(state, fields, variance)
        return weight

    def _biweight(self, state: State, fields: Fields, variance: Tensor) -> Tensor:
        """Weights of the residuals, 1 up to a knee and then Tukey's, forgiving what the model itself may be wrong by."""
        model = fields.model
        slack = (SLACK * model).square() + (SLACK * self.scale) ** 2 + 2.0 * state.noise[1] ** 2
        z = (self.intensity - model) / (variance + slack).sqrt()
        # all the same where the noise is, or the skew of few counts would pull the model down. Bragg beams add, hardly anything
        # takes away: what is too bright goes sooner than what is too dark
        c = torch.where(z > 0, self.settings.tuning, 2.0 * self.settings.tuning)
        beyond = (z.abs() - self.settings.knee).clamp(min=0.0) / (c - self.settings.knee)
        return (1.0 - beyond.square()).clamp(min=0.0).square()

    def mean_misfit(self, fields: Fields, weight: Tensor) -> float:
        """Mean squared misfit of the pixels that have weight and are not of Bragg peaks."""
        used = weight > 0 if fields.peaks is None else (weight > 0) & self._free(fields)
        return float((fields.model - self.intensity).square().mul(used).mean())

    @staticmethod
    def _free(fields: Fields) -> Tensor:
        return fields.peaks.abs() < FREE * (fields.model - fields.peaks).abs()

    def estimate_noise(self, state: State, fields: Fields) -> tuple[float, float, float]:
        """Coefficients of the noise variance ``c0 + c1 model + c2 model²`` from robust residuals in bins of the model."""
        used = self.valid > 0
        if fields.peaks is not None:
            free = used & self._free(fields)
            used = free if int(free.sum()) > 0.1 * self.n_pixels else used
        residual, model = (self.intensity - fields.model)[used], fields.model[used].clamp(min=0.0)
        keep = torch.ones_like(residual)
        if self.settings.robust:
            keep = self._biweight(state, fields, self.variance(state, fields))[used]
        floor = max((NOISE_FLOOR * self.scale) ** 2, self.step**2 / 3.0)
        if self.sigma is not None:
            excess = float((keep * (residual.square() / self.sigma[used].square())).sum() / keep.sum())
            return max((excess - 1.0) * float(self.sigma[used].square().median()), 0.0), 0.0, 0.0
        if not self.settings.poisson:
            return max(float((keep * residual.square()).sum() / keep.sum()), floor), 0.0, 0.0
        # equivalent pixels have equal models up to rounding, which must not choose their bins
        rounded = (model / self.scale * 1e9).round()
        coarse = rounded[:: max(len(rounded) // NOISE_SAMPLE, 1)].sort().values
        edges = coarse[torch.arange(1, NOISE_BINS, device=coarse.device) * len(coarse) // NOISE_BINS]
        place = torch.bucketize(rounded, edges)
        number, amount, level, spread = (model.new_zeros(NOISE_BINS).index_add_(0, place, v) for v in
                                         (torch.ones_like(keep), keep, model, keep * residual.square()))
        some = number > 0
        level, spread = (level / number.clamp(min=1.0))[some], (spread / amount.clamp(min=1e-9))[some]
        table = torch.stack([torch.ones_like(level), level, level.square()], 1)
        found = non_negative(table, spread.clamp(min=floor))
        if fields.peaks is None and found[2] > PROPORTION**2:
            # or what is bright would hardly count any more, and its misfit grow further
            rest = non_negative(table[:, :2], (spread - PROPORTION**2 * table[:, 2]).clamp(min=floor))
            found = [*rest, PROPORTION**2]
        return max(found[0], floor), found[1], found[2]

    # ------------------------------------------------------------------ normal equations

    def normal(self, state: State, fields: Fields, weight: Tensor, modes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Gauss-Newton matrix and right-hand side (without priors) in the order p, α, b, lattice.

        ``modes`` are the :meth:`mode_columns`, which are calculated where they are not given.
        """
        modes = self.mode_columns(state, fields) if modes is None else modes
        basis, fold, grid = self.basis, self.fold, self.fold.grid(state.grid)
        residual = self.intensity - fields.model
        gs, both = fold.half(basis.envelope * fields.order), fold.half(fields.factor * fields.slope)
        by = fold.folded(weight)
        (reach2, dd), (order2, ss), (cross, ds) = self._grams()
        dd = dd(grid.moments(by * gs.square(), reach2, wanted=dd.wanted))
        ss = ss(grid.moments(by * both.square(), order2, basis.stride, ss.wanted)).mul_(4.0)
        ds = ds(grid.moments(by * gs * both, cross, wanted=ds.wanted)).mul_(2.0)
        n, m, k = len(dd), len(ss), len(self.radial)
        size = n + m + k + len(modes)
        matrix, right = dd.new_empty(size, size), dd.new_empty(size)
        matrix[:n, :n], matrix[n : n + m, n : n + m], matrix[:n, n : n + m] = dd, ss, ds
        # what is not the same at opposite pixels
        others = torch.cat([residual[None], modes, basis.radial[self._uneven]]) * weight
        rows = torch.cat([torch.arange(n + m + k, size, device=self._uneven.device), n + m + self._uneven])
        for own, functions, reach, stride, factor, times in (
            (slice(0, n), (basis.patterson, basis.patterson_sine), self.reach_d, None, gs, 1.0),
            (slice(n, n + m), (basis.order, basis.order_sine), self.reach_s, basis.stride, both, 2.0),
        ):
            found = times * grid.project(fold.folded(others), functions, reach, stride, by=factor)
            right[own], matrix[rows, own] = found[0], found[1:]
            if len(self._even):
                matrix[n + m + self._even, own] = times * grid.project(self._radial_half, functions, reach, stride, by=by * factor)
        matrix[n + m : n + m + k, n + m : n + m + k] = self.radial.products(weight)
        matrix[n + m + k :, n + m + k :] = others[1 : 1 + len(modes)].flatten(1) @ modes.flatten(1).T
        inner = self.radial.project(others[: 1 + len(modes)])
        matrix[n + m + k :, n + m : n + m + k] = inner[1:]
        right[n + m : n + m + k], right[n + m + k :] = inner[0], modes.flatten(1) @ others[0].flatten()
        matrix[n:, :n][:m] = ds.T
        matrix[: n + m, n + m :] = matrix[n + m :, : n + m].T
        matrix[n + m : n + m + k, n + m + k :] = matrix[n + m + k :, n + m : n + m + k].T
        return matrix, right

    def gradient(self, state: State, fields: Fields, weight: Tensor, modes: Tensor) -> Tensor:
        """The right-hand side of :meth:`normal` alone; ``modes`` are the :meth:`mode_columns`."""
        basis, fold, grid = self.basis, self.fold, self.fold.grid(state.grid)
        weighted = weight * (self.intensity - fields.model)
        gs, both = fold.half(basis.envelope * fields.order), fold.half(fields.factor * fields.slope)
        half = fold.folded(weighted)
        parts = [grid.project(half, (basis.patterson, basis.patterson_sine), self.reach_d, by=gs),
                 2.0 * grid.project(half, (basis.order, basis.order_sine), self.reach_s, basis.stride, by=both),
                 self.radial.project(weighted), modes.flatten(1) @ weighted.flatten()]
        return torch.cat(parts)

    def _grams(self) -> list[tuple[tuple[int, ...], Gram]]:
        """Reach of the moments and look-up for the parts D-D, S-S and D-S of the normal matrix."""
        if not self._lookups:
            basis = self.basis
            stride = torch.tensor(basis.stride, device=basis.order.device)
            fd, fs = (basis.patterson, basis.patterson_sine), (basis.order, basis.order_sine)
            cross = tuple(d + s * t for d, s, t in zip(self.reach_d, self.reach_s, basis.stride, strict=True))
            for reach, rows, columns in (
                (tuple(2 * r for r in self.reach_d), fd, fd),
                (tuple(2 * r for r in self.reach_s), fs, fs),
                (cross, fd, (basis.order * stride, basis.order_sine)),
            ):
                self._lookups.append((reach, Gram(reach, rows, columns)))
        return self._lookups

    def mode_columns(self, state: State, fields: Fields) -> Tensor:
        """Derivatives of the model by the lattice modes, (n, *shape); none where the lattice stays as it is."""
        if not self.settings.polish or not self.modes:
            return self.intensity.new_zeros(0, *self.intensity.shape)
        basis, grid, half = self.basis, self.fold.grid(state.grid), self.fold.half
        stride = torch.tensor(basis.stride, device=basis.order.device)
        index = basis.order * stride
        divisions = torch.tensor(grid.divisions, dtype=torch.float64, device=index.device)
        r = 2.0 * math.pi * index.double() / divisions
        u = grid.coordinates()
        both, gs = half(fields.factor * fields.slope), half(basis.envelope * fields.order)
        p = 2.0 * math.pi * basis.patterson.double() / divisions
        slope = [self._gradient(grid, 2.0 * state.alpha * r[:, j], index, basis.order_sine) * both
                 + self._gradient(grid, state.p * p[:, j], basis.patterson, basis.patterson_sine) * gs for j in range(grid.ndim)]
        # a mode E changes u to u (1 + E): du_j = Σ_i u_i E_ij
        modes = [self.fold.whole(sum(slope[j] * sum(u[i] * mode[i, j] for i in range(grid.ndim)) for j in range(grid.ndim)),
                                 self.intensity.shape) for mode in self.modes]
        if self.peaks is not None:
            modes = [own + self.peaks.moved(state, mode)
                     for own, mode in zip(modes, self.modes, strict=True)]
        return torch.stack(modes)

    @staticmethod
    def _gradient(grid: FourierGrid, values: Tensor, index: Tensor, sine: Tensor) -> Tensor:
        """Derivative by the phase: cos → −sin, sin → cos."""
        zero = torch.zeros_like(values)
        return grid.synthesize(torch.where(sine, values, zero), torch.where(sine, zero, -values), index)

    def prior(self, state: State) -> tuple[Tensor, Tensor]:
        """Precision of the prior and the parameters it pulls to zero, same order as :meth:`normal`."""
        basis = self.basis
        # a background below zero would be a form factor that is too large
        # the coefficients of a spline may, at the feet of a narrow ring
        highest = float(state.b.max().clamp(min=0.0)) if len(state.b) else 0.0
        below = ((state.b < 0) & (basis.radial_kind < 2)).double() * self.settings.positive
        below = below / (BELOW * self.scale + FOOT * highest * basis.radial_kind) ** 2
        parts = [1.0 / state.p_variance[basis.patterson_shell], 1.0 / state.alpha_variance[basis.order_shell],
                 1.0 / state.b_variance[basis.radial_kind] + below]
        values = [state.p, state.alpha, state.b]
        if self.settings.polish and self.modes:
            parts.append(torch.full((len(self.modes),), 1.0 / 0.01**2, dtype=torch.float64, device=state.p.device))
            values.append(torch.zeros(len(self.modes), dtype=torch.float64, device=state.p.device))
        return torch.cat(parts), torch.cat(values)
