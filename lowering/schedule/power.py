"""Power gating in the program: when the ROM banks of a layer are switched on and off.

Each power domain (`fabric.domain`) is woken before its first product and put to sleep after its
last. A layer's domain is woken while the layer before it works: after the latest instruction that
still leaves the wake latency, so that nothing waits and nothing is on earlier than it must be. That
choice is made where attention is shortest, at position 0. The last layer wakes the block behind the
layers in the same way. The first layer is woken as the token begins. Whatever the choice, products
wait for their domain: a late switch costs time, never a result.

Where only the banks of chosen experts are switched on (`expert_power` of the machine), families
have a domain of their own. It is woken when `route` has chosen, which nothing can hide, and put to
sleep after the last product of these experts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from xdsl.dialects.builtin import ArrayAttr, ModuleOp

from intaglio.dialects import rom, timeline
from intaglio.dialects.fabric import DomainOp
from intaglio.dialects.gating import NO_DOMAIN
from intaglio.dialects.isa.matrix import ExpertMatvec, Matvec
from intaglio.dialects.isa.power import Sleep, Wake, WakeChosen
from intaglio.dialects.isa.queues import MATRIX, POWER, QUEUES
from intaglio.dialects.isa.vector import Route
from intaglio.dialects.machine import Machine
from intaglio.dialects.timeline import Times
from intaglio.lowering.schedule import durations
from intaglio.lowering.schedule.draft import Draft, DraftBlock

THIS, NEXT, EXPERTS = "power", "next_power", "experts_power"
"""Slots of a block for its domain, for that of the layer, or of the block, after it, and for that
of the experts that a router of it chooses among."""

Timing = Callable[[Sequence[DraftBlock]], Sequence[timeline.Block]]


def domains_of(module: ModuleOp) -> dict[str, str]:
    """The power domain of each tensor that has one."""
    return {
        tensor: op.sym_name.data
        for op in module.ops
        if isinstance(op, DomainOp)
        for tensor in op.names
    }


def switch(
    blocks: Sequence[DraftBlock], domains: Mapping[str, str], machine: Machine, timing: Timing
) -> None:
    """Adds `wake` and `sleep` to the blocks, and to their products the wait for it.

    Args:
        blocks: of the whole program, in order; changed in place.
        domains: the power domain of each tensor.
        machine: the chip.
        timing: what the timeline needs of blocks, with their waits.
    """
    chosen = _of_experts(blocks, domains) if machine.expert_power == "chosen" else {}
    domains = {tensor: name for tensor, name in domains.items() if tensor not in chosen}
    anchors = _anchors(blocks, domains, machine, timing)
    used = [[_domains_used(block, one, domains) for one in block.instances] for block in blocks]
    ahead = NO_DOMAIN
    for number, (block, own) in enumerate(zip(blocks, used, strict=True)):
        if not any(own):
            ahead = NO_DOMAIN
        elif len(block.instances) == 1:
            _gate_once(block, own[0], ahead, domains, machine)
            ahead = NO_DOMAIN
        else:
            ahead = _woken_ahead(blocks, used, number + 1)
            _gate_layers(block, own, ahead, domains, machine, anchors[number])
            _wake_first(blocks, number, own[0], machine)
    for block in blocks:
        _gate_experts(block, chosen, machine)


def _of_experts(blocks: Sequence[DraftBlock], domains: Mapping[str, str]) -> dict[str, str]:
    """The power domain of each family of experts that has one."""
    names = {
        instance[draft.does.weights]
        for block in blocks
        for draft in block.drafts
        if isinstance(draft.does, ExpertMatvec)
        for instance in block.instances
    }
    return {tensor: name for tensor, name in domains.items() if tensor in names}


def _gate_experts(block: DraftBlock, chosen: Mapping[str, str], machine: Machine) -> None:
    """Wakes the chosen experts' banks behind each choice; asleep after its last product."""
    routes = [draft for draft in block.drafts if isinstance(draft.does, Route)]
    for number, route in enumerate(routes):
        assert isinstance(route.does, Route)
        routing = route.does.output
        experts = [
            draft
            for draft in block.drafts
            if isinstance(draft.does, ExpertMatvec)
            and draft.does.routing == routing
            and any(one[draft.does.weights] in chosen for one in block.instances)
        ]
        if not experts:
            continue
        slot = f"{EXPERTS}{number}"
        for instance in block.instances:
            used = dict.fromkeys(
                chosen.get(instance[draft.does.weights], NO_DOMAIN)
                for draft in experts
                if isinstance(draft.does, ExpertMatvec)
            )
            instance[slot] = _only(list(used))
        kind = routing.type
        assert isinstance(kind, rom.RoutingType)
        takes = Times(durations.wake_chosen(machine, kind.chosen.data))
        awake = Draft(
            WakeChosen(domain=slot, routing=routing), lambda _, __, t=takes: t, route.onnx, {}
        )
        block.drafts.insert(_place(block, route) + 1, awake)
        count = sum(one.queue == POWER for one in block.drafts[: _place(block, awake) + 1])
        for draft in experts:
            draft.also_waits[POWER] = count
        last = _place(block, experts[-1])
        needed = {MATRIX: _matrix_count(block, last)}
        asleep = _sleep(slot, machine, _names(experts[-1], len(block.instances)), needed)
        block.drafts.insert(last + 1, asleep)


