"""Opening a model file: its records are checked, its graph is brought into plain form."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from intaglio.dialects.errors import UserError, UserErrors
from intaglio.lowering.onnx.graph import wellformed
from intaglio.lowering.onnx.graph.external_data import ExternalFiles, wrong_entry
from intaglio.lowering.onnx.graph.lazy_sympy import without_sympy
from intaglio.lowering.onnx.graph.local_functions import Unfolding
from intaglio.lowering.onnx.graph.model import BITS, Graph, Port, Tensor
from intaglio.lowering.onnx.graph.other_formats import hub_hint, other_format
from intaglio.lowering.onnx.graph.records import read_proto

if TYPE_CHECKING:
    import onnx_ir

_WHOLE = "copy or export the model again; it must be a whole ONNX file in binary form"


def load(path: str | os.PathLike[str], *, allow_links: bool = False) -> Graph:
    """Opens a model without reading its weights.

    External data is memory-mapped, one mapping a file. Calls of model-local functions are replaced
    by what their bodies do (`local_functions`).

    Args:
        path: the `.onnx` file.
        allow_links: follow links inside a model hub's cache (`snapshots/REVISION/file` to
            `../../blobs/HASH`).

    Raises:
        UserError: the file is missing or no ONNX model, what it holds can be read in two ways, or
            its external data is missing, too short or outside the model's folder.
    """
    file = Path(path)
    model = _open(file)
    files = ExternalFiles(file, allow_links)
    graph = _graph(file, model, files)
    for node in graph.nodes:
        # Bytes that are no UTF-8 come as bytes, whatever the records' types say.
        names: list[object] = [node.name, node.domain, node.op_type, *node.inputs, *node.outputs]
        for name in names:
            if not isinstance(name, str):
                raise UserError(
                    f"a name in the model is no text: {name}", file=str(file), hint=_WHOLE
                )
    return graph


def _open(file: Path) -> onnx_ir.Model:
    if not file.exists():
        raise UserError("there is no such file", file=str(file), hint=hub_hint(str(file)))
    if (other := other_format(file)) is not None:
        raise other
    if file.is_dir():
        inside = sorted(p.name for p in file.glob("*.onnx"))
        hint = f"pass the model file, for example {file / inside[0]}" if inside else None
        raise UserError("this is a folder, not a model file", file=str(file), hint=hint)
    if file.stat().st_size == 0:
        raise UserError("the file is empty", file=str(file), hint=_WHOLE)

    from google.protobuf.message import DecodeError

    with without_sympy():
        import onnx_ir

    # What onnx_ir would log or warn of is found again here, with the node and a remedy.
    log = logging.getLogger("onnx_ir")
    level = log.level
    try:
        log.setLevel(logging.CRITICAL)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            records = read_proto(file)
            wellformed.check(file, records)
            model = onnx_ir.from_proto(records)
    except DecodeError as error:
        raise UserError(
            "the file is no ONNX model, or a part of it is missing", file=str(file), hint=_WHOLE
        ) from error
    except OSError as error:
        raise UserError(f"cannot read: {error.strerror}", file=str(file)) from error
    except (
        ValueError,
        TypeError,
        KeyError,
        AttributeError,
        RuntimeError,
        NotImplementedError,
    ) as e:
        what = wrong_entry(file) or f"not a valid ONNX model: {_cause(e)}"
        raise UserError(what, file=str(file), hint=_WHOLE) from e
    finally:
        log.setLevel(level)
    if not len(model.graph) or not model.graph.outputs:
        raise UserError("the model has no nodes or no outputs", file=str(file), hint=_WHOLE)
    return model


def _cause(error: BaseException) -> BaseException:
    """What an error began with."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _graph(file: Path, model: onnx_ir.Model, files: ExternalFiles) -> Graph:
    errors: list[UserError] = []
    source = model.graph

    def tensor(name: str, value: onnx_ir.TensorProtocol) -> Tensor | None:
        try:
            return _tensor(file, files, name, value)
        except UserError as error:
            # Many tensors lie in one file: its fault is said once.
            if error.hint is None or error.hint not in {known.hint for known in errors}:
                errors.append(error)
            return None

    initializers: dict[str, Tensor] = {}
    for name, value in source.initializers.items():
        if value.const_value is not None:
            found = tensor(name, value.const_value)
            if found is not None:
                initializers[name] = found
    nodes = Unfolding(file, model, tensor).nodes()
    if errors:
        raise errors[0] if len(errors) == 1 else UserErrors(errors)
    empty = Graph(
        path=file,
        inputs={value.name or "": _port(value) for value in source.inputs},
        outputs={value.name or "": _port(value) for value in source.outputs},
        nodes=(),
        initializers={},
        opsets=dict(source.opset_imports),
        external_files=tuple(files.paths.values()),
        consumers={},
        producers={},
    )
    return empty.with_nodes(nodes, initializers)


def _tensor(
    file: Path, files: ExternalFiles, name: str, value: onnx_ir.TensorProtocol
) -> Tensor | None:
    """A tensor of the file; None for text, which nothing here reads.

    Raises:
        UserError: its type, shape or place is none that can be read.
    """
    import onnx_ir

    dtype = value.dtype.name
    dims = tuple(int(d) for d in value.shape.numpy())
    if any(d < 0 for d in dims):
        what = f"tensor '{name}' has the shape {list(dims)}"
        raise UserError(what, file=str(file), hint=_WHOLE)
    if dtype == "STRING":
        return None
    if dtype not in BITS:
        raise UserError(
            f"tensor '{name}' has the element type {dtype}, which is not supported",
            file=str(file),
            hint="quantise weights to integers of 2, 4 or 8 bits",
        )
    if isinstance(value, onnx_ir.ExternalTensor):
        data = files.bytes_of(value, BITS[dtype])
        return Tensor(name, dtype, dims, lambda: data)
    return Tensor(name, dtype, dims, _inline(file, name, value))


def _inline(
    file: Path, name: str, value: onnx_ir.TensorProtocol
) -> Callable[[], npt.NDArray[np.uint8]]:
    kept: list[npt.NDArray[np.uint8]] = []

    def read() -> npt.NDArray[np.uint8]:
        if not kept:
            try:
                data = np.frombuffer(value.tobytes(), np.uint8)
            except (TypeError, ValueError, OverflowError) as error:
                raise UserError(
                    f"tensor '{name}' cannot be read: {error}", file=str(file), hint=_WHOLE
                ) from error
            size = -(-math.prod(map(int, value.shape.numpy())) * BITS[value.dtype.name] // 8)
            if data.size < size:
                raise UserError(
                    f"tensor '{name}' needs {size} bytes, the file holds {data.size}",
                    file=str(file),
                    hint=_WHOLE,
                )
            kept.append(data[:size])
        return kept[0]

    return read


def _port(value: onnx_ir.Value) -> Port:
    dims: list[int | str | None] = []
    for dim in value.shape or ():
        if isinstance(dim, int):
            dims.append(dim)
        else:
            text = dim.value
            dims.append(int(text) if isinstance(text, str) and text.isdigit() else text)
    dtype = value.dtype.name if value.dtype is not None else "UNDEFINED"
    return Port(value.name or "", dtype, tuple(dims))
