"""What a refinement works on and returns: basis functions, settings, parameters, the model on the pixels."""
from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .fourier import FourierGrid
from .profile import Shape


@dataclass(frozen=True)
class Basis:
    """What the unknowns multiply. Index vectors are integers in steps of ``1 / divisions`` (and of ``stride`` for S)."""

    patterson: Tensor                # (n, ndim) half space
    patterson_sine: Tensor           # (n,) bool
    patterson_shell: Tensor          # (n,) long
    order: Tensor                    # (m, ndim) half space, in units of stride
    order_sine: Tensor               # (m,) bool
    order_shell: Tensor              # (m,) long
    stride: tuple[int, ...]
    envelope: Tensor                 # (*shape) g
    radial: Tensor                   # (k, *shape) φ
    radial_kind: Tensor              # (k,) long: 0 for those of a smooth background, 1 of rings, 2 of one that is uneven


@dataclass(frozen=True)
class Settings:
    """How the refinement runs.

    Attributes
    ----------
    iterations : int
        Gauss-Newton steps at most.
    robust : bool
        Down-weight pixels that no smooth model explains (Bragg residues, streaks) by Tukey's biweight beyond a knee.
    polish : bool
        Refine the lattice with the rest.
    poisson : bool
        Let the noise variance grow with the intensity; the constant and the slope are estimated.
    tolerance : float
        Stop when a step changes the misfit by less than this fraction.
    positive : bool
        Keep the coefficients of the background from falling below zero.
    """

    iterations: int = 30
    robust: bool = True
    polish: bool = False
    poisson: bool = True
    tolerance: float = 1e-4
    tuning: float = 6.0
    knee: float = 2.5
    link: str = "linear"
    positive: bool = False


@dataclass(frozen=True, eq=False)
class State:
    """Parameters, their prior variances and the noise at one point of the refinement."""

    p: Tensor
    alpha: Tensor
    b: Tensor
    grid: FourierGrid
    p_variance: Tensor               # (shells of the Patterson function,)
    alpha_variance: Tensor           # (shells of the order,)
    b_variance: Tensor               # (3,) smooth background, rings, uneven background
    noise: tuple[float, float, float]       # variance = noise[0] + noise[1] · model + noise[2] · model²
    height: Tensor | None = None     # of the Bragg peaks
    height_variance: Tensor | None = None
    width: float = 1.0               # of the Bragg peaks, pixels
    shape: Shape | None = None       # of the same; None for round Gaussians
    misfit: float = 0.0              # of their profile, of its height


@dataclass(frozen=True, eq=False)
class Fields:
    """The model on all pixels."""

    factor: Tensor                   # D
    order: Tensor                    # S
    slope: Tensor                    # dS / d(series)
    background: Tensor               # B
    model: Tensor                    # D S + B + peaks
    peaks: Tensor | None = None      # Bragg peaks


@dataclass(frozen=True, eq=False)
class Factors:
    """Outcome of :func:`refine`."""

    state: State
    fields: Fields
    weight: Tensor
    covariance: Tensor | None        # of p, α, b, lattice modes
    misfit: float                    # mean weighted squared residual over the pixels with weight
    evidence: float
    iterations: int
