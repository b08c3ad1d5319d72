"""Power gating: what a product reads is on, and is off again when nothing needs it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr

from intaglio.dialects import timeline
from intaglio.dialects.errors import UserError
from intaglio.dialects.fabric import DomainOp
from intaglio.dialects.machine import Machine
from intaglio.dialects.program import InstructionOp, ProgramOp
from intaglio.lowering.place.place import FabricPlace
from intaglio.lowering.schedule import durations
from intaglio.lowering.schedule.power import NO_DOMAIN
from intaglio.lowering.schedule.schedule import ProgramSchedule

RELAXED = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@dataclass(frozen=True)
class Event:
    """An instruction instance, or a beat of one, at one position."""

    of: tuple[int, int]
    """Block and instance."""
    op: InstructionOp
    uses: dict[str, str]
    start: int
    finish: int


def scheduled(module: ModuleOp) -> ProgramOp:
    FabricPlace().apply(Context(), module)
    ProgramSchedule().apply(Context(), module)
    module.verify()
    (program,) = [op for op in module.ops if isinstance(op, ProgramOp)]
    return program


def events(
    program: ProgramOp, machine: Machine, position: int, sampled: bool = True
) -> Iterator[Event]:
    blocks = [block for block in program.blocks if sampled or block.sampled is None]
    for span in timeline.simulate([b.timing for b in blocks], machine.issue, [position]):
        block = blocks[span.block]
        op = list(block.instructions)[span.instruction]
        bound = {
            slot: symbol.root_reference.data
            for slot, symbol in block.instances.data[span.instance].data.items()
            if isinstance(symbol, SymbolRefAttr)
        }
        uses = {
            role: bound[slot.root_reference.data]
            for role, slot in op.uses.data.items()
            if isinstance(slot, SymbolRefAttr)
        }
        yield Event((span.block, span.instance), op, uses, int(span.start[0]), int(span.finish[0]))


@RELAXED
@given(data=st.data())
def test_products_find_their_rom_awake(
    data: st.DataObject,
    decoders: st.SearchStrategy,
    machines: st.SearchStrategy[Machine],
    integers: Callable[..., ModuleOp],
) -> None:
    machine = replace(
        data.draw(machines),
        power_wake=data.draw(st.sampled_from([1, 7, 200, 100_000])),
        power_sleep=data.draw(st.sampled_from([1, 5])),
        shared_arrays=data.draw(st.integers(0, 1)),
        bank_words=data.draw(st.sampled_from([1, 16, 1000])),
        rom_bits=1 << 40,
    )
    module = integers(data.draw(decoders), machine)
    program = scheduled(module)
    domains = {
        t: op.sym_name.data for op in module.ops if isinstance(op, DomainOp) for t in op.names
    }
    always = {domains.get(e.uses.get("weights", "")) for e in events(program, machine, 0, False)}
    last = program.positions.get_values()[-1]
    for position, sampled in ((0, True), (last, True), (0, False), (last, False)):
        # In a token whose successor is not wanted, a wake for the head alone does nothing.
        off = {NO_DOMAIN} if sampled else {NO_DOMAIN, *domains.values()} - always
        on: dict[str, int] = {}
        spans: dict[str, list[tuple[int, int]]] = {}
        found = sorted(events(program, machine, position, sampled), key=lambda e: e.finish)
        for event in found:
            if event.op.queue.data != "power" or event.uses["domain"] in off:
                continue
            domain = event.uses["domain"]
            if event.op.opcode.data == "wake":
                assert domain not in on
                on[domain] = event.finish
            else:
                spans.setdefault(domain, []).append((on.pop(domain), event.start))
        assert not on, "everything is off when the token is done"
        for event in found:
            domain = domains.get(event.uses.get("weights", ""))
            if event.op.queue.data == "matrix" and domain is not None:
                assert any(a <= event.start and event.finish <= b for a, b in spans[domain])
        if machine.shared_arrays:
            # Instructions of one queue flow; those of the other have left the adders before.
            ends = {"matrix": 0, "attention": 0}
            for event in sorted(found, key=lambda e: e.start):
                if (queue := event.op.queue.data) in ends:
                    (other,) = ends.keys() - {queue}
                    assert ends[other] <= event.start
                    ends[queue] = max(ends[queue], event.finish)


def test_waking_ahead_costs_no_time(
    mini: Machine, decoder: object, integers: Callable[..., ModuleOp]
) -> None:
    """A latency shorter than a layer hides behind the layer before."""

    def last(machine: Machine) -> int:
        program = scheduled(integers(replace(decoder, layers=4), machine))  # type: ignore[type-var]
        return max(event.finish for event in events(program, machine, 0))

    gated = replace(mini, power_wake=20, power_sleep=2, bank_words=64)
    # Only the first layer waits, for what the embedding leaves of the latency; the token ends when
    # the last domain is off.
    assert last(gated) <= last(mini) + 20 + 2 + 4 * mini.issue
    assert last(replace(gated, power_wake=50_000)) > last(mini) + 4 * 40_000


def test_the_last_layer_wakes_the_head(
    mini: Machine, decoder: object, integers: Callable[..., ModuleOp]
) -> None:
    """As a layer would the next one: the head's product waits no longer than a layer's first."""
    machine = replace(mini, power_wake=100, power_sleep=2, bank_words=64)
    program = scheduled(integers(replace(decoder, layers=3), machine))  # type: ignore[type-var]
    *_, layers, head = program.blocks
    assert head.sampled is not None
    assert not any(one.opcode.data == "wake" for one in head.instructions)
    bound = [one.data["next_power"] for one in layers.instances]
    assert bound == [SymbolRefAttr(name) for name in ("power1", "power2", "power_head")]
    products: dict[tuple[int, int], list[Event]] = {}
    for event in events(program, machine, 0):
        if event.op.queue.data == "matrix":
            products.setdefault(event.of, []).append(event)
    *_, before, last, of_head = products.values()
    gap = last[0].start - before[-1].finish
    waits = of_head[0].start - last[-1].finish
    assert 0 < waits <= gap + machine.power_sleep + machine.issue
    assert gap < machine.power_wake


def test_only_two_layers_are_ever_on(
    mini: Machine, decoder: object, integers: Callable[..., ModuleOp]
) -> None:
    machine = replace(mini, power_wake=20, power_sleep=2, bank_words=64)
    program = scheduled(integers(replace(decoder, layers=5), machine))  # type: ignore[type-var]
    on: set[str] = set()
    for event in sorted(events(program, machine, 0), key=lambda e: e.start):
        if event.op.opcode.data == "wake":
            on.add(event.uses["domain"])
        elif event.op.opcode.data == "sleep":
            on.remove(event.uses["domain"])
        assert len(on - {NO_DOMAIN}) <= 2


def test_retention_is_checked(
    mini: Machine, decoder: object, integers: Callable[..., ModuleOp]
) -> None:
    kept = replace(mini, kv_on_die=8, external_bytes=4, external_latency=10)
    program = scheduled(integers(decoder, kept))
    cycles = max(event.finish for event in events(program, kept, 39))
    scheduled(integers(decoder, replace(kept, retention_cycles=cycles)))
    with pytest.raises(UserError, match=r"hold keys and values for .* without being read"):
        scheduled(integers(decoder, replace(kept, retention_cycles=cycles - 1)))


def test_ways_out_of_retention_help(
    mini: Machine, decoder: object, integers: Callable[..., ModuleOp]
) -> None:
    """Each number that is named does, and the longest context is the longest."""
    kept = replace(mini, kv_on_die=8, external_bytes=1, external_latency=10)

    def cycles(position: int, capacity: int = 40) -> int:
        own = replace(decoder, capacity=capacity)  # type: ignore[type-var]
        program = scheduled(integers(own, kept))
        return max(event.finish for event in events(program, kept, position))

    def refusal(retention: int, machine: Machine = kept, capacity: int = 40) -> str | None:
        own = replace(decoder, capacity=capacity)  # type: ignore[type-var]
        try:
            scheduled(integers(own, replace(machine, retention_cycles=retention)))
        except UserError as error:
            return str(error)
        return None

    between = cycles(20)
    text = refusal(between)
    assert text is not None and "ms at position 39; the on-die" in text
    context, clock, microseconds = (
        int(re.findall(pattern, text)[0])
        for pattern in (r"--context (\d+)", r"frequency_hz=(\d+)", r"retention_us=(\d+)")
    )
    assert 21 <= context < 40
    assert refusal(between, capacity=context) is None
    assert refusal(between, capacity=context + 1) is not None
    # The time is what it was: with a faster clock it is more cycles.
    assert refusal(between * clock // kept.clock_hz) is None
    assert refusal(microseconds * kept.clock_hz // 1_000_000) is None

    # The beats of a shorter context have an order of their own.
    too_slow = min(cycles(0), cycles(0, capacity=1)) - 1
    text = refusal(too_slow)
    assert text is not None and "--context" not in text and "at position 0;" in text
    assert "clock.frequency_hz=" in text and "external.retention_us=" in text
    text = refusal(too_slow, capacity=1)
    assert text is not None and "--context" not in text


def test_tokens_outside_take_longer(
    mini: Machine, decoder: object, integers: Callable[..., ModuleOp]
) -> None:
    """Up to the tokens on the die all is as it was; each block beyond costs its bytes."""

    def duration(machine: Machine, opcode: str, position: int) -> int:
        """Cycles of the queue for all heads, and from the last one's end to its result."""
        program = scheduled(integers(decoder, machine))
        found = [one for b in program.blocks for one in b.instructions if one.opcode.data == opcode]
        mine = [one for one in found if one.part.of_instruction == found[0].part.of_instruction]
        assert sum(one.part.count or 0 for one in mine) == decoder.kv_heads  # type: ignore[attr-defined]
        given = {"tokens": position + 1, "rank": 0}
        issues = [one.issue for one in mine]
        paces = [int(one.pace(**given)) for one in issues if one.pace is not None]
        return sum(paces) + int(issues[-1].duration(**given)) - paces[-1]

    outside = replace(mini, kv_on_die=16, external_bytes=1, external_latency=30)
    for opcode in ("query_key", "weighted_sum", "append"):
        assert duration(outside, opcode, 15) == duration(mini, opcode, 15)
        assert duration(outside, opcode, 16) > duration(mini, opcode, 16)
    first, second = (duration(outside, "query_key", p) for p in (16, 24))
    assert second - first == 2 * durations.block_fetch(outside, 8, "int8")
