"""A model's program under other figures of its target, without engraving it again.

The model is read once; for each choice of settings only the passes behind the import run, which
takes less than a second for a model of full shape. What is read pickles, so that other processes
need neither the model nor what reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from intaglio.backend.program.file import program_content
from intaglio.backend.program.program import Program, program_of
from intaglio.backend.stages import Options, passes
from intaglio.backend.target.target import Target, load_target
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import machine_of
from intaglio.dialects.json_file import JSONFile
from intaglio.dialects.latency_bound import Chain
from intaglio.lowering.folded_latencies import pipelines_of
from intaglio.lowering.latency_bound import chain_of
from intaglio.lowering.place.mapping import mapping_of
from intaglio.runtime.reports.rom_use import Placed, placed_matrices


@dataclass(frozen=True)
class Built:
    """A scheduled model, of which nothing was written.

    Attributes:
        target: with all settings.
        module: the module of the stage `program`.
        chain: the products of a token, whose time is bounded from below.
    """

    target: Target
    module: ModuleOp
    chain: Chain

    @cached_property
    def program(self) -> Program:
        """As program.json would have it."""
        return program_of(program_content(self.module))

    @cached_property
    def placed(self) -> dict[str, Placed]:
        """What lies in the ROM of the matrix units."""
        mapping = mapping_of(self.module, machine_of(self.module))
        return placed_matrices(self.program, JSONFile(mapping, "mapping"))


class WhatIf:
    """Programs of one model on one target.

    Attributes:
        model: the file.
        options: target, context, adapter slots, and settings that always hold.
        imported: the module as it was read, in the float stage.
    """

    def __init__(self, model: Path, options: Options) -> None:
        self.model = model
        # Imported when used: who gets a pickled one does not need it.
        from intaglio.backend.compile import import_for

        self.options = options
        self.imported = import_for(model, options).module
        ((_, first), *_) = passes(options)
        for one in first:
            one.apply(Context(), self.imported)
        self._programs: dict[tuple[str, ...], Program | None] = {}

    def target(self, settings: Sequence[str] = ()) -> Target:
        """The target with settings beside those that always hold."""
        return load_target(self.options.target).with_options((*self.options.settings, *settings))

    def under(self, options: Options) -> WhatIf:
        """The same under other options, which have the model read in the same way."""
        other = copy(self)
        other.options, other._programs = options, {}
        return other

    def built(self, settings: Sequence[str] = ()) -> Built:
        """The scheduled module, and what bounds it; nothing is kept of it.

        Args:
            settings: beside those that always hold.

        Raises:
            UserError: the model does not fit, or the chip makes no sense.
        """
        options = replace(self.options, settings=(*self.options.settings, *settings))
        target = self.target(settings)
        module, chain = self.imported.clone(), None
        for stage, stage_passes in list(passes(options))[1:]:
            for one in stage_passes:
                one.apply(Context(), module)
            if stage == "fabric":
                chain = chain_of(module, pipelines_of(target.integer))
        assert chain is not None
        return Built(target, module, chain)

    def chain(self, settings: Sequence[str] = ()) -> Chain:
        """The products of a token, whose time is bounded from below.

        Raises:
            UserError: the model does not fit, or the chip makes no sense.
        """
        return self.built(settings).chain

    def program(self, settings: Sequence[str] = ()) -> Program | None:
        """The program; None where the model does not fit, or the chip makes no sense."""
        key = tuple(settings)
        if key not in self._programs:
            try:
                self._programs[key] = self.built(key).program
            except UserError:
                self._programs[key] = None
        return self._programs[key]

    def placed(self, settings: Sequence[str] = ()) -> dict[str, Placed]:
        """What lies in the ROM of the matrix units."""
        return self.built(settings).placed