def _place(block: DraftBlock, one: Draft) -> int:
    """Where a draft stands; equal ones are not it."""
    return next(number for number, draft in enumerate(block.drafts) if draft is one)


def _domains_used(
    block: DraftBlock, instance: Mapping[str, str], domains: Mapping[str, str]
) -> list[str]:
    """Domains that the products of an instance need, in their order."""
    tensors = (
        instance[d.does.weights] for d in block.drafts if isinstance(d.does, Matvec | ExpertMatvec)
    )
    return list(dict.fromkeys(domains[tensor] for tensor in tensors if tensor in domains))


def _woken_ahead(
    blocks: Sequence[DraftBlock], used: Sequence[Sequence[Sequence[str]]], number: int
) -> str:
    """The domain of a block that the layers before it can wake, or that without tensors.

    A block that only wanted tokens run puts its domain to sleep only in these. So it must also be
    woken only in these, which holds for domains that no other block needs.
    """
    if number == len(blocks) or len(blocks[number].instances) > 1 or not used[number][0]:
        return NO_DOMAIN
    domain = used[number][0][0]
    if domain in used[number - 1][-1]:
        return NO_DOMAIN
    always = {
        name
        for block, own in zip(blocks, used, strict=True)
        if not block.sampled
        for names in own
        for name in names
    }
    return NO_DOMAIN if blocks[number].sampled and domain in always else domain


def _gated(block: DraftBlock, domains: Mapping[str, str]) -> list[int]:
    """Places of the products that need a domain."""
    return [
        place
        for place, draft in enumerate(block.drafts)
        if isinstance(draft.does, Matvec | ExpertMatvec)
        and any(one[draft.does.weights] in domains for one in block.instances)
    ]


def _names(draft: Draft, instances: int) -> rom.Nodes:
    """The ONNX nodes that a switch serves: those of the product it is for."""
    return draft.onnx if len(draft.onnx) == instances else ArrayAttr([draft.onnx.data[0]])


def _wake(slot: str, machine: Machine, onnx: rom.Nodes, waits: dict[str, int]) -> Draft:
    return Draft(Wake(domain=slot), lambda _, __: Times(durations.wake(machine)), onnx, waits)


def _sleep(slot: str, machine: Machine, onnx: rom.Nodes, waits: dict[str, int]) -> Draft:
    return Draft(Sleep(domain=slot), lambda _, __: Times(durations.sleep(machine)), onnx, waits)


def _matrix_count(block: DraftBlock, place: int) -> int:
    """Instructions of the matrix queue up to a place of a block, that one included."""
    return sum(draft.queue == MATRIX for draft in block.drafts[: place + 1])


