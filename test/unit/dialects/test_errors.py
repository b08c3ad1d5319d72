"""Many errors and warnings of one kind are one, with a count."""

from __future__ import annotations

from intaglio.dialects.errors import UserError, UserErrors, gathered


def errors(count: int, what: str = "its weights are floats", hint: str | None = "help") -> list:
    return [
        UserError(what.format(i), file="m.onnx", node=f"n{i}", op_type="MatMul", hint=hint)
        for i in range(count)
    ]


def test_a_few_are_listed():
    both = UserErrors(errors(2))
    assert str(both).splitlines() == [
        "m.onnx: node 'n0' (MatMul): its weights are floats",
        "m.onnx: node 'n1' (MatMul): its weights are floats",
        "  help: help",
    ]


def test_many_are_one():
    many = UserErrors(errors(141))
    assert str(many).splitlines() == [
        "m.onnx: node 'n0' (MatMul), 'n1', 'n2' and 138 more: its weights are floats",
        "  help: help",
    ]
    assert len(many.errors) == 141 and all(one.hint == "help" for one in many.errors)


def test_names_in_the_sentence():
    text = str(UserErrors(errors(9, "its input 'x{}' is missing")))
    assert text.startswith("m.onnx: node 'n0' (MatMul), 'n1', 'n2' and 6 more: its input 'x0' is")
    plain = [UserError(f"tensor 't{i}' has a NaN", file="m.onnx") for i in range(5)]
    assert str(UserErrors(plain)) == "m.onnx: tensor 't0' has a NaN (and 4 more: 't1', 't2', ...)"


def test_kinds_stay_apart_and_in_order():
    mixed = [*errors(5), *errors(1, "another fault"), *errors(4, "a third", None)]
    assert [line.split(": ", 1)[1] for line in str(UserErrors(mixed)).splitlines()] == [
        "node 'n0' (MatMul), 'n1', 'n2' and 2 more: its weights are floats",
        "node 'n0' (MatMul): another fault",
        "help",
        "node 'n0' (MatMul), 'n1', 'n2' and 1 more: a third",
    ]


def test_warnings():
    assert gathered([]) == []
    assert gathered(["a 'x' b", "other", "a 'x' b"]) == ["a 'x' b", "other"]
    assert gathered([f"input 'w{i}' is a constant" for i in range(30)]) == [
        "input 'w0' is a constant (and 29 more: 'w1', 'w2', ...)"
    ]
    assert gathered(["node 'a' (Cast) is left out", "x", "node 'b' (Shape) is left out"]) == [
        "node 'a' (Cast) is left out (and 1 more: node 'b' (Shape))",
        "x",
    ]
    assert gathered(["layer 1 is odd", "layer 2 is odd"]) == ["layer 1 is odd", "layer 2 is odd"]
