"""Linear layers on CPUs: weights packed once into the kernels' panels, as they are or with 8 or 4 bits."""

from __future__ import annotations

import torch

from .library import SUFFIXES, Library

LONG_PRODUCT = 5_000_000  # multiply-adds from which on the GIL is given back meanwhile


class CpuLinear:
    """y = x @ weight.T + bias over a packed weight; the original is not kept.

    `gated`: y = silu(gate) · up, gate being the first half of that product's features and up the second. With `bits` the
    weight is quantised, and activations are rounded to 16 bits relative to the largest of 128, which loses less than
    bfloat16 itself.
    """

    def __init__(
        self,
        library: Library,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        *,
        gated: bool = False,
        bits: int | None = None,
    ) -> None:
        rows, self.in_features = weight.shape
        self.out_features = rows // 2 if gated else rows
        self.gated = gated
        self.dtype = weight.dtype
        suffix = SUFFIXES[weight.dtype]
        shape = (self.out_features, self.in_features, int(gated))
        if bits is None:
            kind, numbers = "linear", int(weight.dtype == torch.bfloat16)
            size = 4 * library.quick["linear_words"](numbers, *shape)
            pack = library.long["linear_pack"]
        else:
            kind, numbers = "quantized", bits
            size = library.quick["quantized_bytes"](numbers, *shape)
            pack = library.long[f"quantized_pack_{suffix}"]
        self._packed = torch.empty(size, dtype=torch.uint8)
        self._bias = None if bias is None else bias.float().contiguous()
        weight = weight if weight.stride(1) == 1 else weight.contiguous()
        packed = self._packed.data_ptr()
        library.quick["advise_huge"](packed, self._packed.nbytes)
        pack(numbers, weight.data_ptr(), weight.stride(0), *shape, packed)
        self._handle = library.quick[f"{kind}_new"](
            numbers, packed, None if self._bias is None else self._bias.data_ptr(), *shape
        )
        self._free = library.quick[f"{kind}_free"]
        self._quick, self._long = library.quick[f"{kind}_{suffix}"], library.long[f"{kind}_{suffix}"]
        self._rows = library.quick[f"{kind}_rows_{suffix}"]
        self._quick_tokens = LONG_PRODUCT // (rows * self.in_features)

    def __del__(self) -> None:
        if hasattr(self, "_free"):
            self._free(self._handle)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(T, in_features) -> (T, out_features), same dtype."""
        assert x.shape[1] == self.in_features
        assert x.dtype == self.dtype
        if x.stride(1) != 1:
            x = x.contiguous()
        tokens = x.shape[0]
        y = torch.empty((tokens, self.out_features), dtype=self.dtype)
        call = self._quick if tokens <= self._quick_tokens else self._long
        call(self._handle, x.data_ptr(), x.stride(0), tokens, y.data_ptr())
        return y

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows of the weight (as it was rounded), (N,) int -> (N, in_features), gathered out of the panels
        (microseconds a row)."""
        assert not self.gated, "a gated product is no table"
        ids = ids.to(torch.int32).contiguous()
        assert not len(ids) or 0 <= int(ids.min()) <= int(ids.max()) < self.out_features
        out = torch.empty((len(ids), self.in_features), dtype=self.dtype)
        self._rows(self._handle, ids.data_ptr(), len(ids), out.data_ptr())
        return out
