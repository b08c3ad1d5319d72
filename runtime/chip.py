"""A compiled model as an object: generate, compare, look at cycles. What scripts use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from intaglio.backend.output.output import MAPPING, tidy_output
from intaglio.dialects.errors import UserError, meant
from intaglio.dialects.json_file import JSONFile
from intaglio.runtime.loaded_model import LoadedModel
from intaglio.runtime.text.decoding import Generated, decode

if TYPE_CHECKING:
    from intaglio.backend.compile import Progress
    from intaglio.runtime.judge.result import CheckResult
    from intaglio.runtime.reports.run import RunResult
    from intaglio.runtime.reports.timing import GenerationCycles
    from intaglio.runtime.text.drafts import Draft
    from intaglio.runtime.text.generation import Generation
    from intaglio.runtime.text.sampling import Sampler


@dataclass(frozen=True)
class _Begun:
    """A generation, the adapter that was loaded for it, with the cycles that took, and drafts."""

    generation: Generation
    adapter: tuple[str, int] | None
    draft: Draft | None


class Chip(LoadedModel):
    """A compiled model in its output folder.

    Attributes:
        folder: the output folder.
        warnings: what the compiler noticed, when this object compiled the model.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        warnings: Sequence[str] = (),
        keep: TemporaryDirectory[str] | None = None,
        trust_edited: bool = False,
        verify: bool = False,
    ) -> None:
        super().__init__(folder, trust_edited=trust_edited, verify=verify)
        self.warnings = tuple(warnings)
        self._keep = keep

    def __repr__(self) -> str:
        return f"Chip({str(self.folder)!r})"

    def _repr_html_(self) -> str:
        from intaglio.runtime.notebook import summary_html
        from intaglio.runtime.reports.tables import summary_lines

        if not (self.folder / "program.json").is_file():
            return summary_html(repr(self), (), 0)
        title = f"{self.model.name} for {self.program.machine.name}: {self.folder}"
        return summary_html(title, summary_lines(self.inspect()), 8)

    @property
    def mapping(self) -> dict[str, Any]:
        """Where every matrix lies: the content of mapping.json."""
        content = JSONFile.read(self.folder / MAPPING, "compile the model again")
        self.files.verify([MAPPING])
        return {name: one.value for name, one in content.items()}

    def stream(
        self,
        prompt: Sequence[int],
        tokens: int,
        engine: str = "simulator",
        sampler: Sampler | None = None,
    ) -> Iterator[Generated]:
        """Decoding, token by token, past any end token.

        Args:
            prompt: token ids.
            tokens: how many to generate.
            engine: one of `ENGINES`; `onnxruntime` runs the ONNX file as it comes.
            sampler: chooses tokens on the host; without it each is the first maximum of its
                logits, as the chip's head takes it.

        Raises:
            UserError: the prompt is empty, too long, or holds an unknown token id.
        """
        return decode(self, prompt, tokens, engine, sampler)

    def saturations(self, engine: str = "simulator") -> int:
        """Values that did not fit since an engine was last reset."""
        return self.machine(engine).saturations

    def generate(
        self,
        prompt: Sequence[int] | str,
        tokens: int | None = 32,
        engine: str = "simulator",
        *,
        stop: str | int | Sequence[str | int] = (),
        end_tokens: bool = True,
        temperature: float = 0,
        top_k: int | None = None,
        top_p: float = 1,
        seed: int = 0,
        adapter: str | None = None,
        draft: str | None = None,
    ) -> list[int]:
        """Token ids generated after a prompt (ids, or a text); an end token is the last of them.

        Args:
            prompt: token ids or a text.
            tokens: how many at most; None: 128 (8 on hardware), or what fits the context.
            engine: one of `ENGINES`.
            stop: tokens or texts that end the generation, besides the model's end tokens.
            end_tokens: whether the model's end tokens, which files beside it name, end it.
            temperature: 0 takes the likeliest token each time; else the host draws one, see
                `runtime/text/sampling.py`.
            top_k: draw from this many of the likeliest tokens; None: from all.
            top_p: draw from the likeliest that together have this much of the probability.
            seed: of the draws.
            adapter: of the output folder, active for these tokens only; None: the one that is.
            draft: `ngram:N` or an ONNX file whose guesses the chip verifies; the tokens are the
                same without.

        Raises:
            UserError: the prompt, a stop, a number or the adapter cannot be used.
        """
        from intaglio.runtime.text.sampling import Sampler

        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        drawn = Sampler(temperature, top_k, seed, top_p=top_p)
        with self._begun(ids, tokens, engine, stop, end_tokens, drawn, adapter, draft) as begun:
            return [generated.token for generated, _ in begun.generation]

    def run(
        self,
        prompt: Sequence[int] | str,
        tokens: int | None = 32,
        engine: str = "simulator",
        *,
        stop: str | int | Sequence[str | int] = (),
        end_tokens: bool = True,
        temperature: float = 0,
        top_k: int | None = None,
        top_p: float = 1,
        seed: int = 0,
        adapter: str | None = None,
        draft: str | None = None,
    ) -> RunResult:
        """What `intaglio run` reports of a generation; the arguments are those of `generate`.

        Returns:
            The figures of `intaglio run --json`: tokens, cycles of each, speed, saturations, why
            it ended, the text where tokens have one. It prints as the report.

        Raises:
            UserError: the prompt, a stop, a number or the adapter cannot be used.
        """
        from intaglio.runtime.reports.run import run_result
        from intaglio.runtime.text.sampling import Sampler

        as_text = isinstance(prompt, str) or self.tokenizer is not None
        ids = self.encode(prompt) if isinstance(prompt, str) else prompt
        drawn = Sampler(temperature, top_k, seed, top_p=top_p)
        begin = self._begun(
            ids, tokens, engine, stop, end_tokens, drawn, adapter, draft, as_text=as_text
        )
        with begin as begun:
            parts: list[str] = []
            found: list[int] = []
            seconds: list[float] = []
            for generated, part in begun.generation:
                found.append(generated.token)
                seconds.append(generated.seconds)
                parts.append(part)
            parts.append(begun.generation.end())
            return run_result(
                self,
                engine,
                ids,
                found,
                seconds,
                begun.generation,
                end_tokens=end_tokens,
                sampler=drawn if temperature else None,
                draft=begun.draft,
                adapter=begun.adapter,
                text="".join(parts) if as_text else None,
            )

    @contextmanager
    def _begun(
        self,
        prompt: Sequence[int],
        tokens: int | None,
        engine: str,
        stop: str | int | Sequence[str | int],
        end_tokens: bool,
        sampler: Sampler,
        adapter: str | None,
        draft: str | None,
        *,
        as_text: bool = False,
    ) -> Iterator[_Begun]:
        """A generation that can be iterated over; its adapter is active until the end."""
        from intaglio.runtime.text.drafts import draft_of
        from intaglio.runtime.text.generation import Generation, stops_of

        guesses = None if draft is None else draft_of(draft, self)
        given = [stop] if isinstance(stop, str | int) else stop
        active = self.adapter
        loaded = None if adapter is None else (adapter, self.use_adapter(adapter))
        try:
            generation = Generation(
                self,
                prompt,
                tokens,
                engine,
                stops=stops_of(self, given, end_tokens=end_tokens),
                sampler=sampler if sampler.temperature else None,
                as_text=as_text,
                draft=guesses,
            )
            yield _Begun(generation, loaded, guesses)
        finally:
            if adapter is not None:
                self.load_adapter(active)

    def cycles(self, position: int) -> int:
        """Cycles from the acceptance of the token at a position to the next token out."""
        from intaglio.runtime.reports.timing import token_cycles

        if not 0 <= position < self.program.capacity:
            raise UserError(
                f"position {position} is out of range",
                hint=f"the KV caches hold {self.program.capacity} tokens",
            )
        return int(token_cycles(self.program, [position], ranks=self.ranks).out[0])

    def generation_cycles(self, prompt: int, tokens: int) -> GenerationCycles:
        """Cycles of a prompt of so many tokens and the tokens generated after it."""
        from intaglio.runtime.reports.timing import generation_cycles

        return generation_cycles(self.program, prompt, tokens, self.ranks)

    def check(
        self,
        *,
        prompt_ids: Sequence[int] | None = None,
        tokens: int | None = None,
        text: str | Path | None = None,
        windows: int | None = None,
        per_op: bool = False,
        engine: str = "simulator",
        adapter: str | None = None,
        stress: bool = False,
        progress: Progress = lambda message: None,
    ) -> CheckResult:
        """Compares with onnxruntime running the same ONNX file.

        Args:
            prompt_ids: compare this prompt and the reference's greedy continuation; without it and
                `text`, random tokens from a fixed seed.
            tokens: how many tokens to compare; 256 by default, with `text` the whole file.
            text: a file to compare on, in windows; adds perplexities.
            windows: how many windows of `text` to compare; by default all.
            per_op: compare every operator's output as well.
            engine: `rtl` and `verilator` compare the hardware with the simulator as well.
            adapter: the adapter of the output folder to compare with; else the active one, if any.
            stress: compare the hardware (engine `rtl`) on extreme contents too.
            progress: called with a line for each step of long work.

        Returns:
            The content of `intaglio check --json`, which `runtime/judge/check.py` describes;
            printed, it is the report.

        Raises:
            UserError: the input cannot be used, or onnxruntime cannot run the model.
        """
        from intaglio.runtime.judge.check import check
        from intaglio.runtime.judge.result import CheckResult

        return CheckResult(
            check(
                self,
                prompt_ids=prompt_ids,
                tokens=tokens,
                text=text,
                windows=windows,
                per_op=per_op,
                engine=engine,
                adapter=adapter,
                stress=stress,
                progress=progress,
            )
        )

    def inspect(self) -> dict[str, Any]:
        """Sizes, cycles and bottlenecks; see `runtime/reports/inspect.py`."""
        from intaglio.runtime.reports.inspect import inspect_json

        return inspect_json(self.folder)


