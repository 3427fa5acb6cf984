"""Encoders: contents in, vectors of length 1 out; one interface for text, images and audio.

The real processors and models of transformers do the work. Here are batching, pooling and the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from qiance.artifacts.encoder_weights import Weights
from qiance.features.embedding_spec import EmbeddingSpec

if TYPE_CHECKING:
    import torch

Vectors = NDArray[np.float32]
Tell = Callable[[float, str], None]
# Characters per token that are kept before the tokenizer cuts: bounds its work on a book-long text.
_CHARACTERS_PER_TOKEN = 64
_NAMES = {"text": "text_model", "image": "vision_model", "audio": "audio_model"}


class BadContentError(ValueError):
    """One content cannot be read; its row goes to quarantine with this reason."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """One content made ready: the processor's arrays without the batch axis.

    size: contents of equal size are batched without padding, or with little.
    """

    arrays: dict[str, torch.Tensor]
    size: tuple[int, ...]


class Reader(Protocol):
    """Turns contents into inputs of the model, and inputs into a batch."""

    def read(self, contents: Sequence[Any]) -> list[Inputs | BadContentError]: ...

    def batches(self, inputs: Sequence[Inputs], size: int) -> Iterator[list[int]]: ...

    def collate(self, inputs: Sequence[Inputs]) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """vectors `[n, dimension]` float32 of length 1, NaN where there is none; layers `[n, (L+1)·d]` float32,
    the mean token state after the embedding and each of L layers, or None; bad: row → why it has none."""

    vectors: Vectors
    layers: Vectors | None
    bad: dict[int, str]


class Encoder:
    """A model and its reader; `encode` is deterministic on CPU for the same contents in the same order."""

    def __init__(self, spec: EmbeddingSpec, model: Any, reader: Reader, device: str = "cpu") -> None:
        self.spec = spec
        self.model = _tower(model, spec.modality).to(device).eval()
        self.reader = reader
        self.device = device

    def encode(self, contents: Sequence[Any], tell: Tell | None = None, layers: bool = False) -> Encoded:
        """Vectors of `contents`; with `layers` (text only) also the mean state after each layer."""
        read = self.reader.read(contents)
        bad = {i: str(found) for i, found in enumerate(read) if isinstance(found, BadContentError)}
        good = [i for i in range(len(contents)) if i not in bad]
        inputs = [found for found in read if isinstance(found, Inputs)]
        vectors = np.full((len(contents), self.spec.dimension), np.nan, dtype=np.float32)
        states: Vectors | None = None
        done = 0
        for rows in self.reader.batches(inputs, self.spec.batch_size):
            where = [good[row] for row in rows]
            vectors[where], means = self._pass([inputs[row] for row in rows], layers)
            if means is not None:
                if states is None:
                    states = np.full((len(contents), means.shape[1]), np.nan, dtype=np.float32)
                states[where] = means
            done += len(rows)
            if tell:
                tell(done / len(inputs), f"{done:,} of {len(inputs):,} embedded")
        return Encoded(vectors, states, bad)

    def _pass(self, inputs: Sequence[Inputs], layers: bool) -> tuple[Vectors, Vectors | None]:
        import torch

        with torch.inference_mode():
            batch = {name: value.to(self.device) for name, value in self.reader.collate(inputs).items()}
            mask = batch.get("attention_mask") if self.spec.modality == "text" else None
            output = self.model(**batch, output_hidden_states=layers)
            pooled = _pooled(output, mask, self.spec)
            self._check_dimension(pooled.shape[1])
            vectors = torch.nn.functional.normalize(pooled.double(), dim=1).float().cpu().numpy()
            if not layers or mask is None:
                return vectors, None
            means = [_masked_mean(states, mask) for states in output.hidden_states]
            return vectors, torch.cat(means, dim=1).float().cpu().numpy()

    def _check_dimension(self, found: int) -> None:
        if found != self.spec.dimension:
            raise ValueError(
                f"{self.spec.name}.dimension: {self.spec.dimension} is declared, but the model "
                f"{self.spec.model!r} gives {found}; write dimension: {found}, or choose another model"
            )


def _tower(model: Any, modality: str) -> Any:
    """The part that reads `modality` in a model of several (CLIP, CLAP) or with a decoder (Whisper)."""
    part = getattr(model, _NAMES[modality], None)
    if part is not None:
        return part
    return model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model


def _pooled(output: Any, mask: torch.Tensor | None, spec: EmbeddingSpec) -> torch.Tensor:
    """`[b, d]` from the model's output; positions are tokens, patches, pixels of a map, or frames."""
    if spec.pooling == "pooler":
        pooler: torch.Tensor | None = getattr(output, "pooler_output", None)
        if pooler is None:
            raise ValueError(f"{spec.name}.pooling: the model has no pooler output; use mean")
        return pooler.flatten(1)
    states: torch.Tensor = output.last_hidden_state
    if states.dim() == 4:  # [b, d, height, width] of convolutional networks
        states = states.flatten(2).transpose(1, 2)
    if spec.pooling == "first":
        return states[:, 0]
    return states.mean(1) if mask is None else _masked_mean(states, mask)


