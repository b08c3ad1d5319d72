"""Sympy is loaded when it is wanted, and works then."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

MODEL = Path(__file__).parents[5] / "examples/demo/model/model.onnx"
SCRIPT = """
import sys
from intaglio.lowering.onnx.graph.model_file import load
load(sys.argv[1])
assert "sympy.core" not in sys.modules, "loaded without need"
import onnx_ir
assert (onnx_ir.SymbolicDim("n") * 2 + 1).evaluate({"n": 3}) == 7
import sympy.core
assert sympy.Integer(3) + 1 == 4 and sympy.core is sys.modules["sympy.core"]
"""


def test_a_model_is_opened_without_sympy() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(MODEL)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
