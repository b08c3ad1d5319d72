"""What `intaglio run` says of a generation: its figures, and the lines of the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from intaglio.runtime.notebook import summary_html
from intaglio.runtime.reports.timing import drafted_cycles, generation_cycles, is_timed_whole
from intaglio.runtime.reports.wording import counted, edited_lines

if TYPE_CHECKING:
    from intaglio.runtime.loaded_model import LoadedModel
    from intaglio.runtime.text.drafts import Draft
    from intaglio.runtime.text.generation import Generation
    from intaglio.runtime.text.sampling import Sampler

_COLUMN = 13
"""Where texts begin in the report."""


class RunResult(dict[str, Any]):
    """The figures of `intaglio run --json` as a dictionary, which prints as the report.

    Args:
        figures: those of the JSON.
        stopped: why the generation ended, in words.
    """

    def __init__(self, figures: Mapping[str, Any], stopped: str) -> None:
        super().__init__(figures)
        self._stopped = stopped

    def __repr__(self) -> str:
        speed = self["tokens_per_second"]
        said = "" if speed is None else f", {speed:,.0f} tokens/s"
        return f"RunResult({self['engine']}, {counted(len(self['tokens']), 'token')}{said})"

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def _repr_html_(self) -> str:
        first, *lines = self.lines()
        return summary_html(first, lines, _COLUMN)

    def lines(self) -> Iterator[str]:
        """The report, without the text that was generated."""
        from intaglio.runtime.judge.saturation import saturation_lines

        here, prompt = self["host_tokens_per_second"], len(self["prompt_ids"])
        yield f"{counted(len(self['tokens']), 'token')} by {self['engine']} ({self['target']})"
        yield f"  stopped    {self._stopped}"
        if "sampling" in self:
            drawn = self["sampling"]
            among = "" if drawn["top_k"] is None else f" among {counted(drawn['top_k'], 'token')}"
            if "top_p" in drawn:
                among += f" with {drawn['top_p']:g} of the probability"
            how = f"at temperature {drawn['temperature']:g}{among}, seed {drawn['seed']}"
            yield f"  drawn      {how}"
        if "draft" in self:
            yield from _draft_lines(self["draft"])
        if self["cycles"] is not None:
            cycles, clock = self["cycles"], self["clock_hz"]
            later = cycles[1:] or cycles
            mean = sum(later) / len(later)
            if "adapter" in self:
                took = self["adapter_load_cycles"]
                yield f"  adapter    {self['adapter']}, loaded in {took:,} cycles"
            prompted = counted(prompt, "prompt token")
            about = "" if self["prefill_exact"] else "about "
            if self["in_flight"] > 1:
                prompted += f", {self['in_flight']} in flight"
            yield f"  prefill    {about}{self['prefill_cycles']:,} cycles for {prompted}"
            yield f"  per token  {mean:,.1f} cycles ({min(later):,} to {max(later):,})"
            yield f"  speed      {clock / mean:,.0f} tokens/s at {clock / 1e6:g} MHz"
            if self["saturations"]:
                yield f"  saturated  {self['saturations']:,} values"
                for line in saturation_lines(self["saturation"]):
                    yield f"             {line}"
        if here is not None:
            yield f"  this host  {here:,.1f} tokens/s"
        yield from edited_lines(self.get("edited", ()))


def run_result(
    chip: LoadedModel,
    engine: str,
    prompt: Sequence[int],
    tokens: Sequence[int],
    seconds: Sequence[float],
    generation: Generation,
    *,
    end_tokens: bool = True,
    sampler: Sampler | None = None,
    draft: Draft | None = None,
    adapter: tuple[str, int] | None = None,
    text: str | None = None,
) -> RunResult:
    """The figures of a generation that has ended.

    Args:
        chip: the compiled model, whose engine has not run anything since.
        engine: one of `ENGINES`.
        prompt: token ids.
        tokens: those that were generated.
        seconds: that each of them took.
        generation: says why it ended.
        end_tokens: whether the model's own end tokens counted.
        sampler: what drew the tokens.
        draft: what guessed them.
        adapter: its name, and the cycles in which it was loaded, where one was.
        text: of the tokens, where they have one.
    """
    figures = _figures(chip, engine, list(prompt), list(tokens), seconds, draft)
    if draft is not None:
        figures["draft"] = draft.figures()
    figures |= {"stopped": generation.stopped, "stopped_by": generation.stopped_by}
    if sampler is not None:
        names = ("temperature", "top_k", "seed")
        figures["sampling"] = {name: getattr(sampler, name) for name in names}
        if sampler.top_p < 1:
            figures["sampling"]["top_p"] = sampler.top_p
    if adapter is not None:
        figures["adapter"], figures["adapter_load_cycles"] = adapter
    if chip.edited:
        figures["edited"] = list(chip.edited)
    if text is not None:
        figures["text"] = text
    return RunResult(figures, _stopped(chip, generation, end_tokens))


def _draft_lines(draft: Mapping[str, Any]) -> Iterator[str]:
    came = f"{draft['accepted']} of {counted(draft['drafted'], 'token')} of {draft['by']} came"
    rounds, seconds = counted(draft["rounds"], "round"), draft["host_seconds"]
    yield f"  drafts     {came}, in {rounds}; {seconds:.3f} s of this host"
    found = ", ".join(f"{n} of {i}" for i, n in enumerate(draft["accepted_counts"]) if n)
    yield f"             rounds by guesses that came: {found}"


def _figures(
    chip: LoadedModel,
    engine: str,
    prompt: list[int],
    tokens: list[int],
    seconds: Sequence[float],
    draft: Draft | None,
) -> dict[str, Any]:
    later = seconds[1:]
    here = len(later) / sum(later) if later else None
    result: dict[str, Any] = {
        "engine": engine,
        "target": chip.program.machine.name,
        "prompt_ids": prompt,
        "tokens": tokens,
        "prefill_cycles": None,
        "cycles": None,
        "tokens_per_second": here,
        "host_tokens_per_second": here,
    }
    if engine != "onnxruntime":
        clock = chip.program.machine.clock_hz
        if draft is None:
            cycles = generation_cycles(chip.program, len(prompt), len(tokens), chip.ranks)
        else:
            rounds = [(one.drafted, one.accepted) for one in draft.rounds]
            cycles = drafted_cycles(chip.program, len(prompt), rounds, chip.ranks)
        in_flight = chip.program.machine.contexts if len(prompt) > 1 else 1
        result |= {
            "prefill_cycles": cycles.prefill,
            "prefill_exact": in_flight == 1 or is_timed_whole(chip.program, len(prompt)),
            "in_flight": in_flight,
            "cycles": list(cycles.tokens),
            "tokens_per_second": cycles.per_second(clock),
            "clock_hz": clock,
            "saturations": chip.machine(engine).saturations,
        }
        if result["saturations"]:
            from intaglio.runtime.judge.saturation import saturation

            result["saturation"] = saturation(chip.simulator, [*prompt, *tokens])
    return result


def _stopped(chip: LoadedModel, generation: Generation, end_tokens: bool) -> str:
    """Why a generation ended; without the model's end tokens it was one of `--stop`."""
    by = generation.stopped_by
    match generation.stopped:
        case "end_token":
            if isinstance(by, str):
                return f"at the text {by!r}"
            named = chip.end_tokens.ids if end_tokens else {}
            who = "--stop" if by is None else named.get(by, "--stop")
            return f"at end token {by}, which {who} names"
        case "context":
            return f"at the end of the context, {chip.program.capacity:,} tokens"
        case _:
            return "when all tokens were there"
