"""What a machine is: all that figures and failures depend on beside the code."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from typing import Any

import torch

BACK_ENDS = ("flashinfer-python", "triton")


def machine(device: torch.device) -> dict[str, Any]:
    """Versions of Python, torch and the back ends (None: not installed), the device and its driver."""
    found: dict[str, Any] = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in BACK_ENDS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return {
        **found,
        "device": device_name(device),
        "cuda": torch.version.cuda,
        "driver": driver_version() if device.type == "cuda" else None,
    }


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


def driver_version() -> str | None:
    """As nvidia-smi has it; None where it is not there."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.splitlines()[0].strip() if found.stdout.strip() else None
