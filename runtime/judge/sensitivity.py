"""What each format of a compiled model costs on a text, and which settings pay.

One format at a time is the chip's and all others have 16 bits (`alone`). So each figure is what one
rounding does, undisturbed by the others, whose sum is ten times as large and scatters by more than
the small ones are; and divergences of roundings that know nothing of each other add up, so they can
be ranked and their shares stated. What is recommended is then tried as it would be compiled, all
other formats the chip's: that figure is what `--set` gives. So are blocks of inputs in which a
channel stands out (`outliers.py`), with 16 bits for these alone.

Nothing is imported or engraved again: variants are lowered from `ir/rom.mlir` of the output folder
and run on its images, without adapter slots, which change no value of the base. Divergence (KL,
nats) is against onnxruntime with float activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from xdsl.context import Context
from xdsl.dialects.builtin import Builtin, ModuleOp
from xdsl.parser import Parser
from xdsl.rewriter import InsertPoint, Rewriter

from intaglio.backend.images.read import Images
from intaglio.backend.program.file import program_content
from intaglio.backend.program.program import Program, program_of
from intaglio.dialects import rom
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import MachineOp
from intaglio.dialects.formats import HEAD_FORMATS
from intaglio.dialects.machine import Machine
from intaglio.dialects.number_ranges import ranges_text
from intaglio.runtime.engines.simulator import Observer, Simulator
from intaglio.runtime.judge.check import Against, rows_of, text_ids, windows_of
from intaglio.runtime.judge.defaults import SENSITIVITY_WINDOWS, WINDOW
from intaglio.runtime.judge.outliers import STANDS_OUT, Channels
from intaglio.runtime.loaded_model import LoadedModel
from intaglio.runtime.reports.wording import counted

APART = 0.05
"""Of the logits' range: where onnxruntime's own int8 is as far from its float activations, no
format of 8 bits can be held to less."""
ENOUGH = 0.5
"""Part of what all formats cost that a recommendation takes away, if so much can be set."""
FEW = WINDOW
"""Tokens of a text that rank formats hardly: one window, in which single tokens decide the order of
formats that are within a factor of two of each other."""
ALL_WIDE = ("activations=int16", "kv=int16")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Role:
    """A format of the chip that may cost something.

    Attributes:
        name: as reports say it.
        format: the chip's.
        machine: the chip with this format and all others of 16 bits.
        setting: what widens it, with blanks between several; None: it follows others.
    """

    name: str
    format: str
    machine: Machine
    setting: str | None


def sensitivity(
    chip: LoadedModel,
    text: str | Path,
    *,
    windows: int | None = None,
    progress: Progress = lambda message: None,
) -> dict[str, Any]:
    """The content of `intaglio check --sensitivity --json`.

    Args:
        chip: the compiled model, without an active adapter.
        text: a file to compare on.
        windows: how many windows of it; `SENSITIVITY_WINDOWS` by default.
        progress: called with a line for each step.

    Returns:
        `roles`, what costs most first: `role`, `format`, `mean_kl` and `perplexity_change` with
        this format alone, `share` of the sum of all, `setting`. `chip` and `wide` have the same
        figures (and `max_error_of_range`) as compiled and with 16 bits everywhere; what `wide`
        loses are the weights' scales and the values of 32 bits. `recommended` has `settings` and
        the figures of the chip with them: those that were `tried`, unless they gain nothing.
        `outliers` are inputs with blocks that stand out: `role`, `blocks`, `count` of the input's,
        `times` (the largest channel over its block's median), `setting`, and the figures of the
        chip with that setting.
        `references_apart` is the largest distance of the two
        references, of the logits' range.

    Raises:
        UserError: the text cannot be used, an adapter is active, the folder has no stage to lower
            variants from, or onnxruntime cannot run the model.
    """
    if chip.adapter is not None:
        raise UserError(
            f"formats are ranked for the base, and the adapter {chip.adapter.name} is active",
            hint="switch to the base first",
        )
    if windows is not None and windows < 1:
        raise UserError(f"cannot compare {windows} windows")
    window = min(WINDOW, chip.program.capacity)
    ids = text_ids(chip, Path(text))[: (windows or SENSITIVITY_WINDOWS) * window]
    parts = list(windows_of(ids, window))
    progress("verifying the images")
    chip.verify_images()
    module = _float_stage(chip)
    machine, wide = chip.program.machine, _wide(chip.program.machine)
    roles = list(_roles(module, machine, wide))
    first = [machine, wide, *(one.machine for one in roles)]
    channels: list[Channels] = []

    def watch(program: Program) -> Observer:
        channels.append(Channels(program, module))
        return channels[0].observe

    found, apart = _measured(chip, module, first, parts, progress, {1: watch})
    as_compiled, all_wide, *alone = found
    total = sum(one["mean_kl"] for one in alone)
    ranked = sorted(zip(roles, alone, strict=True), key=lambda one: -one[1]["mean_kl"])
    rows = [
        {
            "role": role.name,
            "format": role.format,
            "mean_kl": figures["mean_kl"],
            "perplexity_change": figures["perplexity_change"],
            "share": figures["mean_kl"] / total if total else 0.0,
            "setting": role.setting,
        }
        for role, figures in ranked
    ]
    outliers, as_wide = _outliers(chip, module, channels[0], parts, progress)
    settings = _recommended(rows)
    if as_wide and as_wide["mean_kl"] <= (1 - ENOUGH) * as_compiled["mean_kl"]:
        # Words of a few blocks are read longer, not those of whole vectors.
        settings = [one["setting"] for one in outliers]
    if apart > APART:
        # Places are of bytes, which 16-bit values have none of.
        more = ("probabilities=uint16",) if machine.probabilities == "places8" else ()
        settings = [*ALL_WIDE, *more] if machine != wide else []
    as_set, tried = as_compiled, settings
    if settings:
        progress("trying what is recommended")
        other = wide if apart > APART else _with(machine, settings)
        ((as_set,), _) = _measured(chip, module, [other], parts, progress)
        if as_set["mean_kl"] >= as_compiled["mean_kl"]:
            as_set, settings = as_compiled, []
    return {
        "tokens_compared": len(ids),
        "windows": len(parts),
        "references_apart": apart,
        "chip": as_compiled,
        "wide": all_wide,
        "roles": rows,
        "outliers": outliers,
        "recommended": {"settings": settings, "tried": tried, **as_set},
    }


def _outliers(
    chip: LoadedModel,
    module: ModuleOp,
    channels: Channels,
    parts: Sequence[Sequence[int]],
    progress: Progress,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Inputs with blocks that stand out, each with the figures of the chip with 16 bits for them,
    and the figures of all together; none where blocks have no exponents of their own."""
    machine = chip.program.machine
    if not machine.has_blocks:
        return [], {}
    wide = _wide_blocks(module, machine)
    found = channels.standing(machine.block, wide)
    settings = [
        f"wide.{one.label}={ranges_text({*one.blocks, *wide.get(one.label, ())})}" for one in found
    ]
    tried = [[setting] for setting in settings] + [settings] * (len(settings) > 1)
    if not tried:
        return [], {}
    progress("trying blocks that stand out")
    figures, _ = _measured(chip, module, [_with(machine, one) for one in tried], parts, progress)
    rows = [
        {
            "role": f"input of {one.label}",
            "blocks": list(one.blocks),
            "count": one.count,
            "times": one.times,
            "setting": setting,
            **mine,
        }
        for one, setting, mine in zip(found, settings, figures, strict=False)
    ]
    return rows, figures[-1]


def _wide_blocks(module: ModuleOp, machine: Machine) -> dict[str, frozenset[int]]:
    """Blocks of inputs that have 16 bits, by label."""
    from intaglio.lowering.step.input_formats import labels, told_formats, wide_blocks

    told = told_formats(module, machine)
    blocks = wide_blocks(module, machine, told)
    return {label: blocks[op] for op, label in labels(module).items() if op in blocks}


def _wide(machine: Machine) -> Machine:
    """The same chip with 16 bits everywhere, and room for them."""
    return replace(
        machine,
        activations="int16",
        activations_of=(),
        wide_of=(),
        kv="int16",
        probabilities="uint16",
    )


def _with(machine: Machine, settings: Sequence[str]) -> Machine:
    """The chip with what is recommended of it."""
    inputs = [s.removeprefix("activations.") for s in settings if s.startswith("activations.")]
    given = dict(one.split("=") for one in settings)
    wide = [one.removeprefix("wide.") for one in settings if one.startswith("wide.")]
    kv, numerators = given.get("kv", machine.kv), given.get("probabilities", machine.probabilities)
    return replace(
        machine,
        activations_of=(*inputs, *machine.activations_of),
        wide_of=(*wide, *machine.wide_of),
        kv=kv,
        probabilities=numerators,
    )


def _recommended(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings of the dearest formats, until half of the cost is gone."""
    found: list[str] = []
    gone = 0.0
    for row in rows:
        if gone >= ENOUGH:
            break
        if row["setting"] is not None:
            found += row["setting"].split()
            gone += row["share"]
    return found


def _roles(module: ModuleOp, machine: Machine, wide: Machine) -> Iterator[Role]:
    from intaglio.lowering.step.input_formats import input_format, labels, told_formats

    told = told_formats(module, machine)
    wide_of = {label: ranges_text(one) for label, one in _wide_blocks(module, machine).items()}
    inputs: dict[str, set[str]] = {}
    for op, label in labels(module).items():
        # What the graph rounds itself is no format of the chip.
        if op in told or not (isinstance(op, rom.LinearOp) and op.activation is not None):
            inputs.setdefault(label, set()).add(input_format(op, machine, told))
    for label, formats in inputs.items():
        (fmt, *_) = sorted(formats)
        if fmt != "int16":
            alone = replace(wide, activations_of=(f"{label}={fmt}",))
            if label in wide_of:
                alone = replace(alone, wide_of=(f"{label}={wide_of[label]}",))
            yield Role(f"input of {label}", fmt, alone, f"activations.{label}=int16")
    if any(isinstance(op, rom.AttentionOp | rom.LinearAttentionOp) for op in module.walk()):
        yield from _of_attention(machine, wide, list(inputs))


def _of_attention(machine: Machine, wide: Machine, inputs: Sequence[str]) -> Iterator[Role]:
    """Formats of attention; those that a chip has together only are one role."""
    # Queries follow the activations.
    every = tuple(f"{name}=int16" for name in inputs)
    narrow = replace(wide, activations=machine.activations, activations_of=every)
    if machine.kv in HEAD_FORMATS and machine.scaled_activations == "int8":
        parts, setting = "queries, keys and values", "kv=int16"
        one = replace(narrow, kv=machine.kv)
        if machine.probabilities == "places8":
            parts, setting = "queries, keys, values, probabilities", _wide_cache(machine)
            one = replace(one, probabilities="places8")
        yield Role(parts, machine.kv, one, setting)
    else:
        if machine.kv != "int16":
            own = replace(wide, kv=machine.kv)
            yield Role("keys and values", machine.kv, own, _wide_cache(machine))
        if machine.scaled_activations != "int16":
            yield Role("queries", machine.scaled_activations, narrow, None)
    if machine.probabilities not in ("uint16", "places8"):
        fmt = machine.probabilities
        yield Role("probabilities", fmt, replace(wide, probabilities=fmt), None)


def _wide_cache(machine: Machine) -> str:
    """What gives keys and values 16 bits: places go with heads of 8 bits."""
    if machine.probabilities != "places8":
        return "kv=int16"
    return f"kv=int16 probabilities={machine.probabilities_beside('int16')}"


# --- running variants ---------------------------------------------------------------------------


def _float_stage(chip: LoadedModel) -> ModuleOp:
    path = chip.folder / "ir" / "rom.mlir"
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "cannot be read, and variants are lowered from it",
            file=str(path),
            hint="compile the model again",
        ) from error
    chip.files.verify(["ir/rom.mlir"])
    context = Context()
    for dialect in (Builtin, rom.ROM):
        context.load_dialect(dialect)
    return Parser(context, text).parse_module()


def _program(chip: LoadedModel, float_stage: ModuleOp, machine: Machine) -> Program:
    """The program of a chip with other formats, which reads the tensors of the one compiled."""
    from intaglio.lowering.place.place import FabricPlace
    from intaglio.lowering.schedule.schedule import ProgramSchedule
    from intaglio.lowering.step.fuse_residual import RomFuseResidual
    from intaglio.lowering.step.legalize import RomLegalize

    module = float_stage.clone()
    # What is wider may not fit; values do not depend on it.
    room = replace(
        machine, sram_bytes=8 * machine.sram_bytes, vector_sram_bytes=8 * machine.vector_sram_bytes
    )
    Rewriter.insert_op(MachineOp(room), InsertPoint.at_start(module.body.block))
    for one in (RomLegalize(), RomFuseResidual(), FabricPlace(None), ProgramSchedule()):
        one.apply(Context(), module)
    program = program_of(program_content(module))
    return replace(program, parameters=chip.program.parameters)


def _measured(
    chip: LoadedModel,
    module: ModuleOp,
    machines: Sequence[Machine],
    parts: Sequence[Sequence[int]],
    progress: Progress,
    watched: Mapping[int, Callable[[Program], Observer]] | None = None,
) -> tuple[list[dict[str, Any]], float]:
    """Figures of variants on windows, and how far the references are apart, of the range.

    Args:
        chip: the compiled model.
        module: its float stage.
        machines: the variants.
        parts: the windows.
        progress: called with a line for each step.
        watched: what makes of a variant's program what is called with all that it writes.
    """
    simulators: list[Simulator] = []
    observers: list[Observer | None] = []
    for number, machine in enumerate(machines):
        progress(f"lowering variant {number + 1} of {len(machines)}")
        program = _program(chip, module, machine)
        watch = (watched or {}).get(number)
        observers.append(None if watch is None else watch(program))
        simulators.append(Simulator(program, chip.folder, images=Images(program, chip.folder)))
    judge, other = chip.reference(float_activations=True), chip.reference()
    ours, against = [Against() for _ in machines], [Against() for _ in machines]
    distance, low, high = 0.0, np.inf, -np.inf
    for number, part in enumerate(parts):
        progress(f"window {number + 1} of {len(parts)}")
        judge.reset()
        theirs = judge.feed(part)
        other.reset()
        distance = max(distance, float(np.abs(theirs - other.feed(part)).max()))
        low, high = min(low, float(theirs.min())), max(high, float(theirs.max()))
        for simulator, observe, mine, one in zip(simulators, observers, ours, against, strict=True):
            simulator.reset()
            exact = simulator.forward(part, 0, observe=observe)
            assert exact is not None
            for rows, logits, following in rows_of(simulator, part, exact):
                one.add(logits, theirs[rows].astype(np.float64), following)
                mine.add(logits, logits, following)
    found: list[dict[str, Any]] = []
    for mine, one in zip(ours, against, strict=True):
        summary = one.summary()
        found.append(
            {
                "mean_kl": summary["mean_kl"],
                "max_error_of_range": summary["max_error_of_range"],
                "perplexity": mine.perplexity,
                "perplexity_change": mine.perplexity / one.perplexity - 1,
            }
        )
    return found, distance / (high - low) if high > low else 0.0


# --- text -----------------------------------------------------------------------------------------


def _as_options(settings: Sequence[str]) -> str:
    return " ".join(f"--set {one}" for one in settings)


def sensitivity_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A result for people."""
    yield (
        f"{counted(result['tokens_compared'], 'token')} in {counted(result['windows'], 'window')}, "
        "against onnxruntime with float activations"
    )
    names = [row["role"] for row in result["roles"]]
    width = max(len(name) for name in (*names, "16 bits everywhere"))
    yield f"  {'format':<{width}}  {'':<8} {'mean KL':>9}  {'share':>6}  perplexity  widened by"
    for row in result["roles"]:
        yield (
            f"  {row['role']:<{width}}  {row['format']:<8} {row['mean_kl']:9.2e}  "
            f"{row['share']:6.1%}  {row['perplexity_change']:+10.4%}  "
            + (_as_options(row["setting"].split()) if row["setting"] else "(follows activations)")
        )
    for name, key in (("16 bits everywhere", "wide"), ("as compiled", "chip")):
        one = result[key]
        yield (
            f"  {name:<{width}}  {'':<8} {one['mean_kl']:9.2e}  {'':6}  "
            f"{one['perplexity_change']:+10.4%}  largest error {one['max_error_of_range']:.2%}"
        )
    yield from _outlier_lines(result)
    if result["tokens_compared"] < FEW:
        yield (
            f"  {counted(result['tokens_compared'], 'token')} are too few to rank formats by: a "
            f"text of {FEW:,} tokens or more says which cost most"
        )
    apart = result["references_apart"]
    if apart > APART:
        yield (
            f"  onnxruntime's own 8-bit activations are {apart:.1%} of the logits' range away from "
            "its float activations: a model for 16 bits"
        )
    yield from _recommended_lines(result)


def _outlier_lines(result: Mapping[str, Any]) -> Iterator[str]:
    if result["outliers"]:
        yield (
            f"  blocks with a channel that stands out, {STANDS_OUT:g} times the median of its "
            "block or more, and what 16 bits for them alone give:"
        )
    for one in result["outliers"]:
        blocks = "block" if len(one["blocks"]) == 1 else "blocks"
        yield (
            f"    {one['role']}: {blocks} {ranges_text(one['blocks'])} of {one['count']}, "
            f"{one['times']:.0f} times  --set {one['setting']}"
        )
        yield f"      {_gain(result['chip'], one)}"


def _gain(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    gain = 1 - after["mean_kl"] / before["mean_kl"] if before["mean_kl"] else 0.0
    change = f"{gain:.0%} less" if gain >= 0 else f"{-gain:.0%} more"
    return (
        f"mean KL {after['mean_kl']:.2e} ({change}), perplexity "
        f"{after['perplexity_change']:+.4%}, largest error {after['max_error_of_range']:.2%} "
        f"(it was {before['max_error_of_range']:.2%})"
    )


def _recommended_lines(result: Mapping[str, Any]) -> Iterator[str]:
    recommended = result["recommended"]
    if not recommended["settings"]:
        tried = recommended["tried"]
        yield "  recommended  nothing" + (f": {_as_options(tried)} gains nothing" if tried else "")
    if recommended["settings"]:
        yield f"  recommended  {_as_options(recommended['settings'])}"
        yield f"               {_gain(result['chip'], recommended)}"
