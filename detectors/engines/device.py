"""The device that a network and a detector compute on: chosen by name, or refused by name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from detectors.profile.files import DeviceError
from detectors.profile.spec import Precision


def choose_device(name: str) -> torch.device:
    """The device of a name as torch has them; `auto` is CUDA where there is one, else the CPU.

    Raises:
        DeviceError: torch knows no such device, or this machine has none.

    >>> choose_device("cpu")
    device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch raises either, by the kind of device
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise DeviceError(
            f"device {name!r} cannot be used on this machine: {reason}; `auto` takes CUDA or the CPU"
        ) from error
    return device


def check_precision(device: torch.device, precision: Precision) -> None:
    """DeviceError where the device does not compute in the precision that a profile was calibrated in."""
    if precision == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise DeviceError(
            f"device {str(device)!r} does not compute in bfloat16, in which this profile was fitted and calibrated; "
            "score it on another device, or fit in float32"
        )


@contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """In which a network computes in the precision of its profile.

    float32 is float32 on CUDA too: by default cuDNN rounds the inputs of convolutions to TF32, which has the 10 bits of
    half precision, and the calibration would be that of another network.
    """
    half = torch.autocast(device.type, torch.bfloat16) if precision == "bfloat16" else nullcontext()
    exact = torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if device.type == "cuda" else nullcontext()
    with exact, half:
        yield
