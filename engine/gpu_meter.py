"""How busy the engine's GPU is and how much of its memory is taken, by all processes, as NVML tells."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import torch

from ..scheduler.messages import EngineLoad

log = logging.getLogger(__name__)


class GpuMeter:
    """Asked once a second; a question takes some microseconds."""

    def __init__(self, nvml: Any, uuid: str) -> None:
        """`nvml` is the module `pynvml`; `uuid` names the device, whatever CUDA_VISIBLE_DEVICES hides."""
        self._nvml = nvml
        nvml.nvmlInit()
        self._device = nvml.nvmlDeviceGetHandleByUUID(uuid)

    def fill(self, load: EngineLoad) -> EngineLoad:
        """`load` with the GPU's state in it."""
        busy = self._nvml.nvmlDeviceGetUtilizationRates(self._device).gpu
        used = self._nvml.nvmlDeviceGetMemoryInfo(self._device).used
        return msgspec.structs.replace(load, gpu_usage=busy / 100, gpu_memory_bytes=int(used))


def gpu_meter(device: str) -> GpuMeter | None:
    """None on a CPU, and where NVML cannot be asked, which is said in the log."""
    if torch.device(device).type != "cuda":
        return None
    try:
        import pynvml

        uuid = str(torch.cuda.get_device_properties(torch.device(device)).uuid)
        return GpuMeter(pynvml, uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
    except Exception as error:  # NVML raises classes of its own, and the server can do without
        log.warning("no gpu_usage and gpu_memory_usage: NVML cannot be asked: %s", error)
        return None
