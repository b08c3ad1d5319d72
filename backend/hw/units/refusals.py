"""What hardware refuses, gathered and said at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from intaglio.dialects.errors import UserError, UserErrors


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
