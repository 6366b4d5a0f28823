"""Host arrays whose copy on the device was made already, together with others: nobody need copy them again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch


class Staged(np.ndarray[Any, np.dtype[Any]]):
    """An array that knows its copy. What is computed or cut from it is an array like any other."""

    on_device: torch.Tensor | None = None


def staged(array: npt.NDArray[Any], on_device: torch.Tensor) -> npt.NDArray[Any]:
    """`array`, with `on_device` as its copy there."""
    result = array.view(Staged)
    result.on_device = on_device
    return result


def on_device(array: npt.NDArray[Any], device: torch.device) -> torch.Tensor:
    """The array on `device`: the copy it has, or one made now through pinned memory, which waits for nothing."""
    copy = getattr(array, "on_device", None)
    if isinstance(copy, torch.Tensor):
        return copy
    tensor = torch.from_numpy(np.asarray(array))
    if device.type == "cpu":
        return tensor
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor).to(device, non_blocking=True)
