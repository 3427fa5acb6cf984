"""Networks as `torch.export` programs without pickle: written by training, run by serving.

`torch.export.load` (2.13) unpickles sample inputs and any tensor or constant that the archive marks
as pickled, and evaluates shape expressions. `load_program` reads the archive first and refuses
whatever would need that, so that a program can do no more than call ATen operators.
"""

from __future__ import annotations

import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qiance.artifacts.manifest import ArtifactError

if TYPE_CHECKING:
    import torch

_LOADING = threading.Lock()  # torch keeps the state of a load in a global
_MODEL = "models/model.json"
_SAMPLES = "data/sample_inputs/model.pt"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PLAIN = frozenset(
    {"archive_format", "archive_version", "byteorder", ".data/version", ".data/serialization_id"}
)
_TENSOR = re.compile(r"data/(weights/weight_|constants/tensor_)\d+")
_PAYLOAD = re.compile(r"(weight_|tensor_)\d+")
_TARGET = re.compile(
    r"(torch\.ops\.aten\.(?!from_file\b)\w+\.\w+|_operator\.(add|sub|mul|floordiv|eq|ne|ge|gt|le|lt|neg))"
)
# Operators whose arguments are those of the method or function of torch.
_METHODS = {name: name for name in (
    "add", "addcmul", "addmm", "baddbmm", "exp", "mm", "mul", "permute", "relu", "relu_", "sigmoid",
    "split_with_sizes", "t", "tanh", "to", "transpose", "unbind", "unsqueeze", "view",
)} | {"sym_size": "size"}  # fmt: skip
_FUNCTIONS = frozenset({"cat", "embedding", "stack"})
_WORD = re.compile(r"[A-Za-z_]\w*")
_SYMBOL = re.compile(
    r"[su]\d+|Symbol|Integer|Add|Mul|Pow|Max|Min|FloorDiv|positive|nonnegative|integer|True|False"
)
_EXPRESSION = re.compile(r"[\w\s,()+\-*/='<>]*")


def export_program(
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    path: Path,
    dims: Mapping[str, Mapping[int, str]] | None = None,
) -> None:
    """Export `module` to the archive at `path`.

    inputs: an example per argument of `forward`, by name, in order. dims: name of each dimension that may
    have any size from 0, by argument and position; without it, the first of every argument is the batch.
    """
    import torch

    free = dims or {name: {0: "batch"} for name in inputs}
    sizes = {size: torch.export.Dim(size, min=0) for own in free.values() for size in own.values()}
    shapes = {name: {place: sizes[size] for place, size in free.get(name, {}).items()} for name in inputs}
    program = torch.export.export(module.eval(), tuple(inputs.values()), dynamic_shapes=shapes)
    # Sample inputs would be pickled; stack traces name files of the machine that trained.
    program._example_inputs = None
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)


def load_program(path: Path) -> torch.nn.Module:
    """Load the program at `path`; the module takes tensors and returns one, or a tuple of them.

    It is the bare graph: `torch.export` wraps it in checks that take as long as a small network.
    Raises ArtifactError where the archive would need pickle, calls anything but ATen operators, or is
    no such archive.
    """
    import torch

    content = path.read_bytes()
    try:
        _check_archive(content)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ArtifactError(f"{path}: refused: {error}") from None
    # Guards are source code in the archive: the module is built without compiling them.
    with _LOADING:
        return _bare(torch.export.load(io.BytesIO(content)))


def _bare(program: torch.export.ExportedProgram) -> torch.nn.Module:
    import torch

    module = program.module(check_guards=False)
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is torch.ops.aten._assert_tensor_metadata.default:
            graph.erase_node(node)  # it pins the precision that the program was exported in
        else:
            _shorten(node)
    graph.set_codegen(torch.fx.graph.CodeGen())
    if program.call_spec.out_spec.num_children == 0:  # one tensor, which the graph holds as a tuple of one
        output = graph.output_node()
        output.args = (output.args[0][0],)  # type: ignore[index]
    return torch.fx.GraphModule(module, graph)


def _shorten(node: torch.fx.Node) -> None:
    """Call a tensor's method in place of the operator of the same name: half the time in Python."""
    import torch

    if not isinstance(node.target, torch._ops.OpOverload):
        return
    name = node.target.overloadpacket.__name__
    if name in _METHODS:
        node.op, node.target = "call_method", _METHODS[name]
    elif name in _FUNCTIONS:
        node.target = getattr(torch, name)


def _check_archive(content: bytes) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = _members(archive)
        for name in members:
            if name not in {*_PLAIN, *_CONFIGS, _MODEL, _SAMPLES} and not _TENSOR.fullmatch(name):
                raise ValueError(f"member {name!r} is not part of a plain exported program")
        if members[_SAMPLES].file_size:
            raise ValueError(f"member {_SAMPLES!r} is a pickle; export without sample inputs")
        for name in _CONFIGS:
            _check_payloads(name, json.loads(archive.read(members[name])))
        _check_graph(json.loads(archive.read(members[_MODEL])))


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members by their name below the archive's one top folder."""
    found: dict[str, zipfile.ZipInfo] = {}
    roots = {info.filename.partition("/")[0] for info in archive.infolist()}
    if len(roots) != 1:
        raise ValueError(f"the archive has {len(roots)} top folders where one is expected")
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if name in found:
            raise ValueError(f"member {name!r} is there twice")
        found[name] = info
    return found


def _check_payloads(name: str, config: Mapping[str, Any]) -> None:
    for key, payload in config["config"].items():
        if payload["use_pickle"] is not False or not _PAYLOAD.fullmatch(payload["path_name"]):
            raise ValueError(f"{name}: {key!r} is stored as a pickle; only plain tensors are loaded")


def _check_graph(model: Mapping[str, Any]) -> None:
    for key, value in _strings(model):
        if key == "target" and not _TARGET.fullmatch(value):
            raise ValueError(f"operator {value!r} is not an ATen operator")
        if key == "expr_str" and not _is_plain(value):
            raise ValueError(f"shape expression {value!r} is not plain arithmetic")


def _is_plain(expression: str) -> bool:
    words = _WORD.findall(expression)
    return bool(_EXPRESSION.fullmatch(expression)) and all(_SYMBOL.fullmatch(word) for word in words)


def _strings(node: Any) -> Iterator[tuple[str, str]]:
    """All (key, text) pairs of nested JSON."""
    if isinstance(node, dict):
        for key, value in node.items():
            if isinstance(value, str):
                yield key, value
            yield from _strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from _strings(value)
