"""A transformer over the purchases of a user, whose output is compared with every item (SASRec, Kang and
McAuley, 2018; trained by the full softmax as in Klenitskiy and Vasilev, 2023)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """items: V. width: of an item's vector. length: purchases that are looked back on. dropout: share of the
    numbers that a training step leaves out."""

    items: int
    width: int = 64
    blocks: int = 2
    heads: int = 2
    length: int = 50
    dropout: float = 0.5

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads: {self.heads} do not divide the width {self.width}")


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each normalised before and added."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        width = config.width
        self.heads, self.dropout = config.heads, config.dropout
        self.before_attention, self.before_forward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.projections, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.widen, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """`[b, t, d]` → the same. What comes after a position does not change it, so padding at the end needs
        no mask."""
        x = x + self._drop(self.out(self._attend(self.before_attention(x))))
        inner = functional.gelu(self.widen(self.before_forward(x)))
        return x + self._drop(self.narrow(self._drop(inner)))

    def _attend(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        query, key, value = self.projections(x).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        dropout = self.dropout if self.training else 0.0
        found = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return found.transpose(1, 2).reshape(b, t, d)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class SequenceNetwork(nn.Module):
    """Item numbers in, a score for every item out."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.item = nn.Embedding(config.items + 1, config.width, padding_idx=0)
        self.position = nn.Embedding(config.length, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.normalise = nn.LayerNorm(config.width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        with torch.no_grad():
            self.item.weight[0].zero_()

    def forward(self, items: Tensor) -> Tensor:
        """`[b, t]` item numbers, 0 after the last → `[b, t, d]`: where the next item is looked for."""
        place = torch.arange(items.shape[1], device=items.device)
        x = self.item(items) + self.position(place)
        x = functional.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            x = block(x)
        return self.normalise(x)

    @torch.no_grad()
    def start_from(self, vectors: Tensor) -> None:
        """Take `vectors` `[V, d]` as the items'; those that are 0 stay as they are."""
        known = vectors.abs().sum(1) > 0
        self.item.weight[1:][known] = vectors[known]

    def scores(self, state: Tensor) -> Tensor:
        """`[n, V]` of the items 1..V from `[n, d]`."""
        return state @ self.item.weight[1:].T

    def loss(self, items: Tensor, target: Tensor, others: Tensor | None = None) -> Tensor:
        """Mean cross-entropy of the positions whose target `[b, t]` is not 0.

        Over all V items, or over the target and `others` `[m]`, drawn uniformly from all, which stand for the
        rest: where they are not the target they count V / m times, so that the mean of their sum is that over
        the rest (Bengio and Senécal, 2003).
        """
        real = target > 0
        state, wanted = self(items)[real], target[real]
        if others is None:
            return functional.cross_entropy(self.scores(state), wanted - 1)
        own = (state * self.item(wanted)).sum(1, keepdim=True)
        scale = math.log(self.config.items / len(others))
        rest = (state @ self.item(others).T + scale).masked_fill(others == wanted[:, None], -torch.inf)
        return (torch.logsumexp(torch.cat([own, rest], dim=1), dim=1) - own[:, 0]).mean()


class NextItem(nn.Module):
    """What serving asks of the network: the scores of what is bought after the last item of each row."""

    def __init__(self, network: SequenceNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, items: Tensor) -> Tensor:
        """`[b, t]` item numbers, 0 after the last → `[b, V]`."""
        last = (items > 0).sum(1, keepdim=True) - 1
        states = self.network(items)
        at_last = last[:, :, None].expand(-1, -1, states.shape[2])
        return self.network.scores(states.gather(1, at_last)[:, 0])
