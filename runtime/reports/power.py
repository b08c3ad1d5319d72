"""Average power of a chip while it decodes, and the energy of a token, as far as its target says.

Four statements, each only where the target has the figures for it:

- *ROM on*: ``rest_w + rom_on_w * share``, where the share of the ROM that is on is measured: a
  power domain is on from the start of its `wake` to the finish of its `sleep`, and counts with its
  bits. `rest_w` and `rom_on_w` are the target's and hang on a share that the target assumes. Of a
  domain of which only chosen experts' banks are woken those count that are on, on the average of
  choices at random.
- *Published power*: what a source gives for the whole chip, times the time of a token.
- *L-Units*: energy of a busy cycle times the cycles in which engraved weights are multiplied.
- *Activity*: that of the L-Units, and of all reads, writes and operations of the other units, each
  counted from the program (`runtime/reports/activity.py`) times the target's energy of one.

What the chip would draw without gating is stated for the same program without its switches, so
the two energies of a token hold what switching costs in time.

Banks deeper than the target's (policy `extra-rom`) are in no published figure and stated apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import comb
from typing import Any

from intaglio.backend.program.power_bits import by_choice, power_bits
from intaglio.backend.program.program import Program
from intaglio.backend.target.target import Target
from intaglio.dialects.isa.power import Sleep, Switch
from intaglio.dialects.machine import Machine
from intaglio.dialects.tiling import Reads
from intaglio.runtime.reports.activity import (
    LEFT_OUT,
    PARTS,
    Activity,
    activity,
    energy,
    figures_of,
)
from intaglio.runtime.reports.figures import depends, figure
from intaglio.runtime.reports.rom_use import Placed, products_with_inputs
from intaglio.runtime.reports.timing import Ranks, TokenTimeline, token_cycles

ALWAYS = "always on"
"""Name for ROM that lies in no power domain."""

_REST, _ROM_ON, _ASSUMED = "power.rest_w", "power.rom_on_w", "power.gated_on_share"
_L_UNIT = ("l_unit.lanes", "l_unit.plane_bits", "l_unit.pass_bits")
"""What an L-Unit's energy hangs on."""
_CYCLE, _CYCLE_TWO_PASSES = "energy.l_unit_cycle_pj", "energy.l_unit_cycle_8bit_pj"


@dataclass(frozen=True)
class OnTimes:
    """When each power domain is on in one token of many.

    Attributes:
        period: cycles of the token.
        domains: for each domain its [start, finish) intervals in cycles of the token, in order.
    """

    period: int
    domains: Mapping[str, Sequence[tuple[int, int]]]

    def share(self, domain: str) -> float:
        """Part of the token in which a domain is on."""
        return sum(finish - start for start, finish in self.domains[domain]) / self.period

    def at_once(self, domains: Iterable[str]) -> dict[int, float]:
        """For each number of some domains, the part of the token in which so many are on."""
        edges = [
            (cycle, step)
            for name in domains
            for start, finish in self.domains[name]
            for cycle, step in ((start, 1), (finish, -1))
        ]
        cycles: dict[int, int] = {}
        number = last = 0
        for cycle, step in sorted([*edges, (self.period, 0)]):
            if cycle > last:
                cycles[number] = cycles.get(number, 0) + cycle - last
            number, last = number + step, cycle
        return {number: count / self.period for number, count in sorted(cycles.items())}


def on_times(program: Program, position: int, ranks: Ranks | None = None) -> OnTimes:
    """The intervals in which each domain is on, at a position, when token follows token."""
    return on_times_of(TokenTimeline(program, [position], ranks=ranks))


def on_times_of(token: TokenTimeline, which: int = 0) -> OnTimes:
    """The same of a token at one of some positions.

    A domain that a token leaves on is on in the next one until its `sleep` finishes.
    """
    program, period = token.program, int(token.period[which])
    domains: dict[str, list[tuple[int, int]]] = {name: [] for name in program.domains}
    since: dict[str, int] = {}
    for number, (block, instance, _) in enumerate(token.at):
        does = token.taken(number).does
        if not isinstance(does, Switch):
            continue
        domain = does.bound(program.blocks[block].instances[instance]).domain
        if domain not in domains:
            continue
        start, finish = int(token.start[number, which]), int(token.finish[number, which])
        if not isinstance(does, Sleep):
            since.setdefault(domain, start)
        else:
            domains[domain].append((since.pop(domain, 0), finish))
    for domain, start in since.items():
        domains[domain].append((start, period))
    return OnTimes(period, {name: _united(intervals) for name, intervals in domains.items()})


