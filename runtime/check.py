"""Comparison with onnxruntime: logits, tokens, perplexity, and operator by operator.

Tokens are teacher-forced in windows: simulator and both references of `runtime/reference.py` see
the same tokens, and the logits of every position are compared. Activations and KV of 16 bits are
judged against the reference with float activations, smaller ones against the nearer of the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from intaglio.backend.program import Block, Instruction
from intaglio.dialects.errors import UserError
from intaglio.runtime.chip import Chip
from intaglio.runtime.reference import Reference, nodes_of, own_rounding

AS_IT_COMES = "as_it_comes"
FLOAT_ACTIVATIONS = "float_activations"
WINDOW = 256
"""Tokens of a window, where the KV caches and the model hold as many."""
DEFAULT_TOKENS = 256
GREEDY_TOKENS = 64
"""Tokens of the greedy comparison, where they fit."""
PROMPT_TOKENS = 8
"""Tokens of the first window that are the prompt of the greedy comparison."""
OPERATOR_TOKENS = 16
"""Tokens of the comparison operator by operator."""
OPERATOR_THRESHOLD = 0.05
"""Largest error of an operator's output over its largest magnitude that goes unremarked."""
SEED = 20240
"""Of the random tokens that are compared when neither prompt nor text is given."""

_ROWS = 16
"""Positions whose logits are compared at once, so that large vocabularies take little memory."""

Progress = Callable[[str], None]
Array = npt.NDArray[np.float64]

AT_LEAST, AT_MOST = "at least", "at most"
TOLERANCES: dict[str, str] = {
    "tokens_compared": AT_LEAST,
    "top1_agreement": AT_LEAST,
    "top1_agreement_counted": AT_LEAST,
    "first_divergence": AT_LEAST,
    "max_abs_logit_error": AT_MOST,
    "max_error_of_range": AT_MOST,
    "mean_kl": AT_MOST,
    "saturations": AT_MOST,
    "perplexity": AT_MOST,
    "perplexity_change": AT_MOST,
    "operator_error": AT_MOST,
}
"""What `--tolerance` can name, and which way it bounds.

`first_divergence` is the number of greedy tokens before the first difference; none passes.
"""


@dataclass
class _Against:
    """Running comparison with one reference."""

    tokens: int = 0
    agreed: int = 0
    gaps: list[float] = field(default_factory=list)
    """For each miss, the reference's own distance between the two tokens."""
    error: float = 0.0
    divergence: float = 0.0
    lowest: float = math.inf
    highest: float = -math.inf
    scored: int = 0
    log_loss: float = 0.0

    def add(self, ours: Array, theirs: Array, following: npt.NDArray[np.int64]) -> None:
        """Compares logits [S, V]; `following` are the next tokens, one fewer at a window's end."""
        rows = np.arange(len(ours))
        mine, wanted = ours.argmax(-1), theirs.argmax(-1)
        missed = mine != wanted
        self.tokens += len(ours)
        self.agreed += int((~missed).sum())
        self.gaps += (theirs[rows, wanted] - theirs[rows, mine])[missed].tolist()
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

    def summary(self, undecided: float) -> dict[str, Any]:
        """Figures of this reference; misses within `undecided` count as agreement."""
        counted = sum(gap > undecided for gap in self.gaps)
        return {
            "top1_agreement": self.agreed / self.tokens,
            "top1_agreement_counted": 1 - counted / self.tokens,
            "max_abs_logit_error": self.error,
            "logit_range": self.range,
            "max_error_of_range": self.error / self.range if self.range else 0.0,
            "mean_kl": self.divergence / self.tokens,
        }


