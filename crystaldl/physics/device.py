"""Which compute device to use."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..errors import DeviceError

if TYPE_CHECKING:
    import torch

EXPECTED = "expected 'auto', 'cpu', 'mps', 'cuda' or 'cuda:N'"


def resolve_device(device: str | torch.device = "auto") -> torch.device:
    """The torch device that a name stands for.

    Parameters
    ----------
    device : str or torch.device
        ``"auto"`` takes CUDA, else MPS, else the CPU. Otherwise ``"cpu"``, ``"mps"``, ``"cuda"`` or ``"cuda:1"``.

    Raises
    ------
    DeviceError
        The name is no device, or the device is not present on this machine.
    """
    import torch

    if isinstance(device, str) and device.strip().lower() == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device.strip().lower() if isinstance(device, str) else device)
    except (RuntimeError, TypeError) as error:
        raise DeviceError(f"device={device!r} is not known; {EXPECTED}.") from error
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }
    if chosen.type not in present:
        raise DeviceError(f"device={device!r} is not supported; {EXPECTED}.")
    if (chosen.index or 0) >= present[chosen.type]:
        found = ", ".join(f"{n} {kind}" for kind, n in present.items())
        raise DeviceError(f"device={device!r} is not present on this machine, which has {found} device(s).")
    return chosen
