"""Names of compute devices."""

from __future__ import annotations

import pytest
import torch

from crystaldl.errors import DeviceError
from crystaldl.physics.device import resolve_device


def test_known_devices():
    assert resolve_device("cpu") == resolve_device(" CPU ") == resolve_device(torch.device("cpu")) == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else resolve_device().type)


@pytest.mark.parametrize("name", ["gpu", "", "cpu:3", "cuda:99", "meta", "xpu", None, 5])
def test_unknown_devices(name):
    with pytest.raises(DeviceError, match="device=") as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value) and isinstance(caught.value, ValueError)