def _gate_once(
    block: DraftBlock,
    own: Sequence[str],
    ahead: str,
    domains: Mapping[str, str],
    machine: Machine,
) -> None:
    """A block that runs once wakes its domains as it begins, but for one that is woken before."""
    places = _gated(block, domains)
    (instance,) = block.instances
    first, last = block.drafts[places[0]], block.drafts[places[-1]]
    count = _matrix_count(block, places[-1])
    before = sum(draft.queue == POWER for draft in block.drafts)
    slots = [f"{THIS}{number}" for number in range(len(own))]
    late = [slot for slot, domain in zip(slots, own, strict=True) if domain != ahead]
    for place in places:
        block.drafts[place].also_waits[POWER] = before + len(late)
    instance.update(zip(slots, own, strict=True))
    asleep = [_sleep(slot, machine, _names(last, 1), {MATRIX: count}) for slot in slots]
    block.drafts[places[-1] + 1 : places[-1] + 1] = asleep
    awake = [_wake(slot, machine, _names(first, 1), {}) for slot in late]
    block.drafts[before:before] = awake


def _gate_layers(
    block: DraftBlock,
    own: Sequence[Sequence[str]],
    ahead: str,
    domains: Mapping[str, str],
    machine: Machine,
    anchor: tuple[int, str, int] | None,
) -> None:
    """Each layer wakes the next one's domain, the last one `ahead`, and puts its own to sleep."""
    places = _gated(block, domains)
    for instance, this, following in zip(block.instances, own, [*own[1:], [ahead]], strict=True):
        instance[THIS], instance[NEXT] = _only(this), _only(following)
    for place in places:
        # All power instructions before this layer: its domain is awake.
        block.drafts[place].also_waits[POWER] = 0
    count, instances = _matrix_count(block, places[-1]), len(block.instances)
    last = block.drafts[places[-1]]
    asleep = _sleep(THIS, machine, _names(last, instances), {MATRIX: count})
    at, waits = (-1, {}) if anchor is None else (anchor[0], {anchor[1]: anchor[2]})
    awake = _wake(NEXT, machine, _names(block.drafts[places[0]], instances), waits)
    # The later one first: places before it stay.
    for place, draft in sorted(
        [(places[-1] + 1, asleep), (at + 1, awake)], key=lambda one: one[0], reverse=True
    ):
        block.drafts.insert(place, draft)


def _only(domains: Sequence[str]) -> str:
    """The domain of a layer; that without tensors where it shares all that it multiplies with."""
    (domain,) = domains or [NO_DOMAIN]
    return domain


def _wake_first(
    blocks: Sequence[DraftBlock],
    number: int,
    own: Sequence[str],
    machine: Machine,
) -> None:
    """The block before the layers wakes the first one's domain."""
    before = next(b for b in reversed(blocks[:number]) if len(b.instances) == 1)
    slot = f"{NEXT}{number}"
    before.instances[0][slot] = _only(own)
    draft = before.drafts[0]
    before.drafts.insert(0, _wake(slot, machine, _names(draft, 1), {}))
    for later in before.drafts[1:]:
        if later.queue == MATRIX and later.also_waits.get(POWER):
            later.also_waits[POWER] += 1


def _anchors(
    blocks: Sequence[DraftBlock],
    domains: Mapping[str, str],
    machine: Machine,
    timing: Timing,
) -> dict[int, tuple[int, str, int] | None]:
    """For each block of layers after which instruction the next layer is to be woken.

    The place in the block, the queue, and how many of its instructions have then finished; None:
    as the layer begins.
    """
    spans = list(timeline.simulate(timing(blocks), machine.issue, [0]))
    anchors: dict[int, tuple[int, str, int] | None] = {}
    for number, block in enumerate(blocks):
        places = _gated(block, domains)
        if len(block.instances) == 1 or not places:
            continue
        mine = [span for span in spans if span.block == number]
        needed = next(
            int(span.start[0])
            for span in mine
            if span.instance == 1 and span.instruction == places[0]
        )
        latest = needed - machine.power_wake - 2 * machine.issue
        anchors[number] = None
        counts = dict.fromkeys(QUEUES, 0)
        best = -1
        for span in mine:
            if span.instance:
                continue
            queue = block.drafts[span.instruction].queue
            counts[queue] += 1
            finish = int(span.finish[0])
            if best < finish <= latest:
                best = finish
                anchors[number] = (span.instruction, queue, counts[queue])
    return anchors
