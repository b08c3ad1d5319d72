"""A model's program under other figures of its target, without engraving it again.

The model is read once; for each choice of `--set` only the passes behind the import run, which
takes less than a second for a model of full shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from intaglio.backend.compile import cells, head_rounding
from intaglio.backend.program.file import program_content
from intaglio.backend.program.program import Program, program_of
from intaglio.backend.stages import Options, passes
from intaglio.backend.target.target import Target, load_target
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import machine_of
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.latency_bound import Chain
from intaglio.lowering.folded_latencies import Pipelines
from intaglio.lowering.latency_bound import chain_of
from intaglio.lowering.onnx.importer import import_model
from intaglio.lowering.place.mapping import mapping_of
from intaglio.runtime.reports.rom_use import Placed, placed_matrices


class WhatIf:
    """Programs of one model on one target.

    Attributes:
        options: target, context, adapter slots, and settings that always hold.
        imported: the module as it was read, in the float stage.
    """

    def __init__(self, model: Path, options: Options) -> None:
        self.options = options
        self.imported = import_model(
            model, context=options.context, codes=cells(options), head=head_rounding(options)
        ).module
        ((_, first), *_) = passes(options)
        for one in first:
            one.apply(Context(), self.imported)
        self._programs: dict[tuple[str, ...], Program | None] = {}

    def target(self, settings: Sequence[str] = ()) -> Target:
        """The target with settings beside those that always hold."""
        return load_target(self.options.target).with_options((*self.options.settings, *settings))

    def module(self, settings: Sequence[str] = ()) -> ModuleOp:
        """The scheduled module.

        Raises:
            UserError: the model does not fit, or the chip makes no sense.
        """
        module = self.imported.clone()
        options = replace(self.options, settings=(*self.options.settings, *settings))
        for _, stage in list(passes(options))[1:]:
            for one in stage:
                one.apply(Context(), module)
        return module

    def chain(self, settings: Sequence[str] = ()) -> Chain:
        """The products of a token, whose time is bounded from below.

        Raises:
            UserError: the model does not fit, or the chip makes no sense.
        """
        module = self.imported.clone()
        options = replace(self.options, settings=(*self.options.settings, *settings))
        for _, stage in list(passes(options))[1:-1]:
            for one in stage:
                one.apply(Context(), module)
        target = self.target(settings)
        names = ("stage.adder_levels_per_cycle", "vector.lanes")
        return chain_of(module, Pipelines(*(target.integer(name) for name in names)))

    def program(self, settings: Sequence[str] = ()) -> Program | None:
        """The program; None where the model does not fit, or the chip makes no sense."""
        key = tuple(settings)
        if key not in self._programs:
            try:
                self._programs[key] = program_of(program_content(self.module(key)))
            except UserError:
                self._programs[key] = None
        return self._programs[key]

    def placed(self, settings: Sequence[str] = ()) -> dict[str, Placed]:
        """What lies in the ROM of the matrix units."""
        module = self.module(settings)
        program = program_of(program_content(module))
        return placed_matrices(program, JSONFile(mapping_of(module, machine_of(module)), "mapping"))
