"""Matrices as mapping.json and the program have them: the same pieces, the same shapes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin
from xdsl.parser import Parser

from intaglio.backend.compile import compile_model
from intaglio.backend.program.program import load_program
from intaglio.backend.stages import Options
from intaglio.dialects.fabric import matrix_shape
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.rom import AdapterType, ParameterOp, ROMTensorType
from intaglio.runtime.reports.rom_use import placed_matrices
from intaglio.universe import INTAGLIO


@pytest.mark.parametrize(
    ("name", "target"),
    [("hqq4", "roma-mini"), ("phi", "roma-mini"), ("prune", "roma-mini"), ("ternary", "tom-mini")],
)
def test_placed_matrices(
    model: Callable[[str], Path], tmp_path: Path, name: str, target: str
) -> None:
    options = Options(target, context=16, emit="program")
    out = compile_model(model(name), tmp_path / "out", options).folder
    program = load_program(out)
    placed = placed_matrices(program, JSONFile.read(out / "mapping.json"))
    context = Context()
    context.load_dialect(Builtin)
    for dialect, factory in INTAGLIO.all_dialects.items():
        context.register_dialect(dialect, factory)
    module = Parser(context, (out / "ir" / "fabric.mlir").read_text()).parse_module()
    types = {op.sym_name.data: op.type for op in module.ops if isinstance(op, ParameterOp)}
    assert len(placed) > 5
    for one, matrix in placed.items():
        type_ = types[one]
        assert isinstance(type_, ROMTensorType | AdapterType)
        assert matrix.shape == matrix_shape(type_)
        assert matrix.pieces == tuple(program.parameters[one].pieces)
