"""`FormFactorComparison`: what `compare_form_factors` returns."""
from __future__ import annotations

from dataclasses import dataclass, field
from html import escape
from pathlib import Path

import numpy as np

from .. import __version__
from ..storage.atomic import write_json
from ..storage.records import ENDINGS
from .volume import DiffuseVolume

__all__ = ["FormFactorComparison"]


@dataclass(frozen=True, eq=False)
class FormFactorComparison:
    """Structural models and how well each fits; arrays are in the order of ``names``.

    Attributes
    ----------
    names : tuple of str
    criterion : "intensity" or "form_factor"
    chi2 : (n,) Σ (residual / σ)², scaled to `n_independent` observations
    freedom, n_independent : float
    bic : (n,) smaller is better
    probability : (n,) of each model, given that one of them is right
    r_factor : (n,) Σ|observed - calculated| / Σ|observed| of what the criterion fits
    correlation : (n,) Pearson correlation of D with the separated form factor; NaN without one
    scale : (n,); b_iso : (n,) Å²; rotation : (n, 3) rotation vectors in radians
    calculated : tuple of (*shape) arrays, K D of each model
    observed : DiffuseVolume or None, the separated form factor
    mask : (*shape) bool, pixels that were fitted
    """

    names: tuple[str, ...]
    criterion: str
    chi2: np.ndarray
    freedom: float
    n_independent: float
    bic: np.ndarray
    probability: np.ndarray
    r_factor: np.ndarray
    correlation: np.ndarray
    scale: np.ndarray
    b_iso: np.ndarray
    rotation: np.ndarray
    calculated: tuple[np.ndarray, ...] = field(repr=False)
    observed: DiffuseVolume | None = field(repr=False)
    mask: np.ndarray = field(repr=False)
    volume: DiffuseVolume = field(repr=False)
    version: str = __version__

    def __post_init__(self):
        for value in (*vars(self).values(), *self.calculated):
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    @property
    def ranking(self) -> tuple[str, ...]:
        """Names, best first."""
        return tuple(self.names[i] for i in np.argsort(self.bic, kind="stable"))

    @property
    def best(self) -> str:
        """The model of the smallest BIC."""
        return self.ranking[0]

    @property
    def margin(self) -> float:
        """BIC of the second best minus that of the best: above 10 is strong evidence; infinite for a single model."""
        ordered = np.sort(self.bic)
        return float(ordered[1] - ordered[0]) if len(ordered) > 1 else float("inf")

    def form_factor(self, name: str) -> DiffuseVolume:
        """K D of a model on all pixels."""
        if name not in self.names:
            raise ValueError(f"name is {name!r}; expected one of {', '.join(self.names)}.")
        data = self.calculated[self.names.index(name)]
        return self.volume.replace(data=data, mask=None, sigma=None, name=name, history=f"form factor of {name}")

    def table(self):
        """A pandas table, best first."""
        import pandas as pd

        table = {
            "model": self.names, "bic": self.bic, "delta_bic": self.bic - self.bic.min(), "probability": self.probability,
            "chi2": self.chi2 / self.freedom, "r_factor": self.r_factor, "correlation": self.correlation, "scale": self.scale,
            "b_iso": self.b_iso,
        }  # fmt: skip
        if np.abs(self.rotation).max() > 0:
            table["rotation"] = np.degrees(np.linalg.norm(self.rotation, axis=1))
        return pd.DataFrame(table).sort_values("bic", kind="stable").reset_index(drop=True)

    to_dataframe = table

    def save(self, path) -> Path:
        """Write everything (``.h5``, EMD 1.0: `crystaldl.read` reads it back), else the figures as JSON.

        An interrupted write leaves an old file whole.
        """
        if str(path).lower().endswith(ENDINGS):
            from .files import RECORDS

            return RECORDS.save(path, self)
        keys = ("criterion", "chi2", "freedom", "n_independent", "bic", "probability", "r_factor", "correlation", "scale", "b_iso",
                "rotation")  # fmt: skip
        content = {"names": list(self.names), "best": self.best, **{k: getattr(self, k) for k in keys}, "crystaldl": self.version}
        return write_json(path, content)

    def show(self):
        """The separated form factor beside the best models, and R factor and probability of all: (figure, axes)."""
        from .sro.plot import plot_comparison

        return plot_comparison(self)

    def __repr__(self) -> str:
        order = np.argsort(self.bic, kind="stable")
        parts = [f"{self.names[i]!r} R {self.r_factor[i]:.1%} p {self.probability[i]:.3g}" for i in order[:4]]
        return f"<FormFactorComparison by {self.criterion}: {'; '.join(parts)}{'; …' if len(order) > 4 else ''}>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{escape(self.names[i])}</td><td>{self.bic[i] - self.bic.min():.4g}</td><td>{self.probability[i]:.3g}</td>"
            f"<td>{self.r_factor[i]:.2%}</td><td>{self.b_iso[i]:.2f}</td></tr>"
            for i in np.argsort(self.bic, kind="stable")
        )
        return (f"<div><b>{escape(self.best)}</b> fits best, by {self.criterion}<table><tr><th>model</th><th>ΔBIC</th>"
                f"<th>probability</th><th>R</th><th>B / Å²</th></tr>{rows}</table></div>")
