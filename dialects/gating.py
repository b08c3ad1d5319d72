"""Whether every product finds its ROM awake: the rule that a program with power domains follows.

At reset and before each token all domains are off, and a bank that is off gives zeros. So a product
must start after the `wake` of its domain has finished, and finish before the next `sleep` of it
starts. Of a domain of which only the chosen experts' banks are woken (`wake_chosen`), a product
must be one of these experts: it reads the numbers that the switch read, from the same `route`. Then
the banks at its address are on, whichever expert it is. This must follow from the program's order,
not from its timing: durations change with the position and with the ranks of adapters
(`dialects/clocks.py`).

A domain that only products of sampled blocks need is woken only in a token whose successor is
wanted: in another one its `wake` takes its time and does nothing. So a block that every token runs
can wake the head's domain ahead of time.

The simulator does not model banks that are off. It need not: a program in which one could be read
is refused before anything runs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from enum import Enum, auto

from intaglio.dialects import timeline
from intaglio.dialects.clocks import Clock, clocks
from intaglio.dialects.isa.instruction import Instruction
from intaglio.dialects.isa.matrix import ExpertMatvec, Matvec
from intaglio.dialects.isa.power import Switch, Wake, WakeChosen
from intaglio.dialects.isa.queues import MATRIX, POWER, QUEUES
from intaglio.dialects.isa.vector import Route
from intaglio.dialects.timeline import At

NO_DOMAIN = "none"
"""The name of the domain without tensors, for an instance with nothing to switch."""


class Kind(Enum):
    """What can be done with a power domain: switch it on or off, multiply with what is in it."""

    ON = auto()
    OFF = auto()
    PRODUCT = auto()


@dataclass(frozen=True)
class Role:
    """What an instruction instance does with a power domain.

    Switches stand in the queue `power`, products in `matrix`.

    Attributes:
        kind: what.
        domain: of which domain.
        choice: the instruction instance that chose the experts whose banks are meant; None: all
            banks.
    """

    kind: Kind
    domain: str
    choice: At | None = None


@dataclass(frozen=True)
class Unpowered:
    """A product that may read ROM that is off, and why."""

    at: At
    domain: str
    reason: str


def first_unpowered(blocks: Sequence[timeline.Block], roles: Mapping[At, Role]) -> Unpowered | None:
    """The first product, in program order, of which it is not certain that its ROM is on.

    Args:
        blocks: the program; blocks that are left out for some tokens stand at its end.
        roles: of the instruction instances that have one; a product without one reads ROM that is
            always on.
    """
    switches: dict[str, list[tuple[int, Role, Clock]]] = {}
    products: list[tuple[At, Role, Clock]] = []
    power, matrix = QUEUES.index(POWER), QUEUES.index(MATRIX)
    for at, clock in clocks(blocks):
        role = roles.get(at)
        if role is None or role.domain == NO_DOMAIN:
            continue
        if role.kind is Kind.PRODUCT:
            products.append((at, role, clock))
        else:
            # Queues are in order: the clock counts all of the queue that were issued before.
            switch = clock[power], role, clock
            switches.setdefault(role.domain, []).append(switch)
    for at, role, clock in products:
        domain = role.domain
        before = [one for index, one, _ in switches.get(domain, []) if index < clock[power]]
        if not before:
            return Unpowered(at, domain, "it does not wait for a wake of it")
        if before[-1].kind is Kind.OFF:
            return Unpowered(at, domain, "it is put to sleep before")
        if before[-1].choice not in (None, role.choice):
            return Unpowered(at, domain, "the wake before it is of other experts")
        # A wake of other experts switches off what it does not name.
        asleep = next(
            (
                c
                for index, one, c in switches[domain]
                if index >= clock[power] and (one.kind is Kind.OFF or one.choice is not None)
            ),
            None,
        )
        if asleep is not None and asleep[matrix] <= clock[matrix]:
            return Unpowered(at, domain, "the sleep after it does not wait for it")
    return None


def roles_of(
    blocks: Sequence[Sequence[Instruction[str]]],
    instances: Sequence[Sequence[Mapping[str, str]]],
    domains: Mapping[str, str],
) -> dict[At, Role]:
    """The roles of a program's instruction instances.

    Args:
        blocks: for each block its instructions.
        instances: for each block what its instances bind slots to.
        domains: the power domain of each tensor that has one.
    """
    roles: dict[At, Role] = {}
    chose: dict[str, At] = {}
    for block, (instructions, bound) in enumerate(zip(blocks, instances, strict=True)):
        # What has a say, so that full-size programs are not walked for each of their instances.
        told = [
            (number, one)
            for number, one in enumerate(instructions)
            if isinstance(one, Switch | Matvec | ExpertMatvec | Route)
        ]
        for instance, slots in enumerate(bound):
            for number, one in told:
                at = block, instance, number
                match one:
                    case Route():
                        chose[one.output] = at
                    case WakeChosen():
                        domain = slots.get(one.domain, one.domain)
                        roles[at] = Role(Kind.ON, domain, chose.get(one.routing, at))
                    case Switch():
                        kind = Kind.ON if isinstance(one, Wake) else Kind.OFF
                        roles[at] = Role(kind, slots.get(one.domain, one.domain))
                    case Matvec() | ExpertMatvec():
                        tensor = slots.get(one.weights, one.weights)
                        if tensor in domains:
                            own = isinstance(one, ExpertMatvec)
                            choice = chose.get(one.routing) if own else None
                            roles[at] = Role(Kind.PRODUCT, domains[tensor], choice)
    return roles


def wanted_only(roles: Mapping[At, Role], sampled: Sequence[bool]) -> Set[str]:
    """The domains that only tokens need whose successor is wanted.

    Args:
        roles: of the program's instruction instances.
        sampled: of each block, whether it runs only for such tokens.
    """
    products = [(at[0], role.domain) for at, role in roles.items() if role.kind is Kind.PRODUCT]
    always = {domain for block, domain in products if not sampled[block]}
    return {domain for _, domain in products} - always
