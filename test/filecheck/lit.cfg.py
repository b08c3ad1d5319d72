"""Configuration of lit: `lit test/filecheck`, with the lit of Intaglio's own environment."""

import os
import sys
from pathlib import Path

import lit.formats

# lit puts `config` and `lit_config` into this file's namespace.
config = globals()["config"]

_HERE = Path(__file__).parent
_TOOLS = Path(sys.executable).parent

config.name = "intaglio"
config.test_format = lit.formats.ShTest(execute_external=False)
config.suffixes = [".mlir"]
config.excludes = ["Output"]
config.test_source_root = str(_HERE)
config.test_exec_root = str(_HERE / "Output")
config.environment["PATH"] = os.pathsep.join([str(_TOOLS), os.environ.get("PATH", os.defpath)])
# The longer name first: substitutions are made in order, inside other words too.
config.substitutions += [
    ("GENERIC_ROUNDTRIP", "xdsl-opt %s --print-op-generic | xdsl-opt | filecheck %s"),
    ("ROUNDTRIP", "xdsl-opt %s | xdsl-opt | filecheck %s"),
]
