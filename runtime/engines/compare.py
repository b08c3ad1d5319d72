"""Comparison of the hardware with the simulator: every value and every cycle of a token.

`compare_token` runs a token on both, and compares every value in the cycle in which it can first be
read, every start and finish, logits, token, saturations and KV contents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.program.program import Instruction
from intaglio.dialects.fixed_point import Scale
from intaglio.dialects.isa import values
from intaglio.dialects.isa.attention import OverTokens, QueryKey
from intaglio.dialects.isa.recurrence import LinearAttention
from intaglio.dialects.isa.touched import passes_of
from intaglio.dialects.isa.vector import (
    Delay,
    Quantize,
    QuantizeHeads,
    RMSScale,
    Sample,
    SoftmaxPlaces,
)
from intaglio.dialects.semantics import Quantized, Routing
from intaglio.runtime.engines.rtl import Event, RTLChip, Step
from intaglio.runtime.engines.simulator import Context, Probabilities, Simulator

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Difference:
    """The first thing in which hardware and simulator differ.

    Attributes:
        where: the instruction, or what was compared after the token.
        what: cycle or value.
        expected: by the simulator or timeline.
        seen: on the hardware.
        step: the instruction, if it is one.
        is_cycle: whether it is a cycle that differs, and not a value.
    """

    where: str
    what: str
    expected: str
    seen: str
    step: Step | None = None
    is_cycle: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.what} is {self.seen}, should be {self.expected}"


@dataclass
class Comparison:
    """What `compare_token` found.

    Attributes:
        instructions: whose start and finish were compared.
        values: numbers that were compared.
        difference: the first one, or None.
        token: what follows, by the simulator; None if not wanted.
    """

    instructions: int = 0
    values: int = 0
    difference: Difference | None = None
    token: int | None = None

    @property
    def equal(self) -> bool:
        """Whether there is no difference."""
        return self.difference is None


FACTOR_WRITTEN = 2
"""Cycles from a norm's reduction to its factor in the memory; products read it later."""


@dataclass
class ValueCheck:
    """Compares, and remembers the first difference."""

    result: Comparison = field(default_factory=Comparison)

    def value(
        self, where: str, what: str, expected: object, seen: object, step: Step | None
    ) -> bool:
        """Whether two arrays are equal."""
        want, got = np.asarray(expected, np.int64), np.asarray(seen, np.int64)
        self.result.values += want.size
        if want.shape == got.shape and (want == got).all():
            return True
        if want.shape != got.shape:
            self.differ(where, f"the shape of {what}", want.shape, got.shape, step)
            return False
        wrong = np.argwhere(want != got)
        index = tuple(wrong[0].tolist())
        place = f"{what}{list(index)}" if index else what
        more = f" ({len(wrong)} of {want.size} differ)"
        self.differ(where, place, want[index], f"{got[index]}{more}", step)
        return False

    def differ(
        self, where: str, what: str, expected: object, seen: object, step: Step | None
    ) -> None:
        if self.result.difference is None:
            self.result.difference = Difference(where, what, str(expected), str(seen), step)


