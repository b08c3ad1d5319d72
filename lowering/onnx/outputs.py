"""The graph's outputs: the logits, and what the caches become."""

from __future__ import annotations

from intaglio.lowering.onnx.graph.model import Node
from intaglio.lowering.onnx.graph.pairs import presents_of
from intaglio.lowering.onnx.report import Report
from intaglio.lowering.onnx.step import Step
from intaglio.lowering.onnx.values import Cached, Curve, Present, Refusal, Unknown, Vector
from intaglio.lowering.onnx.written import cached


def find_logits(step: Step, report: Report) -> tuple[Vector | None, Node | None]:
    """The logits and the node that gives them, or None where no output is logits."""
    found: list[tuple[str, Vector]] = []
    unknown = False
    for name in step.graph.outputs:
        value = step.values.get(name)
        match value:
            case Vector():
                found.append((name, value))
            case Unknown():
                unknown = True
            case Present():
                pass
            case Cached() if value.buffered or cached.is_whole(value):
                pass
            case Curve():
                unknown = True
            case None:
                report.error(f"nothing computes the output '{name}'")
            case _:
                report.error(f"the output '{name}' is {value.kind}, not logits")
    if len(found) > 1:
        chosen = next((p for p in found if p[0] == "logits"), None)
        if chosen is not None:
            for name, _ in found:
                if name != "logits":
                    report.error(
                        f"the output '{name}' is not supported: the chip gives logits only",
                        hint="export without it (include_hidden_states=false)",
                    )
            found = [chosen]
        else:
            names = ", ".join(f"'{name}'" for name, _ in found)
            report.error(f"only one output can be the logits, found {names}")
    if not found:
        if not unknown and not report.errors:
            report.error("the graph has no output of logits")
        return None, None
    name, value = found[0]
    try:
        step.whole_row(value)
    except Refusal as refusal:
        report.error(f"the logits '{name}': {refusal.reason}")
    if name == "hidden_states":
        report.error(
            "the output 'hidden_states' is not logits",
            hint="export the model with its head (without exclude_lm_head)",
        )
    return value, step.graph.producers.get(name)


def check_pasts(step: Step, report: Report) -> None:
    """Every cache that is written must be an output too, named or placed as its past is."""
    given = {
        value.past: name
        for name in step.graph.outputs
        if isinstance(value := step.values.get(name), Cached | Present)
    }
    expected = presents_of([*step.pasts], [*given.values()])
    for past in (*step.caches, *step.states):
        if past in given and expected.get(past) != given[past]:
            report.error(f"'{past}' and '{given[past]}' belong to different layers")
        if past not in given:
            report.error(
                f"no output gives back what '{past}' becomes with the new tokens",
                hint="export with present keys and values as outputs (with past)",
            )
    report.raise_errors()
    for name in step.pasts:
        if name not in step.caches and name not in step.states:
            report.warnings.append(f"input '{name}' is read by no attention and is left out")
