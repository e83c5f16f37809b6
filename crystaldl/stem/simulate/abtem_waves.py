"""Exit waves by abTEM, another group's multislice (Madsen & Susi, Open Res. Europe 1:24, 2021): the second simulator.

abTEM is no dependency of crystaldl; without it, `available` is False and nothing here is called.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor

SLICE = 2.0  # Å


def available() -> bool:
    """Whether abTEM and the ASE are installed."""
    return find_spec("abtem") is not None and find_spec("ase") is not None


def exit_waves(crystal: tuple, repeat, grid, wave: Tensor, thicknesses, voltage: float) -> Tensor:
    """Waves behind a crystal.

    Parameters
    ----------
    crystal : (name, edges, numbers, positions, b_iso)
        As `crystaldl.stem.recipe.benchmark.benchmark_crystals` gives it: an orthogonal cell, Å, fractional coordinates, Å².
    repeat, grid : (2,)
        Cells and points along the axes.
    wave : (Ny, Nx) complex tensor
        Incident wave in real space.
    thicknesses : sequence of float, Å
        Ascending; rounded to whole cells.
    voltage : float, kV

    Returns
    -------
    (T, Ny, Nx) complex64 tensor
    """
    import abtem
    import ase
    from abtem.parametrizations import PengParametrization

    _, edges, numbers, positions, b_iso = crystal
    cell = ase.Atoms(numbers=numbers, scaled_positions=positions, cell=edges, pbc=True)
    vibration = float(np.sqrt(b_iso / (8 * np.pi**2)))
    potential = abtem.Potential(
        cell * (int(repeat[0]), int(repeat[1]), 1), gpts=tuple(int(n) for n in grid), slice_thickness=SLICE, projection="infinite",
        parametrization=PengParametrization(sigmas=dict.fromkeys(sorted(set(cell.symbols)), vibration)),
    ).build(lazy=False)  # fmt: skip
    extent = tuple(float(e * r) for e, r in zip(edges, repeat, strict=False))
    waves, done, out = abtem.Waves(wave.numpy().astype(np.complex64), energy=1e3 * voltage, extent=extent), 0, []
    for thickness in thicknesses:
        cells = max(1, round(thickness / edges[2]))
        for _ in range(cells - done):
            waves = waves.multislice(potential)
        done = cells
        out.append(np.asarray(waves.compute().array).reshape(tuple(wave.shape)))
    return torch.as_tensor(np.array(out), dtype=torch.complex64)