def compare_token(
    simulator: Simulator,
    chip: RTLChip,
    token: int,
    position: int,
    sample: bool = True,
    *,
    caches: bool = True,
    change: Change | None = None,
    disturb: Callable[[], None] = lambda: None,
) -> Comparison:
    """Runs a token on simulator and hardware and compares everything that the two say.

    Args:
        simulator: has run the same tokens as `chip`.
        chip: the hardware.
        token: id.
        position: of the token.
        sample: whether its successor is wanted.
        caches: compare the whole content of the caches afterwards.
        change: what instructions wrote is compared, then replaced by what this gives, on both sides
            and before anybody reads it.
        disturb: called when the hardware has accepted the token.
    """
    check = ValueCheck()
    saturations = simulator.saturations, chip.saturations
    steps = chip.schedule(position, sample)
    wanted = values_of(simulator, token, position, sample, change)
    chip.accept(token, position, sample)
    disturb()
    for cycle, step, late in sorted(moments(steps), key=lambda one: one[0]):
        chip.advance(cycle)
        value, other = wanted[whole_of(step)]
        if not compare_step(check, chip, step, value, position, late=late):
            continue
        if other is not None:
            _write(chip, step, other, position, late=late)
        if check.result.difference is not None:
            break
    end = max(step.end for step in steps)
    # Two more cycles show what finishes too late.
    chip.advance(end + 3)
    compare_cycles(check, steps, {(event.queue, event.sequence): event for event in chip.events})
    if check.result.difference is None:
        _compare_end(check, simulator, chip, steps, sample, saturations, caches)
    if sample:
        result, _ = next(
            wanted[whole_of(one)]
            for one in reversed(steps)
            if isinstance(one.instruction.does, Sample)
        )
        check.result.token = int(np.asarray(result).reshape(-1)[0])
    return check.result


def moments(steps: Sequence[Step]) -> Iterator[tuple[int, Step, bool]]:
    """When what beats write can be compared: the cycle, the beat, and whether it is what comes
    later than its rows: the largest of scores, factors of norms."""
    for step in steps:
        yield _there(step), step, False
        if step.reduction is None:
            continue
        if isinstance(step.instruction.does, QueryKey):
            yield step.reduction.finish, step, True
        if isinstance(step.instruction.does, RMSScale) and step.touches.writes:
            # Factors of norms are looked up behind their rows.
            yield step.reduction.finish + FACTOR_WRITTEN, step, True


def compare_step(
    check: ValueCheck, chip: RTLChip, step: Step, value: Any, position: int, *, late: bool
) -> bool:
    """Compares what a beat has written, where it has: at a moment of `moments`.

    Returns:
        Whether there was anything.
    """
    if late and isinstance(value, Scale):
        seen = chip.read(step.instruction.writes[0])
        assert isinstance(seen, Scale)
        _compare_scale(check, str(step), value, seen, step, slice(None))
        return True
    part = _part(chip, step)
    if part is None:
        return False
    if late:
        _compare_largest(check, chip, step, value, part)
    else:
        _compare_value(check, chip, step, value, part, position)
    return True


def _write(chip: RTLChip, step: Step, other: Any, position: int, *, late: bool) -> None:
    """Gives the hardware another value in place of what a beat has written."""
    name = step.instruction.writes[0]
    if late and isinstance(other, Scale):
        chip.write(name, Scale(*(np.asarray(part).reshape(-1)[:1] for part in other)))
        return
    part = _part(chip, step)
    assert part is not None
    one = _first_token(other) if isinstance(other, Quantized) else other[0]
    if late:
        chip.write_largest(name, np.asarray(one), part)
    else:
        chip.write(name, one, _first_seen(step.instruction, position), part)


def compare_cycles(
    check: ValueCheck, steps: Sequence[Step], seen: Mapping[tuple[str, int], Event]
) -> None:
    """Compares starts, finishes and reductions of a token.

    A difference of cycles counts where it comes before the first one of values.

    Args:
        check: gets what is found.
        steps: as the timeline has them.
        seen: by counter and number.
    """
    first_cycle: Difference | None = None
    when = None
    for step in sorted(steps, key=lambda one: one.event.start):
        event = seen.get((step.event.queue, step.event.sequence))
        check.result.instructions += 1
        pairs = [("start", event, step.event), ("finish", event, step.event)]
        if step.reduction is not None:
            left = seen.get((step.reduction.queue, step.event.sequence))
            pairs.append(("finish", left, step.reduction))
        for kind, found_event, wanted_event in pairs:
            want = getattr(wanted_event, kind)
            got = getattr(found_event, kind) if found_event is not None else "never"
            if want != got and first_cycle is None:
                first_cycle = Difference(
                    str(step), f"the {kind} cycle", str(want), str(got), step, is_cycle=True
                )
                when = step.event.start
    found = check.result.difference
    if first_cycle is not None and when is not None:
        at = found.step.event.finish if found is not None and found.step is not None else None
        if at is None or when < at:
            check.result.difference = first_cycle


