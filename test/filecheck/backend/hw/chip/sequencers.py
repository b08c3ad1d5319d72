"""Prints the sequencer of a queue that waits for others, and the token port: `sequencer.mlir`."""

import sys

from intaglio.backend.hw.chip.sequencer import build_sequencer, unroll
from intaglio.backend.hw.chip.token_port import build_token_port
from intaglio.backend.hw.wires.signal import Design
from intaglio.dialects.descriptor import Field, Fields
from intaglio.dialects.formula import constant
from intaglio.dialects.timeline import Block, Issue

if sys.argv[1] == "flowing":
    times = constant(5), constant(1), constant(7)
    issues = [
        Issue("matrix", {}, constant(9), constant(2)),
        Issue("power", {}, constant(3)),
        Issue("vector", {"matrix": 1, "power": 0}, *times),
        Issue("vector", {"vector": 1, "reductions": 1}, *times),
    ]
else:
    issues = [
        Issue("matrix", {}, constant(9)),
        Issue("vector", {"matrix": 1}, constant(5)),
        Issue("vector", {}, constant(5)),
    ]
queues = ["matrix", "attention", "vector", "kv", *(["power"] if len(issues) > 3 else [])]
design = Design()
programs = unroll([(Block("layer", issues, 3), False)], queues)
build_sequencer(design, "vector", programs, Fields([Field("row", 4)]), 2)
build_token_port(design, 7)
print(design.text())
