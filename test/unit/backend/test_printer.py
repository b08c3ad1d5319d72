"""Modules print as xDSL prints them."""

from __future__ import annotations

import io

import pytest
from xdsl.dialects.builtin import BytesAttr, ModuleOp, StringAttr
from xdsl.printer import Printer

from intaglio.backend.printer import TextPrinter

TEXTS = (
    "",
    "/model/layers.0/mlp/down_proj/MatMul_Q4",
    'quoted "name"',
    "back\\slash",
    "two\nlines\tand a tab",
    "\x00 and \x7f",
    "größer, 深い",
    " !~",
)


def printed(printer: type[Printer], module: ModuleOp) -> str:
    text = io.StringIO()
    printer(stream=text).print_op(module)
    return text.getvalue()


@pytest.mark.parametrize("text", TEXTS)
def test_texts_are_those_of_xdsl(text: str):
    attributes = {"text": StringAttr(text), "bytes": BytesAttr(text.encode()), text: StringAttr("")}
    module = ModuleOp([], attributes if text else {"text": StringAttr(text)})
    assert printed(TextPrinter, module) == printed(Printer, module)


def test_every_byte():
    module = ModuleOp([], {f"b{n}": BytesAttr(bytes([n, 65])) for n in range(256)})
    assert printed(TextPrinter, module) == printed(Printer, module)