def compile(  # noqa: A001
    model: str | Path,
    target: str = "roma",
    out: str | Path | None = None,
    *,
    context: int | None = None,
    settings: str | Sequence[str] | Mapping[str, Any] = (),
    weights: str | None = None,
    adapter_slots: str | None = None,
    resident_adapters: int = 1,
    mapping: str | Path | None = None,
    emit: str | None = "program",
    allow_links: bool = False,
    reference: bool = True,
    progress: Progress | None = None,
) -> Chip:
    """Compiles an ONNX language model for a target.

    Args:
        model: path to the .onnx file.
        target: name of a target, or path to its TOML file.
        out: the output folder; by default a temporary one that lives as long as the result.
        context: capacity of the KV cache in tokens.
        settings: changes to the target, as `{"activations": "int16"}`, `["activations=int16"]`, or
            one as a text.
        weights: how float weights are quantised, such as `int4:128`.
        adapter_slots: `RANK` or `RANK:module,module`: slots for adapters of at most this rank.
        resident_adapters: how many adapters the slots hold at once, of which one is active.
        mapping: a mapping file to follow.
        emit: the last stage, one of rom, integer, fabric, program, hw, sv. A chip's engines need
            the program, and nothing after it; None is as the target says.
        allow_links: whether external data may be links inside a model hub's cache.
        reference: whether the model is copied into the folder; else onnxruntime cannot judge.
        progress: called with a line for each step of long work.

    Raises:
        UserError: the model cannot be compiled for the target; says why and what would help.
    """
    from intaglio.backend.compile import compile_model
    from intaglio.backend.stages import STAGES, Options
    from intaglio.runtime.expected_tokens import expected_tokens

    if emit is not None and emit not in STAGES:
        raise UserError(
            f"no stage is called '{emit}'", hint=f"{meant(emit, STAGES)}stages: {', '.join(STAGES)}"
        )
    if isinstance(settings, Mapping):
        settings = [f"{key}={value}" for key, value in settings.items()]
    elif isinstance(settings, str):
        settings = [settings]
    rank, modules = parse_slots(adapter_slots)
    check_residents(resident_adapters, rank)
    keep = TemporaryDirectory(prefix="intaglio-") if out is None else None
    folder = Path(keep.name) / "out" if keep is not None else Path(out or "")
    compiled = compile_model(
        model,
        folder,
        Options(
            target=target,
            settings=tuple(settings),
            context=context,
            weights=weights,
            adapter_rank=rank,
            adapter_modules=modules,
            resident_adapters=resident_adapters,
            mapping=None if mapping is None else str(mapping),
            emit=emit,
            allow_links=allow_links,
            reference=reference,
        ),
        progress or (lambda message: None),
        expected_tokens,
    )
    return Chip(compiled.folder, warnings=compiled.warnings, keep=keep)


