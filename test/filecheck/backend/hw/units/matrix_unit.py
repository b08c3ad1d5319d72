"""Prints the matrix unit of a target's tile, with sizes of its own, for `matrix.mlir`."""

import sys

from intaglio.backend.hw.units.matrix.plan import Inputs, MatrixConfig, Way
from intaglio.backend.hw.units.matrix.tile import build_matrix_unit
from intaglio.backend.hw.wires.signal import Design
from intaglio.backend.target.target import load_target
from intaglio.dialects.descriptor import Fields

design = Design()
machine = load_target(sys.argv[1]).machine()
grouped = sys.argv[2] == "grouped"
build_matrix_unit(
    design,
    MatrixConfig(
        machine=machine,
        fields=Fields(()),
        ways=tuple(Way(split, 8) for split in (2, 4) if split <= machine.l_units) or (Way(1, 8),),
        forms=(),
        accumulator_bits=30,
        planes=1,
        table_planes=0,
        grouped=grouped,
        zero_bits=0,
        offset_bits=0,
        code_words=100,
        scale_words=20 if grouped else 0,
        banks=(),
        domains=(),
        token_bits=1,
        places=0,
        floor=1,
        inputs=Inputs((machine.activations,), 0, False, (1,)),
        vector_rows=8,
        constant_rows=1,
    ),
)
print(design.text())
