"""The router of the vector unit: which experts a token takes, and their shares.

It executes `route` as `dialects.semantics.route` says, in the cycles that
`lowering/schedule/durations.py` states. Logits come one a cycle into a row of registers, k of them,
that stay sorted: each compares the logit with its own, and keeps it, takes it, or takes what the
one before it has. Then the numerators of the chosen go through one pipeline, one over their sum
through another, and the shares are written, again one a cycle::

    logit i at the sorter                    2 + i
    (all have a share in the sum: once more  2 + n + i)
    numerator of the j-th chosen begins      T0 + j           T0 = 2 + n, or 2 + 2 n
    their sum is there                       T0 + k + P = T1  P: vector_pipeline - 2
    its share begins                         T1 + R + j       R: vector_reduce + S
    the share is written                     T1 + R + S + j   S: table_lookup

with n logits, k chosen, all counted from `start` (cycle 0). So neither the logits nor the experts
make a difference in time.
"""

from __future__ import annotations

from dataclasses import dataclass

from intaglio.backend.hw.wires.reader import Wires
from intaglio.backend.hw.wires.signal import (
    Design,
    ModuleBuilder,
    Register,
    Signal,
    choose,
    mux,
    pipelined,
)
from intaglio.backend.hw.wires.widths import index_bits, log2
from intaglio.dialects.fixed_point import FIXED_BITS
from intaglio.dialects.formulas import routing
from intaglio.dialects.formulas.reader import ScaleOf
from intaglio.dialects.formulas.routing import SHARE_FRAC
from intaglio.dialects.formulas.softmax import PROBABILITY_FRAC, SCORE_FRAC, reciprocal_scale
from intaglio.dialects.machine import Machine
from intaglio.dialects.memories import EXPERT_BITS, SHARE_BITS

FRACTION = (-SCORE_FRAC, 15)
"""Fraction bits of logits less `SCORE_FRAC`: the least and the most."""


@dataclass(frozen=True)
class RouterShape:
    """Sizes of a router.

    Attributes:
        experts: that there are to choose from, at most.
        chosen: at most.
        rows: of the vector memory.
        routing_rows: of the memory of routings.
    """

    experts: int
    chosen: int
    rows: int
    routing_rows: int


def build_router(design: Design, machine: Machine, shape: RouterShape) -> ModuleBuilder:
    """The module `router`.

    Inputs: `start`, and with it `read` and `write`, first rows of the logits and of the result,
    `experts`, `chosen`, `first_leads` (of equal logits the first is chosen first, else the last),
    `every` (all have a share in the sum) and `fraction` (of the logits, less `SCORE_FRAC`); `data`,
    the row of the vector memory at the address of the cycle before.

    Outputs: `address`; `busy` from the cycle after `start` to that of `done`, which is that of the
    last write; `write_enable`, `write_address`, `write_number`, `write_share`.
    """

    def build(m: ModuleBuilder) -> None:
        _Router(m, machine, shape).build()

    return design.shared("router", build)