def _there(step: Step) -> int:
    """The cycle from which on what a beat writes can be compared."""
    if step.reduction is not None:
        # Codes of heads are there with the reductions; sums of bytes at places are looked up.
        if isinstance(step.instruction.does, QuantizeHeads):
            return step.reduction.finish
        if isinstance(step.instruction.does, SoftmaxPlaces):
            return step.reduction.finish + FACTOR_WRITTEN
    return step.event.finish


Change = Callable[[Instruction, Any], Any]
"""Another value for what an instruction gave, of the same shape; None: it stays."""


def _first_token(value: Quantized) -> Quantized:
    scale = Scale(np.asarray(value.scale.mantissa)[0], np.asarray(value.scale.exponent)[0])
    return Quantized(value.codes[0], scale, value.format)


def _first_seen(one: Instruction, position: int) -> int:
    """The first cached token that an instruction of a token sees."""
    return one.does.first(position) if isinstance(one.does, OverTokens) else 0


Whole = tuple[int, int, int, str]


def whole_of(step: Step) -> Whole:
    """The instruction instance that a step is a beat of."""
    one = step.instruction
    return step.block, step.instance, one.beat.of_instruction, one.opcode


def _part(chip: RTLChip, step: Step) -> tuple[int, int] | None:
    """Which groups, heads or elements of its result a beat writes; None: it writes none of it."""
    one = step.instruction
    # A norm's factor comes later than its rows.
    if not one.writes or isinstance(one.does, Sample | RMSScale):
        return None
    # What keeps something for the next token gives its result in the first pass.
    keeps = isinstance(one.does, Delay | LinearAttention)
    if one.beat.number < passes_of(one.does) - 1 and not keeps:
        return None
    name = one.writes[0]
    if name not in step.touches.writes:
        return None
    kind, lanes = chip.program.buffers[name].type, chip.layout.lanes
    match kind:
        case values.Fixed(size=whole):
            each = 1
        case values.Quantized(groups=1, width=whole) | values.Blocks(elements=whole):
            each = 1
        case values.Quantized(groups=whole, width=width):
            each = -(-width // lanes) * lanes
        case values.Scores(heads=whole) | values.Probabilities(heads=whole):
            each = chip.program.rows_of_head * lanes
        case values.Routing(chosen=whole):
            each = lanes
        case _:
            return None
    first, last = step.touches.parts.get(name, (0, whole * each))
    return first // each, min(whole, -(-last // each))


def values_of(
    simulator: Simulator, token: int, position: int, sample: bool, change: Change | None
) -> dict[Whole, tuple[Any, Any]]:
    """What each instruction of a token gives, and what it is changed to; appends give None."""
    found: dict[Whole, tuple[Any, Any]] = {}
    context = Context(np.array([token], np.int64), position)
    context.values.update(dict.fromkeys(simulator.program.accepted, context.tokens))
    for number, (block, instances) in enumerate(simulator._steps):
        if block.sampled and not sample:
            continue
        for instance, actions in enumerate(instances):
            for one, action in zip(block.whole, actions, strict=True):
                result = action(context)
                other = change(one, result) if change is not None else None
                for name in one.writes:
                    context.values[name] = result if other is None else other
                key = number, instance, one.beat.of_instruction, one.opcode
                found[key] = result, other
    return found


def _compare_value(
    check: ValueCheck, chip: RTLChip, step: Step, value: Any, part: tuple[int, int], position: int
) -> None:
    one, where = step.instruction, str(step)
    (name,) = one.writes
    seen = chip.read(name, _first_seen(one, position), position)
    mine = slice(*part)
    match value, seen:
        case Quantized(), Quantized() if isinstance(chip.program.buffers[name].type, values.Blocks):
            check.value(where, "code", value.codes[0][mine], seen.codes[mine], step)
        case Quantized(), Quantized():
            kind = chip.program.value(name, values.Quantized)
            codes = [each.reshape(kind.groups, -1) for each in (value.codes[0], seen.codes)]
            want, got = (each[mine] if kind.groups > 1 else each[:, mine] for each in codes)
            check.value(where, "code", want, got, step)
            if not (isinstance(one.does, Quantize) and one.does.scale_of is not None):
                groups = mine if kind.groups > 1 else slice(None)
                _compare_scale(check, where, value.scale, seen.scale, step, groups)
        case Probabilities(), Probabilities():
            check.value(
                where, "code", value.quantized.codes[0][mine], seen.quantized.codes[mine], step
            )
            _compare_scale(check, where, value.quantized.scale, seen.quantized.scale, step, mine)
            check.value(where, "sum", value.total[0][mine], seen.total[mine], step)
        case Routing(), Routing():
            check.value(where, "expert number", value.experts[0], seen.experts, step)
            check.value(where, "share", value.shares[0], seen.shares, step)
        case _:
            check.value(where, "element", np.asarray(value)[0][mine], np.asarray(seen)[mine], step)


def _compare_largest(
    check: ValueCheck, chip: RTLChip, step: Step, value: Any, part: tuple[int, int]
) -> None:
    (name,) = step.instruction.writes
    mine = slice(*part)
    want = np.asarray(value)[0][mine].max(axis=1)
    check.value(str(step), "largest score", want, chip.largest(name)[mine], step)


def _compare_scale(
    check: ValueCheck, where: str, want: Scale, seen: Scale, step: Step, groups: slice
) -> None:
    shape = seen.mantissa.shape
    mantissa = np.asarray(want.mantissa)[0].reshape(shape)[groups]
    check.value(where, "scale mantissa", mantissa, seen.mantissa[groups], step)
    # A scale of 0 has any exponent.
    for_exponent = mantissa != 0
    exponent = np.asarray(want.exponent)[0].reshape(shape)[groups]
    check.value(
        where,
        "scale exponent",
        np.where(for_exponent, exponent, 0),
        np.where(for_exponent, seen.exponent[groups], 0),
        step,
    )


def _compare_end(
    check: ValueCheck,
    simulator: Simulator,
    chip: RTLChip,
    steps: Sequence[Step],
    sample: bool,
    before: tuple[int, int],
    caches: bool,
) -> None:
    where = "after the token"
    counts = simulator.saturations - before[0], chip.saturations - before[1]
    check.value(where, "the number of saturations", *counts, None)
    check.value(where, "token_ready", 1, chip.model.get("token_ready"), None)
    if sample:
        where = "the sampled token"
        logits, token = chip.result()
        check.value(where, "next_token", np.argmax(logits), token, None)
        out = next(one.out for one in reversed(steps) if one.out is not None)
        check.value(where, "the cycle of next_token", out, chip.out, None)
    if caches:
        compare_caches(check, simulator, chip, chip.position)


def compare_caches(check: ValueCheck, simulator: Simulator, chip: RTLChip, tokens: int) -> None:
    """Compares what caches hold of the first tokens, and states."""
    seen = chip.stores
    for name, state in simulator.states.items():
        check.value(f"state {name}", "element", state, chip.state(name), None)
    for name, state in simulator.matrices.items():
        other = chip.matrices(name)
        check.value(f"state {name}", "mantissa", state.mantissas, other.mantissas, None)
        check.value(f"state {name}", "exponent", state.exponents, other.exponents, None)
    for name, store in simulator.stores.items():
        other = seen[name]
        check.value(f"cache {name}", "code", store.codes[:, :tokens], other.codes[:, :tokens], None)
        if store.cache.static_scale is None:
            for part in ("mantissa", "exponent"):
                want = getattr(store.scale, part)[:, :tokens]
                got = getattr(other.scale, part)[:, :tokens]
                check.value(f"cache {name}", f"scale {part}", want, got, None)