def load(out: str | Path, *, trust_edited: bool = False, verify: bool = False) -> Chip:
    """Opens the output folder of an earlier compile.

    Args:
        out: the output folder.
        trust_edited: go on with files that are not what the compile wrote; `edited` names them.
        verify: hash all files now, whatever is known of them.

    Raises:
        UserError: the folder holds no compiled program, or one that was edited.
    """
    warnings = tidy_output(Path(out))
    chip = Chip(out, warnings=warnings, trust_edited=trust_edited, verify=verify)
    _ = chip.program
    if verify:
        chip.verify()
    return chip


def parse_slots(text: str | None) -> tuple[int, tuple[str, ...]]:
    """`RANK[:module,module]` as rank and names of modules; nothing is rank 0.

    Raises:
        UserError: the rank is no positive number, or no module follows the colon.
    """
    if text is None:
        return 0, ()
    rank, colon, modules = text.partition(":")
    names = tuple(name.strip() for name in modules.split(",") if name.strip())
    if not rank.isdecimal() or int(rank) < 1 or (colon and not names):
        raise UserError(
            f"adapter slots '{text}' are not of the form RANK[:module,module]",
            hint="for example 16, or 16:q_proj,v_proj",
        )
    return int(rank), names


def check_residents(residents: int, rank: int) -> None:
    """Whether so many adapters can be resident in slots of a rank.

    Raises:
        UserError: it is no positive number, or there are no slots.
    """
    if residents < 1:
        raise UserError(f"--resident-adapters {residents}: slots hold at least one adapter")
    if residents > 1 and not rank:
        raise UserError(
            f"--resident-adapters {residents}: there are no slots for them",
            hint="with --adapter-slots RANK[:modules]",
        )
