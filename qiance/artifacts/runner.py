"""Where and how exported programs run: device, precision, threads."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16")
# Recordings that are kept: one per padded number of users and number of actions, each with the memory of its
# pass. Up to 1,024 users there are 11 for each number of actions.
_RECORDINGS = 32
_WARM_UP = 3

# A loaded program: tensors in, a tensor or a tuple of tensors out.
Program = Callable[..., Any]


def padded_size(users: int) -> int:
    """Users that a recorded pass is made of, at least one: powers of two, so that few have to be recorded."""
    return 1 << max(users - 1, 0).bit_length()


def padded_sizes(most: int) -> tuple[int, ...]:
    """Those of passes of up to `most` users."""
    return tuple(1 << power for power in range(padded_size(most).bit_length()))


class Runner:
    """Runs programs on numpy arrays; safe to use from several threads.

    Raises ValueError for settings that do not fit this machine.
    """

    def __init__(
        self, threads: int = 1, device: str = "cpu", dtype: str = "float32", cuda_graphs: bool = False
    ) -> None:
        if threads < 1:
            raise ValueError(f"threads: {threads} is not positive")
        if device not in DEVICES:
            raise ValueError(f"device: {device!r} is not one of {', '.join(DEVICES)}")
        if dtype not in DTYPES:
            raise ValueError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
        if cuda_graphs and device != "cuda":
            raise ValueError(f"cuda_graphs: needs device cuda, not {device!r}; leave it out")
        if device == "cuda" and not _has_cuda():
            raise ValueError("device: 'cuda' was asked for and torch sees no GPU; use 'cpu'")
        self.device, self.dtype = device, dtype
        self._threads, self._graphs = threads, cuda_graphs

    def place(self, program: torch.nn.Module, *, record: bool = False) -> Program:
        """Move a program here, its matrices in the precision asked for.

        record: replay it as a CUDA graph where graphs were asked for; for programs called with few shapes.
        """
        program._apply(self._cast)  # type: ignore[no-untyped-call]
        return _Recorded(program) if record and self._graphs else program

    @property
    def records(self) -> bool:
        """Whether programs may be recorded, each size of their inputs anew."""
        return self._graphs

    def run(self, program: Program, *inputs: Any) -> tuple[NDArray[np.float32], ...]:
        """Call `program`: arrays and kept tensors in, float32 arrays out."""
        return self.fetch(self._call(program, inputs))

    def fetch(self, parts: tuple[torch.Tensor, ...]) -> tuple[NDArray[np.float32], ...]:
        """Tensors of this device as float32 arrays."""
        if self.device == "cpu":
            return tuple(part.float().numpy() for part in parts)
        import torch

        # Into page-locked memory, which torch keeps and reuses: copying into ordinary memory takes far longer
        # than the kernels do (`benchmarks.gpu` measures both).
        own = [torch.empty(part.shape, dtype=torch.float32, pin_memory=True) for part in parts]
        for target, part in zip(own, parts, strict=True):
            target.copy_(part.float().contiguous(), non_blocking=True)
        torch.cuda.current_stream().synchronize()
        return tuple(target.numpy() for target in own)

    def keep(self, program: Program, *inputs: Any) -> tuple[torch.Tensor, ...]:
        """The same, and what comes out stays on the device, for a later `run`."""
        return self._call(program, inputs)

    def _call(self, program: Program, inputs: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
        import torch

        # OpenMP keeps this per calling thread, so it is looked at on every pass.
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        with torch.inference_mode():
            found = program(*map(self.tensor, inputs))
        return found if isinstance(found, tuple) else (found,)

    def tensor(self, values: Any) -> torch.Tensor:
        """An array as the device has it; a tensor is taken to be there."""
        import torch

        if isinstance(values, torch.Tensor):
            return values
        return self._cast(torch.from_numpy(values))

    def _cast(self, values: torch.Tensor) -> torch.Tensor:
        """To the device; matrices and vectors of floats to the precision asked for."""
        import torch

        if values.is_floating_point() and values.dim():
            return values.to(self.device, getattr(torch, self.dtype))
        return values.to(self.device)


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


@dataclass(frozen=True)
class _Recording:
    graph: Any
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[torch.Tensor, ...]


class _Recorded:
    """A program as CUDA graphs, one per shapes of its inputs; those that were used longest ago go first.

    A recording has its own memory for inputs and outputs, so calls take turns.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._lock = threading.Lock()
        self._recordings: OrderedDict[tuple[Any, ...], _Recording] = OrderedDict()

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shapes = tuple(values.shape for values in inputs)
        with self._lock:
            recording = self._recordings.get(shapes)
            if recording is None:
                recording = self._recordings[shapes] = _record(self._program, inputs)
                if len(self._recordings) > _RECORDINGS:
                    self._recordings.popitem(last=False)
            self._recordings.move_to_end(shapes)
            for own, given in zip(recording.inputs, inputs, strict=True):
                own.copy_(given)
            recording.graph.replay()
            return tuple(values.clone() for values in recording.outputs)


def _record(program: Program, inputs: tuple[torch.Tensor, ...]) -> _Recording:
    import torch

    own = tuple(values.clone() for values in inputs)
    # Libraries allocate on their first calls, which a recording may not do.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            program(*own)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        outputs = program(*own)
    return _Recording(graph, own, outputs)