def ungated(program: Program) -> Program:
    """The program of the same chip with all its ROM on: no switches, and nothing waits for them."""
    if not program.domains:
        return program
    blocks = [
        replace(
            block,
            instructions=[
                replace(one, issue=replace(one.issue, waits=_without_power(one.issue.waits)))
                for one in block.instructions
                if one.queue != "power"
            ],
        )
        for block in program.blocks
    ]
    return replace(program, blocks=blocks, domains={})


def _without_power(waits: Mapping[str, int]) -> Mapping[str, int]:
    return {queue: count for queue, count in waits.items() if queue != "power"}


def _united(intervals: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Intervals in order, those that overlap as one."""
    united: list[tuple[int, int]] = []
    for start, finish in sorted(intervals):
        if united and start <= united[-1][1]:
            united[-1] = (united[-1][0], max(united[-1][1], finish))
        else:
            united.append((start, finish))
    return united


@dataclass(frozen=True)
class RomBits:
    """ROM bits of the matrix units by what switches them.

    Attributes:
        capacity: as published.
        domains: of each power domain, within the capacity.
        always: in no domain, within the capacity.
        extra_domains: of each power domain, in banks deeper than the target's.
        chosen: of a domain of which only chosen experts' banks are on, the part of its bits that
            are, on the average of choices at random.
        extra_always: in no domain, in banks deeper than the target's.
    """

    capacity: int
    domains: Mapping[str, int]
    always: int
    extra_domains: Mapping[str, int]
    extra_always: int
    chosen: Mapping[str, float] = field(default_factory=dict[str, float])

    @staticmethod
    def of(program: Program, placed: Mapping[str, Placed]) -> RomBits:
        """Those of a compiled model."""
        machine = program.machine
        where = {tensor: name for name, tensors in program.domains.items() for tensor in tensors}
        counts = {extra: dict.fromkeys([*program.domains, ALWAYS], 0) for extra in (False, True)}
        for name, one in placed.items():
            counts[one.extra][where.get(name, ALWAYS)] += sum(one.bits(machine).values())
        published, extra = counts[False], counts[True]
        return RomBits(
            capacity=machine.tiles * machine.l_units * machine.rom_bits,
            always=published.pop(ALWAYS),
            domains=published,
            extra_always=extra.pop(ALWAYS),
            extra_domains=extra,
            chosen=_chosen_parts(program, placed),
        )

    def gated_share(self, times: OnTimes) -> float:
        """Part of the capacity that is on, on the average of a token."""
        return self._average(self.domains, self.always, times)

    def gated_extra_share(self, times: OnTimes) -> float:
        """The same for banks deeper than the target's, in parts of the target's capacity."""
        return self._average(self.extra_domains, self.extra_always, times)

    def _average(self, domains: Mapping[str, int], always: int, times: OnTimes) -> float:
        on = sum(
            bits * self.chosen.get(name, 1.0) * times.share(name) for name, bits in domains.items()
        )
        return (on + always) / self.capacity

    def ungated_share(self, machine: Machine) -> float:
        """Part of the capacity that is on without gating.

        Memory of fixed size is on as a whole; of logic only what exists can be.
        """
        if machine.rom == "array":
            return 1.0
        return (sum(self.domains.values()) + self.always) / self.capacity

    @property
    def extra_share(self) -> float:
        """Banks deeper than the target's, in parts of the target's capacity."""
        return (sum(self.extra_domains.values()) + self.extra_always) / self.capacity


def _chosen_parts(program: Program, placed: Mapping[str, Placed]) -> dict[str, float]:
    """For each domain that hangs on a choice, the part of its bits that is on: see `RomBits`.

    A bank is off where none of its experts is among the k of E that are chosen: of m experts, with
    probability C(E - m, k) / C(E, k).
    """
    chosen, machine = by_choice(program), program.machine
    on, whole = dict.fromkeys(chosen, 0.0), dict.fromkeys(chosen, 0)
    for one in power_bits(program):
        for name, words in one.words.items():
            family = placed[name]
            count, of = chosen[one.domain], family.shape.experts
            bits = sum(family.bits(machine).values()) * words
            bits //= sum(p.code_words(family.shape, machine) * p.tiles for p in family.pieces)
            off = comb(of - one.count, count) / comb(of, count)
            on[one.domain] += bits * (1 - off)
            whole[one.domain] += bits
    return {name: on[name] / bits for name, bits in whole.items() if bits}


def power(token: TokenTimeline, target: Target, placed: Mapping[str, Placed]) -> dict[str, Any]:
    """Power and energy as data, for `intaglio inspect`.

    Keys: `rom` (figures of the target, what it assumes, bits by domain), `published` and `l_units`
    (figures of the target), each None where the target does not say; `l_units_invalid`, why its
    figure of the L-Units does not hold with these options, or None; `activity` (`figures`: energies
    of the target, `meaning`: what each part counts, `left_out`: what is in none); `positions`, each
    with `position`, `cycles`, `seconds`, `rom`, `published`, `l_units` and `activity`, in watts and
    millijoules; of `activity` also `parts` (millijoules of each), None where the target does not
    state an energy that is needed; `counts`; and `token`: the most that can be said of a token's
    energy, `millijoules` with `by`, which of the statements it is (None: none).
    `rom.ungated` is on a timeline of its own, with `cycles`; `rom.gated.added_cycles` is how many
    more the token takes with gating.

    Args:
        token: of the compiled model, at the positions to evaluate at.
        target: what it was compiled for.
        placed: its matrices in ROM.
    """
    program = token.program
    bits = RomBits.of(program, placed)
    rom = _rom_figures(program, target, bits)
    published = figure(target, "published.power_w")
    l_units = _l_unit_figures(program, target, placed)
    invalid = None if l_units is None else _other_l_unit(target, l_units["figure"])
    if invalid is not None:
        l_units = None
    cycles_ungated = token.period
    if program.domains:
        cycles_ungated = token_cycles(ungated(program), token.positions, ranks=token.ranks).period
    return {
        "rom": rom,
        "published": published,
        "l_units": l_units,
        "l_units_invalid": invalid,
        "activity": {
            "figures": figures_of(target),
            "meaning": {name: told for name, (_, told) in PARTS.items()},
            "left_out": LEFT_OUT,
        },
        "positions": [
            _position(
                program,
                target,
                bits,
                on_times_of(token, which),
                activity(program, position, token.ranks),
                int(cycles),
                (rom, published, l_units),
            )
            for which, (position, cycles) in enumerate(
                zip(token.positions, cycles_ungated, strict=True)
            )
        ],
    }


def _rom_figures(program: Program, target: Target, bits: RomBits) -> dict[str, Any] | None:
    rest, rom_on = figure(target, _REST), figure(target, _ROM_ON)
    if rest is None or rom_on is None:
        return None
    return {
        "rest_w": rest,
        "rom_on_w": rom_on,
        "assumed_on_share": figure(target, _ASSUMED),
        "published_ungated_w": figure(target, "published.ungated_power_w"),
        "published_gated_w": figure(target, "published.gated_power_w"),
        "capacity_bits": bits.capacity,
        "domain_bits": dict(bits.domains),
        "chosen_parts": dict(bits.chosen),
        "always_on_bits": bits.always,
        "extra_bits": sum(bits.extra_domains.values()) + bits.extra_always,
        "extra_always_on_bits": bits.extra_always,
    }


def _l_unit_figures(
    program: Program, target: Target, placed: Mapping[str, Placed]
) -> dict[str, Any] | None:
    multiplied = [
        (name, Reads.of(coded, program.machine))
        for name, coded in products_with_inputs(program)
        if name in placed
    ]
    passes = max((one.passes + one.more for _, one in multiplied), default=1)
    name = _CYCLE_TWO_PASSES if passes > 1 and _CYCLE_TWO_PASSES in target.parameters else _CYCLE
    cycle = figure(target, name)
    if cycle is None:
        return None
    used = [placed[name] for name, _ in multiplied]
    return {
        "cycle_pj": cycle,
        "figure": name,
        "busy_cycles": sum(
            placed[name].busy_l_units(program.machine, reads) for name, reads in multiplied
        ),
        "operations": sum(2 * one.shape.rows * one.shape.columns for one in used),
    }


def _other_l_unit(target: Target, name: str) -> str | None:
    """Why an L-Unit's energy does not hold for the L-Units that options made; None: it does.

    A figure whose formula names what was changed follows it; one that is measured does not.
    """
    named = depends(target, name)
    changed = [
        name for name in _L_UNIT if target.parameters[name].origin == "option" and name not in named
    ]
    stated = [name for name in named if name.startswith(("energy.", "power."))]
    if not changed or any(target.parameters[name].origin == "option" for name in stated):
        return None
    return (
        f"no energy is stated: {name} holds for the L-Unit of the target, and --set "
        f"{', '.join(changed)} made another one; --set {stated[-1]}=... states its own"
    )


def _position(
    program: Program,
    target: Target,
    bits: RomBits,
    times: OnTimes,
    counts: Activity,
    ungated_cycles: int,
    figures: tuple[dict[str, Any] | None, dict[str, Any] | None, dict[str, Any] | None],
) -> dict[str, Any]:
    rom, published, l_units = figures
    seconds = times.period / program.machine.clock_hz
    result: dict[str, Any] = {
        "position": counts.position,
        "cycles": times.period,
        "seconds": seconds,
        "rom": None,
        "published": None,
        "l_units": None,
        "activity": None,
    }
    if rom is not None:
        result["rom"] = _rom_power(program, target, bits, times, ungated_cycles)
    if published is not None:
        result["published"] = _stated(published["value"], seconds)
    if l_units is not None:
        joules = l_units["busy_cycles"] * l_units["cycle_pj"]["value"] * 1e-12
        result["l_units"] = {
            **_stated(joules / seconds, seconds),
            "busy_share": l_units["busy_cycles"] / (times.period * target.total_l_units),
            "tera_operations_per_joule": l_units["operations"] / joules / 1e12 if joules else None,
        }
        if (parts := energy(target, counts)) is not None:
            parts = {"l_units": joules * 1e3, **parts}
            watts = sum(parts.values()) * 1e-3 / seconds
            result["activity"] = {**_stated(watts, seconds), "parts": parts}
    result["counts"] = {name: getattr(counts, name) for name in PARTS}
    result["token"] = _token(result)
    return result


def _token(stated: Mapping[str, Any]) -> dict[str, Any] | None:
    """The energy of a token that says most of the chip, and which of the statements it is."""
    rom = stated["rom"]
    found = (
        ("activity", stated["activity"]),
        ("rom", rom and (rom["gated"] or rom["ungated"])),
        ("published", stated["published"]),
    )
    for by, one in found:
        if one:
            return {"by": by, "millijoules": one["millijoules"], "watts": one["watts"]}
    return None


def _stated(watts: float, seconds: float) -> dict[str, float]:
    return {"watts": watts, "millijoules": watts * seconds * 1e3}


def _rom_power(
    program: Program, target: Target, bits: RomBits, times: OnTimes, ungated_cycles: int
) -> dict[str, Any]:
    """Power of the model *rest + ROM on x share*, with gating and without."""
    clock = program.machine.clock_hz

    def watts(share: float, of: Target = target) -> float:
        return of.number(_REST) + of.number(_ROM_ON) * share

    share = bits.ungated_share(program.machine)
    result: dict[str, Any] = {
        "ungated": {
            "cycles": ungated_cycles,
            "on_share": share,
            **_stated(watts(share), ungated_cycles / clock),
        },
        "gated": None,
        "extra": {"ungated_watts": target.number(_ROM_ON) * bits.extra_share},
    }
    if program.domains:
        share = bits.gated_share(times)
        at_once = times.at_once(name for name, size in bits.domains.items() if size)
        awake = 1 - at_once.get(0, 0.0)
        always = bits.always / bits.capacity
        while_on = always + (share - always) / awake if awake else always
        ends = [watts(share, other) for other in _assumed_ends(target)]
        extra = target.number(_ROM_ON) * bits.gated_extra_share(times)
        result["gated"] = {
            "added_cycles": times.period - ungated_cycles,
            "on_share": share,
            **_stated(watts(share), times.period / clock),
            "watts_range": [min(ends), max(ends)] if ends else None,
            "domains_on_at_once": {str(n): part for n, part in at_once.items()},
            "while_a_domain_is_on": {"on_share": while_on, "watts": watts(while_on)},
        }
        result["extra"]["gated_watts"] = extra
    return result


def _assumed_ends(target: Target) -> Iterator[Target]:
    """The target with the assumed share at either end of its range; derived figures follow it."""
    parameter = target.parameters.get(_ASSUMED)
    if parameter is not None and parameter.range is not None and parameter.origin == "assumed":
        for end in parameter.range:
            yield target.with_options([f"{_ASSUMED}={end}"])