def _log_softmax(logits: Array) -> Array:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def check(
    chip: Chip,
    *,
    prompt_ids: Sequence[int] | None = None,
    tokens: int | None = None,
    text: str | Path | None = None,
    windows: int | None = None,
    per_op: bool = False,
    engine: str = "simulator",
    adapter: str | None = None,
    progress: Progress = lambda message: None,
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
            first tokens (see `check_hardware`); onnxruntime judges the simulator in any case.
        adapter: the adapter of the output folder to compare with; without it the one that is
            active, if any. onnxruntime runs the base graph with the float adapter beside it.
        progress: called with a line for each step of long work.

    Returns:
        The content of `intaglio check --json`. `judge` is the reference that counts, and
        `top1_agreement`, `top1_agreement_counted`, `max_abs_logit_error`, `logit_range`,
        `max_error_of_range` and `mean_kl` (nats) are against it; `against` has them for both.
        `top1_agreement_counted` takes a miss for one only where the reference's own two logits are
        more than twice as far apart as `references_apart`, the largest distance between the
        references, or `rounding_apart`. That is, for a graph that rounds activations itself, the
        largest distance of onnxruntime from itself when it does not, or (DynamicQuantizeLinear)
        when it does so token by token; None for other graphs.
        `first_divergence` is the first of `greedy_tokens` that differs (its index, both tokens, and
        how far apart their logits are here and there), or None. `saturations` counts values that
        did not fit. A text adds `perplexity`, `reference_perplexity` (as it comes),
        `float_reference_perplexity` and `perplexity_change` against the judge of perplexities.
        With an adapter there are `adapter`, `adapter_loss` (the worst site's conversion) and, on
        a text, `base_perplexity`, the chip's own without the adapter.
        `per_op` adds `operators`, each with `relative_error` (largest error over largest
        magnitude), and the first that is above `operator_threshold`.

    Raises:
        UserError: the input cannot be used, or onnxruntime cannot run the model.
    """
    if tokens is not None and tokens < 1:
        raise UserError(f"cannot compare {tokens} tokens")
    if windows is not None and windows < 1:
        raise UserError(f"cannot compare {windows} windows")
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
            progress=progress,
        )
    finally:
        if adapter is not None:
            chip.load_adapter(active)


def _check(
    chip: Chip,
    *,
    prompt_ids: Sequence[int] | None,
    tokens: int | None,
    text: str | Path | None,
    windows: int | None,
    per_op: bool,
    engine: str,
    progress: Progress,
) -> dict[str, Any]:
    program, simulator = chip.program, chip.simulator
    references = {
        AS_IT_COMES: chip.reference(),
        FLOAT_ACTIVATIONS: chip.reference(float_activations=True),
    }
    window = min(WINDOW, program.capacity)
    if text is not None:
        ids = _text_ids(chip, Path(text))[:tokens]
        ids = ids if windows is None else ids[: windows * window]
    elif prompt_ids is not None:
        chip.check_prompt(prompt_ids, 1)
        wanted = min(tokens or DEFAULT_TOKENS, program.capacity)
        ids = list(prompt_ids)
        progress("onnxruntime continues the prompt")
        more = references[FLOAT_ACTIVATIONS].generate(ids, max(0, wanted - len(ids)))
        ids += [token for token, _ in more]
        window = program.capacity
    else:
        count = tokens or DEFAULT_TOKENS
        random = np.random.Generator(np.random.PCG64(SEED))
        ids = random.integers(0, program.vocabulary, count).tolist()
    parts = list(_windows(ids, window))

    other = _otherwise_rounded(chip, own_rounding(chip.model))
    against = {name: _Against() for name in references}
    apart = rounding_apart = 0.0
    ours = _Against()
    saturations = 0
    for number, part in enumerate(parts):
        progress(f"window {number + 1} of {len(parts)}")
        simulator.reset()
        exact = simulator.forward(part, 0)
        assert exact is not None
        saturations += simulator.saturations
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
        if other is not None:
            other.reset()
            distance = np.abs(other.feed(part) - judged[AS_IT_COMES])
            rounding_apart = max(rounding_apart, float(distance.max(initial=0.0)))
        for first in range(0, len(part), _ROWS):
            rows = slice(first, first + _ROWS)
            following = np.asarray(part[first + 1 : first + _ROWS + 1], np.int64)
            mine = np.ldexp(exact[rows].astype(np.float64), -simulator.fraction_bits)
            both = {name: logits[rows].astype(np.float64) for name, logits in judged.items()}
            for name, theirs in both.items():
                against[name].add(mine, theirs, following)
            ours.add(mine, mine, following)
            distance = np.abs(both[AS_IT_COMES] - both[FLOAT_ACTIVATIONS])
            apart = max(apart, float(distance.max(initial=0.0)))

    undecided = 2 * max(apart, rounding_apart)
    summaries = {name: one.summary(undecided) for name, one in against.items()}
    nearer = min(summaries, key=lambda name: summaries[name]["max_abs_logit_error"])
    is_wide = "int16" in program.machine.activations
    judge = FLOAT_ACTIVATIONS if is_wide else nearer
    result: dict[str, Any] = {
        "engine": engine,
        "tokens_compared": against[judge].tokens,
        "windows": len(parts),
        "judge": judge,
        **summaries[judge],
        "references_apart": apart,
        "rounding_apart": None if other is None else rounding_apart,
        "against": summaries,
        "saturations": saturations,
    }
    if text is not None:
        result |= _perplexities(ours, against, is_wide)
    if (image := chip.adapter) is not None:
        result |= {"adapter": image.name, "adapter_loss": image.worst_loss}
        if text is not None:
            progress("the base without the adapter")
            result["base_perplexity"] = _base_perplexity(chip, parts)
    progress("greedy decoding")
    result |= _greedy(chip, ids, prompt_ids, references[judge], judge)
    result["first_divergence_allowed_gap"] = 2 * summaries[judge]["max_abs_logit_error"]
    if engine != "simulator":
        from intaglio.runtime.check_hardware import HARDWARE_TOKENS, check_hardware

        result |= check_hardware(chip, engine, parts[0][: tokens or HARDWARE_TOKENS], progress)
    if per_op:
        progress("comparing operators")
        result |= _operators(chip, ids[: min(OPERATOR_TOKENS, window)])
    return result


class _TokenByToken:
    """A reference that is given one token a call, as a chip is."""

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def reset(self) -> None:
        self._reference.reset()

    def feed(self, tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        return np.concatenate([self._reference.feed([token]) for token in tokens])


def _otherwise_rounded(chip: Chip, rounding: str | None) -> Reference | _TokenByToken | None:
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


def _text_ids(chip: Chip, path: Path) -> list[int]:
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


def _windows(ids: Sequence[int], window: int) -> Iterator[Sequence[int]]:
    for first in range(0, len(ids), window):
        yield ids[first : first + window]


def _perplexities(ours: _Against, against: Mapping[str, _Against], is_wide: bool) -> dict[str, Any]:
    """Perplexities over the tokens that have a predecessor in their window."""

    def perplexity(one: _Against) -> float:
        return math.exp(one.log_loss / one.scored)

    mine = perplexity(ours)
    theirs = {name: perplexity(one) for name, one in against.items()}
    changes = {name: mine / value - 1 for name, value in theirs.items()}
    judge = FLOAT_ACTIVATIONS if is_wide else min(changes, key=lambda name: abs(changes[name]))
    return {
        "perplexity": mine,
        "reference_perplexity": theirs[AS_IT_COMES],
        "float_reference_perplexity": theirs[FLOAT_ACTIVATIONS],
        "perplexity_judge": judge,
        "perplexity_change": changes[judge],
        "tokens_scored": ours.scored,
    }


def _base_perplexity(chip: Chip, parts: Sequence[Sequence[int]]) -> float:
    """Perplexity of the chip without its adapter on windows of tokens."""
    image, base = chip.adapter, _Against()
    chip.load_adapter(None)
    try:
        for part in parts:
            chip.simulator.reset()
            exact = chip.simulator.forward(part, 0)
            assert exact is not None
            for first in range(0, len(part), _ROWS):
                rows = slice(first, first + _ROWS)
                following = np.asarray(part[first + 1 : first + _ROWS + 1], np.int64)
                logits = np.ldexp(exact[rows].astype(np.float64), -chip.simulator.fraction_bits)
                base.add(logits, logits, following)
    finally:
        chip.load_adapter(image)
    return math.exp(base.log_loss / base.scored)


def _greedy(
    chip: Chip, ids: Sequence[int], prompt_ids: Sequence[int] | None, reference: Any, judge: str
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


# --- operator by operator ---------------------------------------------------------------------


@dataclass(frozen=True)
class _Observed:
    """The value of the graph that an instruction instance computes."""

    block: str
    index: int
    instance: int
    opcode: str
    node: str
    value: str


_INNER = {"quantize", "append", "query_key", "softmax", "copy", "sample"}
"""Opcodes whose results are no values of an ONNX graph."""
_RESIDUAL_OUTPUT = 3
"""The output of a Skip...Normalization that holds the sum."""
_ATTENTION = ("GroupQueryAttention", "MultiHeadAttention", "Attention")


def _value_of(one: Instruction, op_type: str, outputs: Sequence[str]) -> str | None:
    """The output of its last node that an instruction computes, if any."""
    if one.opcode in _INNER or (op_type in _ATTENTION and one.opcode != "weighted_sum"):
        return None
    is_norm = one.opcode in ("rms_norm", "layer_norm")
    number = _RESIDUAL_OUTPUT if op_type.startswith("Skip") and not is_norm else 0
    return (outputs[number] or None) if number < len(outputs) else None


def _names(
    chip: Chip, block: Block, instance: int, one: Instruction, weights: str
) -> Sequence[str]:
    """The ONNX nodes of the value of the graph that an instruction writes, if it writes one.

    Of a site the chip computes the engraved part (with a residual, where one is added), A x, and
    the sum with B (A x): the last is a value of the graph, the others are not while an adapter is
    active. A part of a packed projection's rows never is.
    """
    program = chip.program
    own = one.onnx[min(instance, len(one.onnx) - 1)]
    if weights in program.slots:
        site, half = program.slots[weights]
        if half == "a" or site.rows != program.parameters[site.matrix].dims[0]:
            return ()
        buffers = block.instances[instance]
        return next(
            other.onnx[min(instance, len(other.onnx) - 1)]
            for other in block.instructions
            if buffers.get(other.uses.get("weights", "")) == site.matrix
        )
    is_base = any(site.matrix == weights for site in program.sites.values())
    return () if is_base and chip.adapter is not None else own


def _observations(chip: Chip) -> Iterator[tuple[Instruction, _Observed | None]]:
    """Every instruction, instance by instance in the order of execution."""
    # The judge of adapters gives the sums the names that the base's products have.
    nodes = nodes_of(chip.model)
    for block in chip.program.blocks:
        for instance, buffers in enumerate(block.instances):
            for index, one in enumerate(block.instructions):
                weights = buffers.get(one.uses.get("weights", ""), "")
                names = _names(chip, block, instance, one, weights)
                observed = None
                if names and names[-1] in nodes:
                    value = _value_of(one, *nodes[names[-1]])
                    if value is not None:
                        observed = _Observed(
                            block.name, index, instance, one.opcode, names[-1], value
                        )
                yield one, observed


def _operators(chip: Chip, ids: Sequence[int]) -> dict[str, Any]:
    """Compares what each instruction wrote with the float reference's value of that name."""
    every = list(_observations(chip))
    names = list(dict.fromkeys(found.value for _, found in every if found is not None))
    reference = chip.reference(float_activations=True, observed=names)
    _, values = reference.observe(ids)
    found = iter(every)
    entries: list[dict[str, Any]] = []
    apart: list[str] = []

    def observe(one: Instruction, instance: int, written: list[Array]) -> None:
        expected, observed = next(found)
        assert expected is one
        if observed is None or not written:
            return
        theirs = _token_major(values[observed.value], written[0].shape)
        if theirs is None:
            apart.append(observed.node)
            return
        peak = float(np.abs(theirs).max(initial=0.0))
        error = float(np.abs(written[0] - theirs).max(initial=0.0))
        entries.append(
            {
                "block": observed.block,
                "instance": instance,
                "instruction": observed.index,
                "opcode": observed.opcode,
                "onnx": observed.node,
                "error": error,
                "relative_error": error / peak if peak else error,
            }
        )

    chip.simulator.reset()
    chip.simulator.forward(ids, 0, observe=observe)
    worst = max(entries, key=lambda entry: entry["relative_error"], default=None)
    first = next((e for e in entries if e["relative_error"] > OPERATOR_THRESHOLD), None)
    return {
        "operators": entries,
        "operators_without_counterpart": sorted(set(apart)),
        "operator_threshold": OPERATOR_THRESHOLD,
        "operator_error": worst["relative_error"] if worst else 0.0,
        "worst_operator": worst,
        "first_operator_above_threshold": first,
    }


def _token_major(value: npt.NDArray[Any], shape: tuple[int, ...]) -> Array | None:
    """A value of the graph, batch 1, as [S, N]; None when it is of another size."""
    if value.size != math.prod(shape) or value.ndim not in (3, 4):
        return None
    if value.ndim == 4 and value.shape[1] != shape[0]:
        value = value.swapaxes(1, 2)
    return value.astype(np.float64).reshape(shape)


# --- tolerances -------------------------------------------------------------------------------


def parse_tolerance(text: str) -> tuple[str, float]:
    """`KEY=VALUE` as key and bound.

    Raises:
        UserError: an unknown key or no number.
    """
    key, equals, value = text.partition("=")
    if key not in TOLERANCES:
        raise UserError(
            f"--tolerance {text}: '{key}' cannot be bounded", hint=f"one of {', '.join(TOLERANCES)}"
        )
    try:
        if not equals:
            raise ValueError
        return key, float(value)
    except ValueError:
        raise UserError(f"--tolerance {text}: not of the form KEY=NUMBER") from None


def check_tolerances(tolerances: Sequence[tuple[str, float]], *, text: bool, per_op: bool) -> None:
    """Whether a comparison will have the figures that are bounded.

    Raises:
        UserError: one of them needs `--text` or `--per-op`.
    """
    for key, _ in tolerances:
        if key.startswith("perplexity") and not text:
            raise UserError(f"--tolerance {key}: only with --text")
        if key.startswith("operator") and not per_op:
            raise UserError(f"--tolerance {key}: only with --per-op")


def missed(result: Mapping[str, Any], tolerances: Sequence[tuple[str, float]]) -> list[str]:
    """What a result misses, one line each."""
    lines: list[str] = []
    for key, bound in tolerances:
        value = result[key]
        if key == "first_divergence":
            if value is None:
                continue
            value = value["index"]
        if key == "perplexity_change":
            value = abs(value)
        is_met = value >= bound if TOLERANCES[key] == AT_LEAST else value <= bound
        if not is_met:
            lines.append(f"{key} is {value:g}, {TOLERANCES[key]} {bound:g} was wanted")
    return lines


# --- text -------------------------------------------------------------------------------------


def text_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """A result for people."""
    yield (
        f"{result['tokens_compared']} tokens in {result['windows']} windows, "
        f"judged by onnxruntime {_NAMES[result['judge']]}"
    )
    for name, figures in result["against"].items():
        yield f"  onnxruntime {_NAMES[name]}"
        yield (
            f"    logits     largest error {figures['max_abs_logit_error']:.4g}, "
            f"{figures['max_error_of_range']:.2%} of their range {figures['logit_range']:.4g}; "
            f"mean KL {figures['mean_kl']:.3g}"
        )
        yield (
            f"    top-1      {figures['top1_agreement']:.2%} agree; "
            f"{figures['top1_agreement_counted']:.2%} where the references can tell"
        )
    yield f"  the two onnxruntime references are up to {result['references_apart']:.4g} apart"
    if result["rounding_apart"] is not None:
        yield (
            "  onnxruntime is up to "
            f"{result['rounding_apart']:.4g} from itself with other rounding of activations"
        )
    if "perplexity" in result:
        yield (
            f"  perplexity   {result['perplexity']:.5f} on {result['tokens_scored']} tokens; "
            f"onnxruntime {result['reference_perplexity']:.5f}, with float activations "
            f"{result['float_reference_perplexity']:.5f} ({result['perplexity_change']:+.4%} of "
            f"the one {_NAMES[result['perplexity_judge']]})"
        )
    if "base_perplexity" in result:
        yield (
            f"  adapter      {result['adapter']}: perplexity {result['perplexity']:.5f}, of the "
            f"base without it {result['base_perplexity']:.5f}"
        )
    divergence = result["first_divergence"]
    if divergence is None:
        yield f"  greedy       {result['greedy_tokens']} tokens equal"
    else:
        yield (
            f"  greedy       token {divergence['index']} of {result['greedy_tokens']} differs: "
            f"{divergence['token']} here, {divergence['reference_token']} there, whose logits are "
            f"{divergence['reference_gap']:.3g} apart there and {divergence['gap']:.3g} here"
        )
    yield f"  saturations  {result['saturations']}"
    if "bit_exact" in result:
        yield (
            f"  hardware     {result['hardware_tokens']} tokens on {result['engine']}: "
            f"{result['instructions_compared']:,} instructions and {result['values_compared']:,} "
            f"values compared with the simulator"
        )
        found = result["hardware_difference"]
        yield f"               {found or 'every bit and every start and finish cycle equal'}"
    if "operators" in result:
        yield from _operator_lines(result)


_NAMES = {AS_IT_COMES: "as it comes", FLOAT_ACTIVATIONS: "with float activations"}


def _operator_lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield "  largest error of an operator's output over its largest magnitude"
    for entry in result["operators"]:
        yield f"    {entry['relative_error']:8.3%}  {entry['opcode']:<13} {entry['onnx']}"
    first = result["first_operator_above_threshold"]
    bound = f"{result['operator_threshold']:.0%}"
    yield (
        f"  no operator is above {bound}"
        if first is None
        else f"  first above {bound}: {first['onnx']} ({first['opcode']})"
    )
