"""The stages of a compile and the passes between them: the one list there is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from xdsl.passes import ModulePass

IR_STAGES: tuple[str, ...] = ("rom", "integer", "fabric", "program")
"""Stages whose result is the module itself, in order."""
HARDWARE_STAGES: tuple[str, ...] = ("hw", "sv")
"""Stages that follow from the program: CIRCT IR; SystemVerilog with the contents of its ROMs."""
STAGES: tuple[str, ...] = (*IR_STAGES, *HARDWARE_STAGES)
"""What `--emit` can name, in order."""


@dataclass(frozen=True)
class Options:
    """What a user can say about a compile, apart from the model.

    Attributes:
        target: name of a target, or path to a TOML file.
        settings: `key=value` changes to the target's parameters and formats.
        context: capacity of the KV cache in tokens.
        weights: how float weights are quantised on request, such as `int4:128`; `target`: in the
            mix that the target states.
        adapter_rank: largest rank of the adapter slots; 0 reserves none.
        adapter_modules: roles of the matrices that get slots; none leaves it to the target.
        resident_adapters: how many adapters the slots hold at once, of which one is active.
        mapping: a mapping file to follow.
        emit: the last stage; None leaves it to the target, and warns where it has no hardware.
        allow_links: whether external data may be links inside a model hub's cache.
        reference: whether the model is put into the output folder, for onnxruntime as the judge.
    """

    target: str
    settings: tuple[str, ...] = ()
    context: int | None = None
    weights: str | None = None
    adapter_rank: int = 0
    adapter_modules: tuple[str, ...] = ()
    resident_adapters: int = 1
    mapping: str | None = None
    emit: str | None = "program"
    allow_links: bool = False
    reference: bool = True


def passes(options: Options) -> Iterator[tuple[str, tuple[ModulePass, ...]]]:
    """Each stage of the module with the passes that lead to it, up to the last one wanted."""
    from intaglio.backend.target.attach import AttachTarget
    from intaglio.lowering.place.place import FabricPlace
    from intaglio.lowering.schedule.schedule import ProgramSchedule
    from intaglio.lowering.step.adapter_slots import RomAdapterSlots
    from intaglio.lowering.step.fuse_residual import RomFuseResidual
    from intaglio.lowering.step.legalize import RomLegalize
    from intaglio.lowering.step.outline_layers import RomOutlineLayers

    slots = (
        (RomAdapterSlots(options.adapter_rank, options.adapter_modules, options.resident_adapters),)
        if options.adapter_rank
        else ()
    )
    pipeline: dict[str, tuple[ModulePass, ...]] = {
        "rom": (RomOutlineLayers(),),
        "integer": (
            AttachTarget(options.target, options.settings),
            *slots,
            RomLegalize(),
            RomFuseResidual(),
        ),
        "fabric": (FabricPlace(options.mapping),),
        "program": (ProgramSchedule(),),
    }
    for stage in IR_STAGES:
        yield stage, pipeline[stage]
        if stage == options.emit:
            return