def _masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """`[b, d]`, the mean of `states` `[b, t, d]` over the real tokens of `mask` `[b, t]`."""
    weights = mask[:, :, None].to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1.0)


class TextReader:
    """Tokens of texts, cut at `max_tokens`; batches are sorted by length, so that little is padded."""

    def __init__(self, tokenizer: Any, max_tokens: int) -> None:
        self._tokenizer = tokenizer
        self._max = max_tokens
        self._pad = tokenizer.pad_token_id or 0

    def read(self, contents: Sequence[Any]) -> list[Inputs | BadContentError]:
        """Token ids and type ids of each text."""
        import torch

        texts = [text[: self._max * _CHARACTERS_PER_TOKEN] for text in contents]
        if not texts:
            return []
        found = self._tokenizer(texts, truncation=True, max_length=self._max, return_attention_mask=False)
        names = list(found.keys())
        return [
            Inputs({name: torch.tensor(found[name][row]) for name in names}, (len(found["input_ids"][row]),))
            for row in range(len(texts))
        ]

    def batches(self, inputs: Sequence[Inputs], size: int) -> Iterator[list[int]]:
        """Rows in order of length, longest first: what does not fit into memory fails at once."""
        order = sorted(range(len(inputs)), key=lambda row: (-inputs[row].size[0], row))
        for start in range(0, len(order), size):
            yield order[start : start + size]

    def collate(self, inputs: Sequence[Inputs]) -> dict[str, torch.Tensor]:
        """Padded to the longest, with the attention mask."""
        import torch

        longest = max(one.size[0] for one in inputs)
        mask = torch.zeros(len(inputs), longest, dtype=torch.long)
        for row, one in enumerate(inputs):
            mask[row, : one.size[0]] = 1
        batch = {"attention_mask": mask}
        for name in inputs[0].arrays:
            filler = self._pad if name == "input_ids" else 0
            batch[name] = torch.full((len(inputs), longest), filler, dtype=torch.long)
            for row, one in enumerate(inputs):
                batch[name][row, : one.size[0]] = one.arrays[name]
        return batch


def open_text_encoder(spec: EmbeddingSpec, weights: Weights, device: str = "cpu") -> Encoder:
    """The encoder of texts that `spec` asks for; ModelUnavailableError or ValueError says what is wrong."""
    from transformers import AutoTokenizer

    return load_with(
        TextReader(weights.load(AutoTokenizer.from_pretrained), spec.max_tokens), spec, weights, device
    )


def load_with(reader: Reader, spec: EmbeddingSpec, weights: Weights, device: str = "cpu") -> Encoder:
    """The model of `weights` behind a reader of its contents."""
    from transformers import AutoModel

    return Encoder(spec, weights.load_model(AutoModel.from_pretrained), reader, device)
