"""A step's page indices, made on the device from the page table by Triton: where tokens go, which pages rows read.

The host knows lengths and slots; page numbers are on the device alone, so nothing here waits for either.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 256


# A number that differs from step to step is not compiled in, however it divides.
@triton.jit(do_not_specialize=["tokens"])
def token_places_kernel(
    places, page_table, width, slots, token_rows, positions, tokens,
    PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    used = token < tokens
    slot = tl.load(slots + tl.load(token_rows + token, mask=used, other=0), mask=used, other=0)
    position = tl.load(positions + token, mask=used, other=0)
    page = tl.load(page_table + slot.to(tl.int64) * width + position // PAGE, mask=used, other=0)
    tl.store(places + token, page * PAGE + position % PAGE, mask=used)


@triton.jit
def dense_tables_kernel(
    tables, width, lengths, page_table, page_table_width, slots, starts,
    PAGE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    first = tl.program_id(1) * BLOCK
    length = tl.load(starts + row) + 1
    pages = (length + PAGE - 1) // PAGE
    if first == 0:
        tl.store(lengths + row, length)
    if first < pages:
        column = first + tl.arange(0, BLOCK)
        slot = tl.load(slots + row).to(tl.int64)
        page = tl.load(page_table + slot * page_table_width + column, mask=column < pages, other=0)
        tl.store(tables + row.to(tl.int64) * width + column, page, mask=column < pages)


@triton.jit
def page_lists_kernel(lists, begins, page_table, page_table_width, slots, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    first = tl.program_id(1) * BLOCK
    begin = tl.load(begins + row)
    pages = tl.load(begins + row + 1) - begin
    if first < pages:
        column = first + tl.arange(0, BLOCK)
        slot = tl.load(slots + row).to(tl.int64)
        page = tl.load(page_table + slot * page_table_width + column, mask=column < pages, other=0)
        tl.store(lists + begin + column, page, mask=column < pages)


def token_places(
    places: torch.Tensor,  # (tokens,) int32, written
    page_table: torch.Tensor,  # (slots, max_pages) int32
    page_size: int,
    slots: torch.Tensor,  # (rows,) int32
    token_rows: torch.Tensor,  # (tokens,) int32
    positions: torch.Tensor,  # (tokens,) int32
) -> None:
    """Where each token's key and value go: page * page_size + offset."""
    tokens = len(positions)
    token_places_kernel[(-(-tokens // BLOCK),)](
        places, page_table, page_table.stride(0), slots, token_rows, positions, tokens, PAGE=page_size, BLOCK=BLOCK
    )  # fmt: skip


def dense_tables(
    tables: torch.Tensor,  # (rows or more, max_pages) int32, written as far as rows have pages
    lengths: torch.Tensor,  # (rows or more,) int32, written
    page_table: torch.Tensor,  # (slots, max_pages) int32
    page_size: int,
    slots: torch.Tensor,  # (rows,) int32
    starts: torch.Tensor,  # (rows,) int32
    max_context: int,  # of any row
) -> None:
    """The pages and the context of each row of a decode, one query token a row."""
    grid = (len(slots), -(-max_context // (page_size * BLOCK)))
    dense_tables_kernel[grid](
        tables, tables.stride(0), lengths, page_table, page_table.stride(0), slots, starts, PAGE=page_size, BLOCK=BLOCK
    )  # fmt: skip


def page_lists(
    lists: torch.Tensor,  # (pages of all rows,) int32, written
    begins: torch.Tensor,  # (rows + 1,) int32: where in `lists` each row's pages begin
    page_table: torch.Tensor,  # (slots, max_pages) int32
    slots: torch.Tensor,  # (rows,) int32
    max_pages: int,  # of any row
) -> None:
    """The pages of all rows, one row's after the other's."""
    grid = (len(slots), -(-max_pages // BLOCK))
    page_lists_kernel[grid](lists, begins, page_table, page_table.stride(0), slots, BLOCK=BLOCK)
