"""What NVML says of the engine's GPU gets into its load; without one there is nothing to say."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from penstock.engine.gpu_meter import GpuMeter, gpu_meter
from penstock.scheduler.messages import EngineLoad


class Nvml:
    """As much of pynvml as is asked for; its calls need an earlier `nvmlInit`."""

    def __init__(self) -> None:
        self.is_ready = False

    def nvmlInit(self) -> None:
        self.is_ready = True

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        assert self.is_ready
        if uuid != "GPU-1234":
            raise LookupError(uuid)
        return "the handle"

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> SimpleNamespace:
        assert handle == "the handle"
        return SimpleNamespace(gpu=37, memory=11)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        assert handle == "the handle"
        return SimpleNamespace(total=80 << 30, used=5 << 30, free=75 << 30)


def test_usage_is_a_share_and_memory_is_bytes() -> None:
    load = GpuMeter(Nvml(), "GPU-1234").fill(EngineLoad(num_running=3))
    assert (load.num_running, load.gpu_usage, load.gpu_memory_bytes) == (3, 0.37, 5 << 30)


def test_another_device_is_not_asked_for() -> None:
    with pytest.raises(LookupError):
        GpuMeter(Nvml(), "GPU-5678")


def test_a_cpu_has_none() -> None:
    assert gpu_meter("cpu") is None
    assert EngineLoad().gpu_usage is None
