"""What would make a model fit, tried before it is said.

A pass that finds too little of one resource names changes that would be enough of it. Each of them
is tried here: the model is imported and goes through all passes as if it had been asked for, so
that every resource counts, and where hardware is wanted, its limits too. A context that is still
too long gives way to the next one that is named, until one fits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from intaglio.backend.stages import Options
from intaglio.dialects.errors import DoesNotFit, UserError, Way

Attempt = Callable[[Options], None]
"""Compiles as far as it takes to know that a model fits; raises `UserError` where it does not."""
STEPS = 12
"""Contexts that are tried for one way, each shorter than the last."""


def tried(error: DoesNotFit, options: Options, attempt: Attempt) -> DoesNotFit:
    """The same error, with what would help in the form of changes that do.

    Args:
        error: of the compile.
        options: of the compile.
        attempt: tries others.
    """
    search = _Search(options, attempt, error)
    found = [way for one in error.ways if not one.listed for way in search.of(one)]
    listed = [way for one in error.ways if one.listed for way in search.of(one)]
    modules = ",".join(options.adapter_modules)
    hints = [f"{_with_modules(way, modules)} would fit" for way in _useful(found)]
    what = error.what
    if any(one.listed for one in error.ways):
        what += f"\n    what fits: {', '.join(map(_combination, listed)) or _nothing(error.ways)}"
    told = DoesNotFit(what, of=error.of, lead=error.lead, others=[*hints, *error.others], ways=())
    told.file = error.file
    return told


@dataclass
class _Search:
    """Tries ways, each asked for once.

    Attributes:
        options: of the compile that failed.
        attempt: tries others.
        first: how it failed.
    """

    options: Options
    attempt: Attempt
    first: DoesNotFit

    def __post_init__(self) -> None:
        self.known: dict[Options, UserError | None] = {self.options: self.first}

    def failure(self, options: Options) -> UserError | None:
        """Why a compile with these options fails; None: it does not."""
        if options not in self.known:
            try:
                self.attempt(options)
                self.known[options] = None
            except UserError as error:
                self.known[options] = error
        return self.known[options]

    def of(self, way: Way) -> list[Way]:
        """The way if it is one, or with a shorter context; nothing where none helps."""
        for _ in range(STEPS):
            error = self.failure(_asked(self.options, way))
            if error is None:
                return [way]
            shorter = _context(error)
            if shorter is None or way.residents is not None:
                return []
            if way.context is not None and shorter >= way.context:
                return []
            way = replace(way, context=shorter)
        return []


def _asked(options: Options, way: Way) -> Options:
    """The options of a compile with a change."""
    settings = tuple(
        one for one in options.settings if _key(one) not in {_key(new) for new in way.settings}
    )
    return replace(
        options,
        context=options.context if way.context is None else way.context,
        settings=(*settings, *way.settings),
        adapter_rank=options.adapter_rank if way.rank is None else way.rank,
        adapter_modules=() if way.rank == 0 else options.adapter_modules,
        resident_adapters=(1 if way.rank == 0 else options.resident_adapters)
        if way.residents is None
        else way.residents,
    )


def _key(setting: str) -> str:
    return setting.partition("=")[0]


def _context(error: UserError) -> int | None:
    """The context that an error names as the only change."""
    if not isinstance(error, DoesNotFit):
        return None
    return next(
        (
            way.context
            for way in error.ways
            if way.context is not None and way == Way(context=way.context)
        ),
        None,
    )


def _useful(ways: Sequence[Way]) -> list[Way]:
    """Without repetitions, and without a change whose context is no longer than without it."""
    alone = max((w.context or 0 for w in ways if w == Way(context=w.context)), default=0)
    return [
        way
        for way in dict.fromkeys(ways)
        if way.context is None or way == Way(context=way.context) or way.context > alone
    ]


def _with_modules(way: Way, modules: str) -> str:
    """A way in words, with the modules that slots were asked for."""
    if not (modules and way.rank):
        return str(way)
    return str(way).replace(f"--adapter-slots {way.rank}", f"--adapter-slots {way.rank}:{modules}")


def _combination(way: Way) -> str:
    rank = f"rank {way.rank}" if way.rank else "no slots"
    for setting in way.settings:
        tokens = int(setting.partition("=")[2])
        rest = f" and --context {way.context}" if way.context is not None else ""
        return f"{rank} with {tokens:,} tokens on the die{rest}"
    return f"{rank} with {way.context:,} tokens"


def _nothing(ways: Sequence[Way]) -> str:
    on_die = any(way.settings for way in ways if way.listed)
    return f"no rank {'with this context' if on_die else 'with any context'}"
