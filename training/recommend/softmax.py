"""Cross-entropy over all items without ever holding the scores of more than some positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Scores of so many positions at once: 128 × 12,000 items are 6 MB, which stay in the processor's cache.
_ROWS = 128


class FullSoftmax(torch.autograd.Function):
    """Mean of logsumexp(E h) − (E h)_target over positions; gradients are worked out in the same pass.

    With p the softmax less 1 at the target, they are pᵀ-weighted sums: dh = p E / n, dE = pᵀ h / n.
    """

    @staticmethod
    def forward(ctx: Any, state: Tensor, items: Tensor, target: Tensor) -> Tensor:
        """state `[n, d]`, items `[V, d]`, target `[n]` in 0..V-1 → scalar."""
        d_state, d_items, total = torch.empty_like(state), torch.zeros_like(items), state.new_zeros(())
        for start in range(0, len(state), _ROWS):
            rows, wanted = state[start : start + _ROWS], target[start : start + _ROWS]
            scores = rows @ items.T
            norm = torch.logsumexp(scores, dim=1, keepdim=True)
            total += (norm - scores.gather(1, wanted[:, None])).sum()
            p = scores.sub_(norm).exp_()
            p[torch.arange(len(rows)), wanted] -= 1.0
            torch.mm(p, items, out=d_state[start : start + _ROWS])
            d_items.addmm_(p.T, rows)
        ctx.save_for_backward(d_state / len(state), d_items / len(state))
        return total / len(state)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        d_state, d_items = ctx.saved_tensors
        return grads[0] * d_state, grads[0] * d_items, None