class _Router:
    def __init__(self, m: ModuleBuilder, machine: Machine, shape: RouterShape) -> None:
        self.m, self.machine, self.shape = m, machine, shape
        self.lane_bits = log2(machine.vector_lanes)
        self.looking = machine.table_lookup
        self.start = m.input("start", 1)
        widths = {
            "read": index_bits(shape.rows),
            "write": index_bits(shape.routing_rows),
            "experts": shape.experts.bit_length(),
            "chosen": shape.chosen.bit_length(),
            "first_leads": 1,
            "every": 1,
        }
        given = {name: m.input(name, width) for name, width in widths.items()}
        given["fraction"] = m.input("fraction", 7, signed=True)
        self.fields = {
            name: one.delay(enable=self.start, name=f"of_{name}") for name, one in given.items()
        }

    def build(self) -> None:
        self.scan()
        self.sort()
        self.take()
        self.divide()

    def _counted(self, name: str, count: str, begin: Signal) -> tuple[Register, Register, Signal]:
        """What goes on from the cycle after `begin` for as many cycles as a field says: whether it
        does, which of them it is, and the last one."""
        on, number = self.m.register(name, 1), self._number(f"{name}_number", count)
        last = on & (number + 1 == self.fields[count])
        on.drive(mux(begin, 1, mux(last, 0, on)))
        number.drive(mux(on & ~last, number + 1, 0).truncate(number.width))
        return on, number, last

    def _number(self, name: str, count: str) -> Register:
        most = {"experts": self.shape.experts, "chosen": self.shape.chosen}[count]
        return self.m.register(name, index_bits(most))

    def scan(self) -> None:
        """A logit a cycle, once or twice."""
        m, fields = self.m, self.fields
        again = m.register("again", 1)
        more = m.wire("more", 1)
        on, number, last = self._counted("scanning", "experts", self.start | more)
        more.assign(last & ~again & fields["every"])
        again.drive(mux(self.start, 0, mux(more, 1, again)))
        self.address(number)
        self.number = number.delay(name="number")
        self.again = (on & again).delay(reset=0, name="is_again")
        self.sorting = (on & ~again).delay(reset=0, name="sorting")
        self.scanned = (last & ~more).delay(reset=0, name="scanned")
        data = m.input("data", FIXED_BITS * self.machine.vector_lanes)
        lanes = [
            data[FIXED_BITS * i : FIXED_BITS * (i + 1)] for i in range(self.machine.vector_lanes)
        ]
        number = self.number.extend(max(self.number.width, self.lane_bits))
        self.logit = choose(number[: self.lane_bits], lanes).as_signed()

    def address(self, number: Signal) -> None:
        """The row of a logit."""
        row = self.fields["read"] + (number >> self.lane_bits)
        self.m.output("address", row.truncate(self.fields["read"].width))

    def sort(self) -> None:
        """The largest logits so far, the largest first, and whose they are."""
        m, count = self.m, self.shape.chosen
        values = [m.register(f"value{i}", FIXED_BITS, True, None) for i in range(count)]
        numbers = [m.register(f"expert{i}", self.number.width, reset=None) for i in range(count)]
        used = [m.register(f"used{i}", 1) for i in range(count)]
        # Numbers ascend: among equal ones the last comes in front, or behind those before it.
        last = ~self.fields["first_leads"]
        in_front = [
            ~is_used | (self.logit > value) | (last & (self.logit == value))
            for is_used, value in zip(used, values, strict=True)
        ]
        for i in range(count):
            value: Signal = self.logit
            number: Signal = self.number
            if i:
                pushed = in_front[i - 1]
                value = mux(pushed, values[i - 1], value)
                number = mux(pushed, numbers[i - 1], number)
            taken = self.sorting & in_front[i]
            values[i].drive(value, taken)
            numbers[i].drive(number, taken)
            used[i].drive(
                mux(self.start, 0, mux(self.sorting, 1 if not i else used[i - 1], used[i]))
            )
        self.values, self.numbers = values, numbers

    def take(self) -> None:
        """Numerators: of the chosen, and where all have a share in the sum of all."""
        m, machine = self.m, self.machine
        taking, rank, last = self._counted("taking", "chosen", self.scanned)
        logit = mux(taking, choose(rank, self.values), self.logit)
        low, high = FRACTION
        fraction = self.fields["fraction"].assume(low, high)

        def numerator(largest: Signal, logit: Signal, fraction: Signal) -> Signal:
            return routing.numerator(Wires(m), largest, logit, fraction + SCORE_FRAC)

        cycles = machine.vector_pipeline - 2
        (p,) = pipelined(numerator, [self.values[0], logit, fraction], cycles).outputs
        self.p_bits = p.width
        adds = (taking & ~self.fields["every"]) | self.again
        added = adds.delay(cycles, reset=0, name="added")
        most = self.shape.experts << PROBABILITY_FRAC
        self.total = total = m.register("total", most.bit_length())
        following = mux(added, (total + p).truncate(total.width), total)
        total.drive(mux(self.start, 0, following))
        kept, place = taking.delay(cycles, reset=0, name="kept"), rank.delay(cycles, name="place")
        self.kept = [
            p.delay(enable=kept & (place == i), name=f"numerator{i}")
            for i in range(self.shape.chosen)
        ]
        self.taken = last.delay(cycles, reset=0, name="taken")
        self.most = most

    def divide(self) -> None:
        """One over the sum, and the shares."""
        m, machine = self.m, self.machine
        cycles = machine.vector_reduce + self.looking

        def reciprocal(total: Signal) -> list[Signal]:
            return [*reciprocal_scale(Wires(m), total, PROBABILITY_FRAC)]

        total = self.total.assume(0, self.most)
        mantissa, exponent = pipelined(reciprocal, [total], cycles).outputs
        begin = self.taken.delay(cycles, reset=0, name="divided")
        sharing, rank, last = self._counted("sharing", "chosen", begin)

        def share(p: Signal, mantissa: Signal, exponent: Signal) -> Signal:
            # The largest logit's numerator is 24 ones at least: so much has the whole sum.
            places = exponent.assume(SHARE_FRAC - 1, SHARE_FRAC + self.shape.experts.bit_length())
            return routing.share(Wires(m), p, ScaleOf(mantissa, places)).as_unsigned()

        (found,) = pipelined(
            share, [choose(rank, self.kept), mantissa, exponent], self.looking
        ).outputs
        ended = last.delay(self.looking, reset=0, name="ended")
        place = rank.delay(self.looking, name="written_rank")
        busy = m.register("busy_q", 1)
        busy.drive(mux(self.start, 1, mux(ended, 0, busy)))
        m.output("busy", busy)
        m.output("done", ended)
        m.output("write_enable", sharing.delay(self.looking, reset=0, name="writing"))
        row = (self.fields["write"] + place).truncate(self.fields["write"].width)
        m.output("write_address", row)
        m.output("write_number", choose(place, self.numbers), EXPERT_BITS)
        m.output("write_share", found.truncate(SHARE_BITS))
