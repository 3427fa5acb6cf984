"""What is exported of the effect model: the network as serving runs it.

The same function as `EffectNetwork`, arranged for speed. A layer's rows are features and its columns are
rows of data, so that every slice is contiguous; the cross layer and the first layer of the trunk are one
product, and so are all heads. A decision scores few users with many actions: `ServedActions` runs what
hangs on the actions alone, once per candidate set, and `ServedPairs` the rest.
Shapes: N rows, D inputs of the network, F outputs of the first product, H heads, T tasks, P of them
probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.effect.network import HEAD_WIDTH, LOG_RANGE, EffectNetwork, NetworkConfig

Tasks = tuple[Tensor, ...]
_CHANCES = ("click", "conversion")


@dataclass(frozen=True)
class Curves:
    """Beta calibration as the programs apply it: σ(a · ln p − b · ln(1 − p) + offset).

    slopes: (a, b) by probability task. offsets: `[codes, P]`, by the code of categorical feature `place`; one
    row where there is no such feature.
    """

    slopes: Mapping[str, tuple[float, float]]
    offsets: Tensor
    place: int | None


class _Served(nn.Module):
    """Weights rearranged. `order`: the inputs of the network, in the order in which `forward` joins them.

    curves: how probabilities are corrected, None to leave them as they are.
    """

    first: Tensor
    first_bias: Tensor
    heads: Tensor
    heads_bias: Tensor
    heads_out: Tensor
    log_sales: Tensor
    offsets: Tensor
    slope: Tensor
    bend: Tensor

    def __init__(self, network: EffectNetwork, order: Sequence[int], curves: Curves | None) -> None:
        super().__init__()
        self.config, self.curves = network.config, curves
        self.offset_rows = 0 if curves is None else len(curves.slopes)
        self.codes = len(network.embeddings)
        layers = [layer for layer in network.trunk if isinstance(layer, nn.Linear)]
        self.width, self.trunk = len(order), layers[0].out_features
        chosen = torch.tensor(list(order))
        with torch.no_grad():
            for place, embedding in enumerate(network.embeddings):
                self._keep(f"embedding_{place}", embedding.weight)
            self._keep("first", torch.cat([network.cross.weight[chosen], layers[0].weight])[:, chosen])
            bias = torch.cat([network.cross.bias[chosen], layers[0].bias])
            self._keep("first_bias", bias[:, None])
            self.deeper = len(layers) - 1
            for place, layer in enumerate(layers[1:]):
                self._keep(f"deeper_{place}", layer.weight)
                self._keep(f"deeper_bias_{place}", layer.bias[:, None])
            self._keep_heads(network, chosen)
            if curves is not None:
                slopes = torch.tensor(list(curves.slopes.values()))
                self._keep("offsets", curves.offsets)
                self._keep("slope", slopes[:, :1])
                self._keep("bend", slopes[:, 1:] - slopes[:, :1])

    def _keep(self, name: str, values: Tensor) -> None:
        self.register_buffer(name, values.detach().contiguous().clone())

    def _keep_heads(self, network: EffectNetwork, chosen: Tensor) -> None:
        """One matrix: hidden units of all heads, then the direct outputs, task by task."""
        scale, shift = _output_scales(self.config)
        rows = torch.cat([chosen, torch.arange(self.width, network.head_in.shape[1])])
        hidden = network.head_in[:, rows].permute(0, 2, 1).flatten(0, 1)
        direct = (network.direct[:, rows] * scale).permute(2, 0, 1).flatten(0, 1)
        bias = (network.bias * scale + shift).t().flatten()
        self._keep("heads", torch.cat([hidden, direct]))
        self._keep("heads_bias", torch.cat([network.head_in_bias.flatten(), bias])[:, None])
        self._keep("log_sales", torch.tensor(math.log(self.config.sales_scale)))
        self._keep("heads_out", (network.head_out * scale).transpose(1, 2))

    def _embedded(self, cat: Tensor) -> list[Tensor]:
        if not self.codes:  # a program that takes nothing apart cannot be read again
            return []
        tables = (getattr(self, f"embedding_{place}") for place in range(self.codes))
        return [functional.embedding(codes, table).t() for codes, table in zip(cat.t(), tables, strict=True)]

    def _offsets(self, cat: Tensor) -> list[Tensor]:
        """`[P, N]` to be added to log odds, or nothing."""
        if self.curves is None:
            return []
        if self.curves.place is None:
            return [self.offsets.t().expand(-1, cat.shape[0])]
        return [functional.embedding(cat[:, self.curves.place], self.offsets).t()]

    def _finish(self, crossed: Sequence[Tensor], trunk: Tensor, offsets: Sequence[Tensor]) -> Tasks:
        """crossed: outputs of the cross layer, D rows in all; trunk: what enters its ReLU, overwritten."""
        heads, tasks = self.config.heads, len(self.config.tasks)
        for place in range(self.deeper):
            weight, bias = getattr(self, f"deeper_{place}"), getattr(self, f"deeper_bias_{place}")
            trunk = torch.addmm(bias, weight, trunk.relu_())
        shared = torch.cat([*crossed, trunk.relu_()])
        inner = torch.addmm(self.heads_bias, self.heads, shared)
        hidden, direct = inner.split([heads * HEAD_WIDTH, tasks * heads])
        hidden = hidden.relu_().view(heads, HEAD_WIDTH, -1)
        direct = direct.view(tasks, heads, -1).transpose(0, 1)
        return self._outcomes(torch.baddbmm(direct, self.heads_out, hidden).float(), offsets)

    def _outcomes(self, raw: Tensor, offsets: Sequence[Tensor]) -> Tasks:
        """Per task `[H, N]` of `raw` `[H, T, N]`: probabilities, and expected minor units per row."""
        outputs = dict(zip(self.config.tasks, raw.unbind(1), strict=True))
        served = self._corrected(raw, offsets[0]) if offsets else self._probabilities(outputs)
        if "sales" in outputs:
            log_mean = torch.add(self.log_sales, torch.tanh(outputs["sales"]), alpha=LOG_RANGE)
            served["sales"] = served["conversion"] * torch.exp(log_mean)
        if "margin" in outputs:
            served["margin"] = served["conversion"] * outputs["margin"]
        return tuple(served[task] for task in self.config.tasks)

    def _probabilities(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return self._joined({t: torch.sigmoid(outputs[t]) for t in _CHANCES if t in outputs})

    def _corrected(self, raw: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        """The same, calibrated, before they are multiplied: ln σ(z) = z − ln(1 + eᶻ)."""
        money = len(self.config.tasks) - self.offset_rows  # tasks begin with the probabilities
        odds = raw.split([self.offset_rows, money], dim=1)[0] if money else raw
        bent = torch.addcmul(offsets, odds, self.slope)
        bent = torch.addcmul(bent, functional.softplus(odds), self.bend)
        found = dict(zip(self.curves.slopes, torch.sigmoid(bent).unbind(1), strict=True))
        return self._joined(found)

    def _joined(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.config.entire_space:
            found["conversion"] = found["conversion"] * found["click"]
        return found


def _output_scales(config: NetworkConfig) -> tuple[Tensor, Tensor]:
    """`[T]` each: put into the weights of the heads, they spare `_outcomes` the scales of money."""
    scale = {"sales": 1 / LOG_RANGE, "margin": config.margin_scale}
    shift = {"margin": config.margin_centre}
    return (
        torch.tensor([float(scale.get(task, 1.0)) for task in config.tasks]),
        torch.tensor([float(shift.get(task, 0.0)) for task in config.tasks]),
    )


class ServedNetwork(_Served):
    """The whole network over rows."""

    def __init__(self, network: EffectNetwork, curves: Curves | None = None) -> None:
        super().__init__(network, range(network.cross.in_features), curves)

    def forward(self, num: Tensor, cat: Tensor) -> Tensor:
        """num `[N, Dn]` float32, cat `[N, Dc]` int64 → `[N, H, T]`, tasks in the order of the config."""
        x = torch.cat([num.t(), *self._embedded(cat)])
        cross, trunk = torch.addmm(self.first_bias, self.first, x).split([self.width, self.trunk])
        tasks = self._finish([torch.addcmul(x, x, cross)], trunk, self._offsets(cat))
        return torch.stack(tasks).permute(2, 1, 0)


class _Split(_Served):
    """The network over users × actions: inputs of the actions, then the user's, then those of both.

    user, pair: which of the Dn columns hang on the user alone, and on user and action.
    """

    def __init__(
        self,
        network: EffectNetwork,
        user: Sequence[int],
        pair: Sequence[int],
        curves: Curves | None = None,
    ) -> None:
        others = {*user, *pair}
        action = [place for place in range(network.cross.in_features) if place not in others]
        super().__init__(network, [*action, *user, *pair], curves)
        self.numbers = [place for place in action if place < network.config.num_width]
        self.sizes = (len(action), len(user), len(pair))


class ServedActions(_Split):
    """The part that does not hang on the user."""

    def forward(self, num: Tensor, cat: Tensor) -> tuple[Tensor, Tensor]:
        """num `[A, Dn]`, cat `[A, Dc]` → their inputs `[Da, A]`, and the first product of these `[F, A]`.

        With curves, their offsets are P more rows of the product.
        """
        x = torch.cat([num.t()[self.numbers], *self._embedded(cat)])
        product = torch.addmm(self.first_bias, self.first[:, : self.sizes[0]], x)
        return x, torch.cat([product, *self._offsets(cat)])


class ServedPairs(_Split):
    """The part that hangs on the user."""

    first_user: Tensor
    first_pair: Tensor

    def __init__(
        self,
        network: EffectNetwork,
        user: Sequence[int],
        pair: Sequence[int],
        curves: Curves | None = None,
    ) -> None:
        super().__init__(network, user, pair, curves)
        actions, users, _ = self.sizes
        # Offsets hang on the action alone.
        first = functional.pad(self.first, (0, 0, 0, self.offset_rows))
        self._keep("first_user", first[:, actions : actions + users])
        self._keep("first_pair", first[:, actions + users :])
        # The archive would hold these all the same.
        for name in ("first", "first_bias", *(f"embedding_{place}" for place in range(self.codes))):
            delattr(self, name)

    def forward(self, action: Tensor, product: Tensor, user: Tensor, pair: Tensor) -> Tasks:
        """action, product: of `ServedActions`; user `[Du, U]`; pair `[Dp, U, A]` → `[H, U·A]` per task."""
        actions, users, pairs = self.sizes
        rows = (user.shape[1], action.shape[1])
        pair = pair.view(pairs, -1)
        base = product.unsqueeze(1) + torch.mm(self.first_user, user).unsqueeze(2)
        first = torch.addmm(base.view(len(self.first_pair), -1), self.first_pair, pair)
        parts = [actions, users, pairs, self.trunk, *([self.offset_rows] if self.offset_rows else [])]
        of_action, of_user, of_pair, trunk, *offsets = first.split(parts)
        own, asked = action.unsqueeze(1), user.unsqueeze(2)
        crossed = (
            torch.addcmul(own, own, of_action.view(actions, *rows)).view(actions, -1),
            torch.addcmul(asked, asked, of_user.view(users, *rows)).view(users, -1),
            torch.addcmul(pair, pair, of_pair),
        )
        return self._finish(crossed, trunk, offsets)
