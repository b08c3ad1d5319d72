"""Comparison with onnxruntime: logits, tokens, perplexity, and operator by operator.

Tokens are teacher-forced in windows: simulator and both references of `runtime/judge/reference.py`
see the same tokens, and the logits of every position are compared. Activations and KV of 16 bits
are judged against the reference with float activations, smaller ones against the nearer of the two.

What a comparison can tell is asked of each token by itself: a token of which two executions of
onnxruntime differ much says nothing of the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.dialects.errors import UserError
from intaglio.runtime.engines.names import CHECKED_ENGINES, HARDWARE_ENGINES, check_known
from intaglio.runtime.engines.simulator import Simulator
from intaglio.runtime.judge.defaults import (
    DEFAULT_TOKENS,
    GREEDY_TOKENS,
    HARDWARE_TOKENS,
    OPERATOR_TOKENS,
    PROMPT_TOKENS,
    SEED,
    WINDOW,
)
from intaglio.runtime.judge.operators import OPERATOR_KEYS, check_operators
from intaglio.runtime.judge.reference import (
    AS_IT_COMES,
    FLOAT_ACTIVATIONS,
    CannotJudge,
    Reference,
    own_rounding,
)
from intaglio.runtime.judge.routing import check_routing, routes
from intaglio.runtime.judge.saturation import saturation
from intaglio.runtime.loaded_model import LoadedModel
from intaglio.runtime.remaining import LONG, Remaining, duration

_ROWS = 16
"""Positions whose logits are compared at once, so that large vocabularies take little memory."""

Progress = Callable[[str], None]
Array = npt.NDArray[np.float64]

JUDGED = (
    "tokens_compared",
    "windows",
    "judged_graph",
    "judged_weights",
    "judge",
    "judge_changes",
    "top1_agreement",
    "top1_agreement_counted",
    "top1_misses",
    "top1_misses_counted",
    "max_abs_logit_error",
    "logit_range",
    "max_error_of_range",
    "mean_kl",
    "references_apart",
    "rounding_apart",
    "against",
    "greedy_tokens",
    "first_divergence",
    "first_divergence_allowed_gap",
    "expert_choices",
)
"""What onnxruntime is needed for."""
JUDGED_TEXT = (
    "reference_perplexity",
    "float_reference_perplexity",
    "perplexity_judge",
    "perplexity_change",
    "perplexity_changes",
)
"""What it is needed for on a text."""


@dataclass
class Against:
    """Running comparison with one reference."""

    tokens: int = 0
    misses: int = 0
    counted: int = 0
    """Misses where the reference's own two logits are further apart than can be told."""
    error: float = 0.0
    divergence: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    scored: int = 0
    log_loss: float = 0.0

    def add(
        self,
        ours: Array,
        theirs: Array,
        following: npt.NDArray[np.int64],
        undecided: Array | float = 0.0,
    ) -> None:
        """Compares logits [S, V].

        Args:
            ours: the chip's.
            theirs: the reference's.
            following: the next tokens, one fewer at a window's end.
            undecided: [S], for each token the largest gap of two logits that says nothing.
        """
        rows = np.arange(len(ours))
        mine, wanted = ours.argmax(-1), theirs.argmax(-1)
        missed = mine != wanted
        self.tokens += len(ours)
        gaps = theirs[rows, wanted] - theirs[rows, mine]
        self.misses += int(missed.sum())
        self.counted += int((missed & (gaps > undecided)).sum())
        self.error = max(self.error, float(np.abs(ours - theirs).max(initial=0.0)))
        self.lowest = min(self.lowest, float(theirs.min(initial=math.inf)))
        self.highest = max(self.highest, float(theirs.max(initial=-math.inf)))
        logs = _log_softmax(theirs)
        self.divergence += float((np.exp(logs) * (logs - _log_softmax(ours))).sum())
        self.scored += len(following)
        self.log_loss -= float(logs[rows[: len(following)], following].sum())

    @property
    def range(self) -> float:
        return self.highest - self.lowest

    @property
    def perplexity(self) -> float:
        """Of the tokens that have a predecessor in their window, by the reference."""
        return math.exp(self.log_loss / self.scored)

    def summary(self) -> dict[str, Any]:
        """Figures of this reference."""
        return {
            "top1_agreement": 1 - self.misses / self.tokens,
            "top1_agreement_counted": 1 - self.counted / self.tokens,
            "top1_misses": self.misses,
            "top1_misses_counted": self.counted,
            "max_abs_logit_error": self.error,
            "logit_range": self.range,
            "max_error_of_range": self.error / self.range if self.range else 0.0,
            "mean_kl": self.divergence / self.tokens,
        }


