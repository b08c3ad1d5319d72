"""What is made of a comparison with onnxruntime: tolerances, and lines for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from intaglio.dialects.errors import UserError
from intaglio.runtime.judge.reference import AS_IT_COMES, FLOAT_ACTIVATIONS, NAMES
from intaglio.runtime.judge.routing import routing_lines
from intaglio.runtime.judge.saturation import saturation_lines
from intaglio.runtime.reports.wording import counted

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
    "expert_choices.differing": AT_MOST,
    "expert_choices.counted": AT_MOST,
}
"""What `--tolerance` can name, and which way it bounds.

`first_divergence` is the number of greedy tokens before the first difference; none passes. A key
after a dot is one of the figure before it; a model without such a figure misses the bound.
"""


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
    """What a result misses, one line each; a figure that onnxruntime could not judge is missed."""
    lines: list[str] = []
    error = result.get("judge_error")
    for key, bound in tolerances:
        name, _, inner = key.partition(".")
        if error is not None and result[name] is None:
            lines.append(
                f"{key} is not known, {TOLERANCES[key]} {bound:g} was wanted: "
                f"onnxruntime could not judge; {error}"
            )
            continue
        value = result[name]
        if inner:
            if value is None:
                lines.append(f"{key} is not known: the model has no experts")
                continue
            value = value[inner]
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
    if result["judge_error"] is None:
        yield from _judged_lines(result)
    else:
        yield "onnxruntime could not judge; the hardware was compared with the simulator alone"
        yield f"  reason       {result['judge_error']}"
        if "perplexity" in result:
            yield (
                f"  perplexity   {result['perplexity']:.5f} on "
                f"{counted(result['tokens_scored'], 'token')}, by the chip alone"
            )
    if "base_perplexity" in result:
        yield (
            f"  adapter      {result['adapter']}: perplexity {result['perplexity']:.5f}, of the "
            f"base without it {result['base_perplexity']:.5f}"
        )
    yield f"  saturations  {result['saturations']}"
    if result["saturation"] is not None:
        for line in saturation_lines(result["saturation"]):
            yield f"               {line}"
    if "bit_exact" in result:
        yield (
            f"  hardware     {counted(result['hardware_tokens'], 'token')} on {result['engine']}: "
            f"{counted(result['instructions_compared'], 'beat')} and "
            f"{counted(result['values_compared'], 'value')} compared with the simulator"
        )
        if "stress_rounds" in result:
            yield (
                f"               {counted(result['stress_rounds'], 'round')} of extreme contents: "
                f"{counted(result['stress_tokens'], 'token')}, "
                f"{counted(result['stress_values'], 'value')}, "
                f"{counted(result['stress_saturations'], 'saturation')}"
            )
        found = result["hardware_difference"]
        yield f"               {found or 'every bit and every start and finish cycle equal'}"
    if result.get("operators") is not None:
        yield from _operator_lines(result)


def _judged_lines(result: Mapping[str, Any]) -> Iterator[str]:
    yield (
        f"{counted(result['tokens_compared'], 'token')} in {counted(result['windows'], 'window')}, "
        f"judged by onnxruntime {NAMES[result['judge']]}"
    )
    if result["judged_weights"] is not None:
        yield (
            f"  graph        {result['judged_graph']} of the output folder, whose weights are "
            f"rounded to {result['judged_weights']}; not the file that was compiled"
        )
    for line in result["judge_changes"]:
        yield f"  copy         {line}"
    for name, figures in result["against"].items():
        yield f"  onnxruntime {NAMES[name]}"
        yield (
            f"    logits     largest error {figures['max_abs_logit_error']:.4g}, "
            f"{figures['max_error_of_range']:.2%} of their range {figures['logit_range']:.4g}; "
            f"mean KL {figures['mean_kl']:.3g}"
        )
        yield (
            f"    top-1      {figures['top1_agreement']:.2%} agree; "
            f"{figures['top1_agreement_counted']:.2%} where the references can tell "
            f"({figures['top1_misses_counted']:,} of {figures['top1_misses']:,} that differ count)"
        )
    yield f"  the two onnxruntime references are up to {result['references_apart']:.4g} apart"
    if result["rounding_apart"] is not None:
        yield (
            "  onnxruntime is up to "
            f"{result['rounding_apart']:.4g} from itself with other rounding of activations"
        )
    if "perplexity" in result:
        changes = result["perplexity_changes"]
        yield (
            f"  perplexity   {result['perplexity']:.5f} on "
            f"{counted(result['tokens_scored'], 'token')}; onnxruntime as it comes "
            f"{result['reference_perplexity']:.5f} ({changes[AS_IT_COMES]:+.4%}), with float "
            f"activations {result['float_reference_perplexity']:.5f} "
            f"({changes[FLOAT_ACTIVATIONS]:+.4%}); the one {NAMES[result['judge']]} "
            "counts, as above"
        )
    yield from routing_lines(result["expert_choices"])
    divergence = result["first_divergence"]
    if divergence is None:
        yield f"  greedy       {counted(result['greedy_tokens'], 'token')} equal"
    else:
        yield (
            f"  greedy       token {divergence['index']} of {result['greedy_tokens']} differs: "
            f"{divergence['token']} here, {divergence['reference_token']} there, whose logits are "
            f"{divergence['reference_gap']:.3g} apart there and {divergence['gap']:.3g} here"
        )


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
