"""Rows of unequal length: padded to one tensor, and put together so that little of it is padding."""

from collections.abc import Sequence

import torch
from torch import Tensor


def token_batches(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Places of rows of these lengths, shortest first, in batches of at most `budget` tokens, padding included.

    Like lengths come together, so little of it is padding. A row longer than the budget is a batch of its own."""
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda k: lengths[k]):
        if not batches or (len(batches[-1]) + 1) * lengths[row] > budget:
            batches.append([])
        batches[-1].append(row)
    return batches


def pad_rows(rows: Sequence[Sequence[int]], pad: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Ragged lists of token ids as one `[n, longest]` tensor and its mask (1 on real tokens)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros_like(ids)
    for k, row in enumerate(rows):
        span = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[k, span], mask[k, span] = torch.tensor(row, dtype=torch.long), 1
    return ids, mask