def _distances(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> Array:
    """The largest distance of two executions' logits [S, V] at each token, [S]."""
    found = [
        np.abs(one.astype(np.float64) - other).max(axis=-1)
        for one, other in zip(_parts(first), _parts(second), strict=True)
    ]
    return np.concatenate(found)


def _parts(logits: npt.NDArray[np.float32]) -> Iterator[npt.NDArray[np.float32]]:
    """Some positions at a time, so that large vocabularies take little memory."""
    for first in range(0, len(logits), _ROWS):
        yield logits[first : first + _ROWS]


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def check(
    chip: LoadedModel,
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
    announce: Progress = lambda message: None,
) -> dict[str, Any]:
    """Compares a compiled model with onnxruntime running the same ONNX file.

    Args:
        chip: the compiled model.
        prompt_ids: compare this prompt and the reference's greedy continuation; without it and
            `text`, random tokens from a fixed seed.
        tokens: how many tokens to compare; 256 by default, with `text` the whole file.
        text: a file to compare on, in windows; adds perplexities.
        windows: how many windows of `text` to compare; by default all.
        per_op: compare every operator's output as well.
        engine: `rtl` and `verilator` compare the hardware with the simulator as well, over the
            first tokens (see `check_hardware`); onnxruntime judges the simulator. Where it cannot
            run the model, the hardware is compared all the same.
        adapter: the adapter of the output folder to compare with; without it the one that is
            active, if any. onnxruntime runs the base graph with the float adapter beside it.
        stress: compare the hardware (engine `rtl`) with the simulator on extreme contents too; see
            `runtime/judge/stress.py`. What it finds is a difference of the hardware like any other.
        progress: called with a line for each step of long work.
        announce: called once, with how long a text takes, where all of it takes long.

    Returns:
        The content of `intaglio check --json`. `judge` is the reference that counts, and
        `top1_agreement`, `top1_agreement_counted`, `max_abs_logit_error`, `logit_range`,
        `max_error_of_range` and `mean_kl` (nats) are against it; `against` has them for both.
        `top1_agreement_counted` takes a miss for one only where the reference's own two logits are
        more than twice as far apart as any logit of the two references at this token. For a graph
        that rounds activations itself the same holds of onnxruntime and itself when it does not,
        or (DynamicQuantizeLinear) when it does so token by token. `references_apart` and
        `rounding_apart` are the largest of these distances; the latter is None for other graphs.
        `top1_misses` is how many tokens differ, `top1_misses_counted` how many of them count.
        `expert_choices` is what `check_routing` says of a mixture of experts; None for other
        models.
        `first_divergence` is the first of `greedy_tokens` that differs (its index, both tokens, and
        how far apart their logits are here and there), or None. `saturations` counts values that
        did not fit; where there are any, `saturation` says where and what helps (see
        `runtime/judge/saturation.py`), else it is None. A text adds `perplexity`,
        `reference_perplexity` (as it comes), `float_reference_perplexity` and `perplexity_change`
        against `perplexity_judge`, which is `judge`; `perplexity_changes` has both.
        With an adapter there are `adapter`, `adapter_loss` (the worst site's conversion) and, on
        a text, `base_perplexity`, the chip's own without the adapter.
        `per_op` adds `operators` and more, see `check_operators`.
        `judged_graph` is the file of the output folder that onnxruntime runs; `judged_weights` what
        its weights were rounded to on request (`--weights`), so that it is not the file that was
        compiled; else None.
        `judge_changes` says what the copy that onnxruntime runs does not have, and why.
        Where onnxruntime cannot run the model, `judge_error` says why, and what it is needed for
        (`JUDGED`, `JUDGED_TEXT`, `OPERATOR_KEYS`) is None; else `judge_error` is None.

    Raises:
        UserError: the input cannot be used, or onnxruntime cannot run the model (`CannotJudge`)
            and the engine is no hardware; or an image is not what the compile wrote.
    """
    check_known(engine, CHECKED_ENGINES)
    if tokens is not None and tokens < 1:
        raise UserError(f"cannot compare {tokens} tokens")
    if windows is not None and windows < 1:
        raise UserError(f"cannot compare {windows} windows")
    if stress:
        from intaglio.runtime.judge.stress import check_engine

        check_engine(engine)
    progress("verifying the images")
    chip.verify_images()
    active = chip.adapter
    if adapter is not None:
        chip.use_adapter(adapter)
    try:
        return _check(
            chip,
            prompt_ids=prompt_ids,
            tokens=tokens,
            text=text,
            windows=windows,
            per_op=per_op,
            engine=engine,
            stress=stress,
            progress=progress,
            announce=announce,
        )
    finally:
        if adapter is not None:
            chip.load_adapter(active)


@dataclass(frozen=True)
class _Task:
    """What is compared.

    Attributes:
        ids: tokens; of a prompt, those that are given.
        prompt_ids: the prompt, if there is one.
        tokens: how many to compare, if that was said.
        window: tokens of a window.
        is_text: whether perplexities are wanted.
    """

    ids: list[int]
    prompt_ids: Sequence[int] | None
    tokens: int | None
    window: int
    is_text: bool


def _check(
    chip: LoadedModel,
    *,
    prompt_ids: Sequence[int] | None,
    tokens: int | None,
    text: str | Path | None,
    windows: int | None,
    per_op: bool,
    engine: str,
    stress: bool,
    progress: Progress,
    announce: Progress,
) -> dict[str, Any]:
    window = chip.program.capacity if prompt_ids is not None else WINDOW
    window = min(window, chip.program.capacity)
    if text is not None:
        ids = text_ids(chip, Path(text))[:tokens]
        ids = ids if windows is None else ids[: windows * window]
        if min(len(ids), window) < 2:
            raise UserError("a perplexity needs two tokens at least", file=str(text))
    elif prompt_ids is not None:
        chip.check_prompt(prompt_ids, 1)
        ids = list(prompt_ids)
    else:
        random = np.random.Generator(np.random.PCG64(SEED))
        ids = random.integers(0, chip.program.vocabulary, tokens or DEFAULT_TOKENS).tolist()

    task = _Task(ids, prompt_ids, tokens, window, text is not None)
    result: dict[str, Any] = {"engine": engine}
    try:
        shortens = text is not None and windows is None
        ids, found = _judged(chip, task, progress, announce if shortens else progress)
    except CannotJudge as error:
        if engine not in HARDWARE_ENGINES:
            raise
        ids, found = _unjudged(chip, task, error, progress)
    result |= found
    if (image := chip.adapter) is not None:
        result |= {"adapter": image.name, "adapter_loss": image.worst_loss}
        if text is not None:
            progress("the base without the adapter")
            result["base_perplexity"] = _base_perplexity(chip, ids, window)
    if engine in HARDWARE_ENGINES:
        from intaglio.runtime.judge.hardware import check_hardware

        count = min(tokens or HARDWARE_TOKENS, window)
        result |= check_hardware(chip, engine, ids[:count], progress, stress=stress)
    if per_op:
        progress("comparing operators")
        result |= (
            dict.fromkeys(OPERATOR_KEYS)
            if result["judge"] is None
            else check_operators(chip, ids[: min(OPERATOR_TOKENS, window)])
        )
    return result


def _judged(
    chip: LoadedModel, task: _Task, progress: Progress, announce: Progress
) -> tuple[list[int], dict[str, Any]]:
    """The tokens that were compared (a prompt with its continuation), and what was found.

    Raises:
        CannotJudge: onnxruntime cannot run the model.
    """
    program, simulator, ids = chip.program, chip.simulator, task.ids
    references = {
        AS_IT_COMES: chip.reference(),
        FLOAT_ACTIVATIONS: chip.reference(float_activations=True),
    }
    if task.prompt_ids is not None:
        wanted = min(task.tokens or DEFAULT_TOKENS, program.capacity)
        progress("onnxruntime continues the prompt")
        more = references[FLOAT_ACTIVATIONS].generate(ids, max(0, wanted - len(ids)))
        ids = [*ids, *(token for token, _ in more)]
    parts = list(windows_of(ids, task.window))

    other = _otherwise_rounded(chip, own_rounding(chip.model))
    against = {name: Against() for name in references}
    apart = rounding_apart = 0.0
    ours = Against()
    saturations = 0
    first: tuple[Sequence[int], dict[str, npt.NDArray[np.float32]]] | None = None
    remaining, announced = Remaining(len(parts)), False
    for number, part in enumerate(parts):
        left = remaining.begin()
        if left is not None and left >= LONG and not announced:
            announced = True
            announce(
                f"{len(parts):,} windows of the text take about {duration(left)} more; "
                "--windows N compares the first N"
            )
        about = "" if left is None else f", about {duration(left)} left"
        progress(f"window {number + 1} of {len(parts)}{about}")
        simulator.reset()
        exact = simulator.forward(part, 0)
        assert exact is not None
        saturated = simulator.saturations
        saturations += saturated
        judged: dict[str, npt.NDArray[np.float32]] = {}
        for name, reference in references.items():
            reference.reset()
            judged[name] = reference.feed(part)
            if judged[name].shape != exact.shape:
                raise UserError(
                    f"onnxruntime gives logits of shape {list(judged[name].shape)}, "
                    f"the chip {list(exact.shape)}",
                    file=str(chip.model),
                )
        if saturated and first is None:
            first = part, judged
        distance = _distances(judged[AS_IT_COMES], judged[FLOAT_ACTIVATIONS])
        apart = max(apart, float(distance.max(initial=0.0)))
        if other is not None:
            other.reset()
            by_rounding = _distances(judged[AS_IT_COMES], other.feed(part))
            rounding_apart = max(rounding_apart, float(by_rounding.max(initial=0.0)))
            distance = np.maximum(distance, by_rounding)
        for rows, mine, following in rows_of(simulator, part, exact):
            for name, logits in judged.items():
                theirs = logits[rows].astype(np.float64)
                against[name].add(mine, theirs, following, 2 * distance[rows])
            ours.add(mine, mine, following)

    summaries = {name: one.summary() for name, one in against.items()}
    nearer = min(summaries, key=lambda name: summaries[name]["max_abs_logit_error"])
    is_wide = "int16" in program.machine.activations
    judge = FLOAT_ACTIVATIONS if is_wide else nearer
    manifest = chip.files.manifest
    quantised = manifest.get("quantised")
    judged_other = quantised is not None and bool(quantised.value)
    result: dict[str, Any] = {
        "tokens_compared": against[judge].tokens,
        "windows": len(parts),
        "judged_graph": chip.judged.relative_to(chip.folder).as_posix(),
        "judged_weights": manifest["weights"].value if judged_other else None,
        "judge": judge,
        "judge_error": None,
        "judge_changes": list(references[judge].changes),
        **summaries[judge],
        "references_apart": apart,
        "rounding_apart": None if other is None else rounding_apart,
        "against": summaries,
        "saturations": saturations,
        "saturation": None,
        "expert_choices": None,
    }
    if routes(chip):
        progress("comparing the experts of each token")
        (second,) = references.keys() - {judge}
        result["expert_choices"] = check_routing(chip, parts, judge, second)
    if first is not None:
        progress("fewer fraction bits are tried")
        result["saturation"] = saturation(simulator, first[0], first[1][judge])
    if task.is_text:
        result |= _perplexities(ours, against, judge)
    progress("greedy decoding")
    result |= _greedy(chip, ids, task.prompt_ids, references[judge], judge)
    result["first_divergence_allowed_gap"] = 2 * summaries[judge]["max_abs_logit_error"]
    return ids, result


def _unjudged(
    chip: LoadedModel, task: _Task, error: CannotJudge, progress: Progress
) -> tuple[list[int], dict[str, Any]]:
    """As `_judged`, where onnxruntime cannot judge: what the chip says alone.

    The simulator continues a prompt. Without a text no more tokens than the hardware's are run.
    """
    ids = task.ids
    if not task.is_text:
        count = min(task.tokens or HARDWARE_TOKENS, task.window)
        if task.prompt_ids is not None:
            progress("the simulator continues the prompt")
            ids = _continued(chip, ids, count)
        ids = ids[:count]
    progress("the simulator alone")
    ours, saturations = _alone(chip, ids, task.window)
    result: dict[str, Any] = {
        **dict.fromkeys(JUDGED),
        "judge_error": error.what if error.hint is None else f"{error.what}; {error.hint}",
        "saturations": saturations,
        "saturation": saturation(chip.simulator, ids[: task.window]) if saturations else None,
    }
    if task.is_text:
        result |= dict.fromkeys(JUDGED_TEXT)
        result |= {"perplexity": ours.perplexity, "tokens_scored": ours.scored}
    return ids, result


def _continued(chip: LoadedModel, ids: Sequence[int], count: int) -> list[int]:
    """A prompt and the tokens that the chip generates after it, `count` in all if it is shorter."""
    simulator, found = chip.simulator, list(ids)
    simulator.reset()
    for position in range(count - 1):
        result = simulator.step(found[position], position)
        if position + 1 == len(found):
            assert result is not None
            found.append(result[1])
    return found


def _alone(chip: LoadedModel, ids: Sequence[int], window: int) -> tuple[Against, int]:
    """The chip against itself on windows of tokens, and the values that did not fit."""
    ours, saturations = Against(), 0
    for part in windows_of(ids, window):
        chip.simulator.reset()
        exact = chip.simulator.forward(part, 0)
        assert exact is not None
        saturations += chip.simulator.saturations
        for _, mine, following in rows_of(chip.simulator, part, exact):
            ours.add(mine, mine, following)
    return ours, saturations


def rows_of(
    simulator: Simulator, part: Sequence[int], exact: npt.NDArray[np.int64]
) -> Iterator[tuple[slice, Array, npt.NDArray[np.int64]]]:
    """Some positions of a window at a time: which, their logits [S, V], the tokens after them."""
    for first in range(0, len(part), _ROWS):
        rows = slice(first, first + _ROWS)
        following = np.asarray(part[first + 1 : first + _ROWS + 1], np.int64)
        logits = np.ldexp(exact[rows].astype(np.float64), -simulator.fraction_bits)
        yield rows, logits, following


class _TokenByToken:
    """A reference that is given one token a call, as a chip is."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def reset(self) -> None:
        self._reference.reset()

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.concatenate([self._reference.feed([token]) for token in tokens])


def _otherwise_rounded(chip: LoadedModel, rounding: str | None) -> Reference | _TokenByToken | None:
    """onnxruntime with the same graph that does not round activations as the graph says.

    Logits of a graph that rounds activations jump where one of them passes the edge between two
    levels. How far says what a comparison can tell; it is no judge.
    """
    match rounding:
        case None:
            return None
        case "Round":
            return chip.reference(unrounded=True)
        case _:
            return _TokenByToken(chip.reference())


def text_ids(chip: LoadedModel, path: Path) -> list[int]:
    """The tokens of a file.

    Raises:
        UserError: it cannot be read, or holds too little.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", file=str(path)) from error
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        if chip.tokenizer is not None:
            raise UserError("is not UTF-8 text", file=str(path)) from error
        text = data.decode("utf-8", errors="surrogateescape")
    if (ids := chip.encode(text, special=False)) and len(ids) > 1:
        return ids
    raise UserError("holds too little text to compare", file=str(path))


def windows_of(ids: Sequence[int], window: int) -> Iterator[Sequence[int]]:
    """Tokens in windows, the last one shorter."""
    for first in range(0, len(ids), window):
        yield ids[first : first + window]


def _perplexities(ours: Against, against: Mapping[str, Against], judge: str) -> dict[str, Any]:
    """Perplexities over the tokens that have a predecessor in their window; the judge of logits is
    that of perplexities."""

    mine = ours.perplexity
    theirs = {name: one.perplexity for name, one in against.items()}
    changes = {name: mine / value - 1 for name, value in theirs.items()}
    return {
        "perplexity": mine,
        "reference_perplexity": theirs[AS_IT_COMES],
        "float_reference_perplexity": theirs[FLOAT_ACTIVATIONS],
        "perplexity_judge": judge,
        "perplexity_change": changes[judge],
        "perplexity_changes": changes,
        "tokens_scored": ours.scored,
    }


def _base_perplexity(chip: LoadedModel, ids: Sequence[int], window: int) -> float:
    """Perplexity of the chip without its adapter on windows of tokens."""
    image = chip.adapter
    chip.load_adapter(None)
    try:
        return _alone(chip, ids, window)[0].perplexity
    finally:
        chip.load_adapter(image)


def _greedy(
    chip: LoadedModel,
    ids: Sequence[int],
    prompt_ids: Sequence[int] | None,
    reference: Any,
    judge: str,
) -> dict[str, Any]:
    """Compares greedy tokens.

    The simulator is forced along the reference's tokens: up to the first difference that is what
    it would have generated itself.
    """
    capacity = chip.program.capacity
    prompt = list(prompt_ids) if prompt_ids is not None else list(ids[:PROMPT_TOKENS])
    if len(prompt) >= capacity:
        prompt = prompt[: max(1, capacity // 2)]
    count = min(GREEDY_TOKENS, capacity - len(prompt) + 1)
    tokens: list[int] = []
    rows: list[npt.NDArray[np.float32]] = []
    for token, logits in reference.generate(prompt, count):
        tokens.append(token)
        rows.append(logits)
    chip.simulator.reset()
    exact = chip.simulator.forward([*prompt, *tokens[:-1]], 0)
    assert exact is not None
    chosen = exact[len(prompt) - 1 :].argmax(-1)
    divergence: dict[str, Any] | None = None
    for index, (mine, wanted) in enumerate(zip(chosen.tolist(), tokens, strict=True)):
        if mine != wanted:
            own = exact[len(prompt) - 1 + index]
            scale = 2.0**-chip.simulator.fraction_bits
            divergence = {
                "index": index,
                "token": mine,
                "reference_token": wanted,
                "gap": float(own[mine] - own[wanted]) * scale,
                "reference_gap": float(rows[index][wanted]) - float(rows[index][mine]),
                "reference": judge,
            }
            break
    return {"greedy_tokens": count, "first_divergence": divergence}
