"""A model file's own records, as the onnx package gives them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx


def read_proto(path: Path) -> onnx.ModelProto:
    """The records of a file, without what lies beside it; raises what onnx and protobuf raise."""
    import onnx

    # Its parameter is a PathLike of nothing in particular.
    return onnx.load(path, load_external_data=False)  # pyright: ignore[reportUnknownMemberType]
