"""What hardware refuses, gathered and said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from intaglio.dialects.errors import UserError, UserErrors
from intaglio.dialects.machine import Machine


def attempted(*calls: Callable[[], object]) -> list[UserError]:
    """What each of the calls refuses."""
    found: list[UserError] = []
    for call in calls:
        try:
            call()
        except UserErrors as errors:
            found += errors.errors
        except UserError as error:
            found.append(error)
    return found


def refuse(refusals: Iterable[UserError]) -> None:
    """Says all refusals at once, each once.

    Raises:
        UserError: there is one at least.
    """
    distinct: Sequence[UserError] = list({str(one): one for one in refusals}.values())
    if len(distinct) == 1:
        raise distinct[0]
    if distinct:
        raise UserErrors(distinct)


def no_powers(parameters: Mapping[str, int]) -> list[UserError]:
    """Parameters, by name, that are no powers of two, which hardware needs of them."""
    return [
        UserError(f"{name} is {value}; the hardware needs a power of two")
        for name, value in parameters.items()
        if value < 1 or value & (value - 1)
    ]


def short_latencies(machine: Machine, unit: str, least: Mapping[str, int]) -> list[UserError]:
    """Latencies of a machine, by name, that are shorter than a unit's least."""
    return [
        UserError(
            f"latency.{name} is {getattr(machine, name)}, the {unit} needs at least {cycles}",
            hint=f"--set latency.{name}={cycles}",
        )
        for name, cycles in least.items()
        if getattr(machine, name) < cycles
    ]


def result_refusals(machine: Machine) -> list[UserError]:
    """Why results cannot leave the units as a machine says: a word in the vector memory each."""
    found = no_powers(
        {
            "vector.lanes of all vector units": machine.vector_lanes,
            "network.results_per_cycle": machine.results_per_cycle,
        }
    )
    if machine.results_per_cycle > machine.vector_lanes:
        found.append(
            UserError(
                f"network.results_per_cycle is {machine.results_per_cycle}; the hardware takes at "
                f"most one for each of the {machine.vector_lanes} vector lanes"
            )
        )
    return found
