"""Images and audio: from bytes or a path to the inputs of a model, by transformers' own processors.

Only contents of equal shape share a batch. Clips of different length are never padded, so a clip's
vector does not depend on its neighbours.
"""

from __future__ import annotations

import io
import wave
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from math import gcd
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qiance.artifacts.encoder_weights import Weights
from qiance.artifacts.encoders import BadContentError, Inputs, Reader

Samples = NDArray[np.float32]
MAX_PIXELS = 64_000_000
MAX_SECONDS = 600.0
_FULL_SCALE = {1: 128.0, 2: 32_768.0, 3: 8_388_608.0, 4: 2_147_483_648.0}


def media_reader(modality: str, weights: Weights) -> Reader:
    """The reader for images or audio, with the processor that was saved beside the model."""
    if modality == "image":
        from transformers import AutoImageProcessor

        return ImageReader(weights.load(AutoImageProcessor.from_pretrained, backend="pil"))
    from transformers import AutoFeatureExtractor

    return AudioReader(weights.load(AutoFeatureExtractor.from_pretrained))


class _ShapedReader(ABC):
    """Batches of contents whose inputs have the same shapes."""

    def read(self, contents: Sequence[Any]) -> list[Inputs | BadContentError]:
        """Inputs of each content, or why it has none."""
        return [self._one(content) for content in contents]

    def _one(self, content: Any) -> Inputs | BadContentError:
        try:
            arrays = self._processed(content)
        except BadContentError as error:
            return error
        return Inputs(arrays, tuple(size for value in arrays.values() for size in value.shape))

    @abstractmethod
    def _processed(self, content: Any) -> dict[str, torch.Tensor]:
        """What the processor makes of one content; BadContentError if it cannot be read."""

    def batches(self, inputs: Sequence[Inputs], size: int) -> Iterator[list[int]]:
        """Rows of equal shape, largest first."""
        order = sorted(range(len(inputs)), key=lambda row: (tuple(-n for n in inputs[row].size), row))
        start = 0
        while start < len(order):
            shape = inputs[order[start]].size
            stop = start
            while stop < min(len(order), start + size) and inputs[order[stop]].size == shape:
                stop += 1
            yield order[start:stop]
            start = stop

    def collate(self, inputs: Sequence[Inputs]) -> dict[str, torch.Tensor]:
        """Stacked; the shapes are equal."""
        return {name: torch.stack([one.arrays[name] for one in inputs]) for name in inputs[0].arrays}


class ImageReader(_ShapedReader):
    """Any format that Pillow reads, as RGB."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def _processed(self, content: Any) -> dict[str, torch.Tensor]:
        return _unbatched(self._processor(images=[decode_image(content)], return_tensors="pt"))


class AudioReader(_ShapedReader):
    """WAV files with whole-number samples, mixed to one channel at the rate that the model was made for."""

    def __init__(self, extractor: Any) -> None:
        self._extractor = extractor

    def _processed(self, content: Any) -> dict[str, torch.Tensor]:
        rate = int(self._extractor.sampling_rate)
        samples, found = decode_wav(content)
        ready = resample(samples, found, rate)
        return _unbatched(self._extractor([ready], sampling_rate=rate, return_tensors="pt"))


def _unbatched(found: Any) -> dict[str, torch.Tensor]:
    return {name: value[0] for name, value in found.items() if isinstance(value, torch.Tensor)}


def decode_image(content: bytes | str) -> Any:
    """A Pillow image in RGB, turned as its EXIF entry says; BadContentError says why there is none."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(_bytes(content))) as image:
            if image.width * image.height > MAX_PIXELS:
                raise BadContentError(
                    f"image of {image.width} × {image.height} pixels; at most {MAX_PIXELS:,}"
                )
            return ImageOps.exif_transpose(image).convert("RGB")
    except BadContentError:
        raise
    except Exception as error:  # Pillow's decoders raise many kinds on a damaged file
        raise BadContentError(f"cannot be decoded as an image ({error})"[:200]) from None


def decode_wav(content: bytes | str) -> tuple[Samples, int]:
    """Samples of one channel in [-1, 1] and their rate in 1/s, from PCM of 8 to 32 bits."""
    try:
        with wave.open(io.BytesIO(_bytes(content)), "rb") as file:
            width, channels, rate = file.getsampwidth(), file.getnchannels(), file.getframerate()
            if file.getnframes() > MAX_SECONDS * rate:
                raise BadContentError(f"longer than {MAX_SECONDS:.0f} s; cut the clip")
            raw = file.readframes(file.getnframes())
    except (wave.Error, EOFError) as error:
        raise BadContentError(f"cannot be decoded as WAV with whole-number samples ({error})") from None
    samples = _whole_numbers(raw, width).reshape(-1, channels).astype(np.float64).mean(axis=1)
    if len(samples) == 0:
        raise BadContentError("has no samples")
    return (samples / _FULL_SCALE[width]).astype(np.float32), rate


def _whole_numbers(raw: bytes, width: int) -> NDArray[np.int64]:
    """Little-endian PCM; 8 bits are unsigned, the wider ones signed."""
    if width == 1:
        return np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 128
    if width == 3:
        parts = np.frombuffer(raw, dtype=np.uint8).reshape(-1, 3).astype(np.int64)
        joined = parts[:, 0] | parts[:, 1] << 8 | parts[:, 2] << 16
        return np.where(joined >= 1 << 23, joined - (1 << 24), joined)
    return np.frombuffer(raw, dtype=f"<i{width}").astype(np.int64)


def resample(samples: Samples, found: int, wanted: int) -> Samples:
    """`samples` at `wanted` per second by a polyphase filter (scipy.signal.resample_poly)."""
    if found == wanted:
        return samples
    from scipy.signal import resample_poly

    common = gcd(found, wanted)
    return np.asarray(resample_poly(samples, wanted // common, found // common), dtype=np.float32)


def _bytes(content: bytes | str) -> bytes:
    if isinstance(content, bytes):
        return content
    try:
        return Path(content).read_bytes()
    except OSError as error:
        raise BadContentError(f"{content}: cannot be read ({error.strerror})") from None
