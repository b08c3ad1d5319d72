"""Chat templates: where they are from, what they can do, and what they cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from intaglio.dialects.errors import UserError
from intaglio.runtime.text.chat import ChatTemplate, template_beside, template_in

MESSAGES = [{"role": "system", "content": "Be <brief>."}, {"role": "user", "content": "Hi"}]
CHATML = """{% for message in messages %}
    {%- if loop.first %}{{ bos_token }}{% endif %}
<|im_start|>{{ message.role }}
{{ message['content'] | trim }}<|im_end|>
{% endfor %}
{% if add_generation_prompt %}
<|im_start|>assistant
{% endif %}"""


def rendered(source: str, **options: Any) -> str:
    return ChatTemplate(source, Path("t.jinja"), {"bos_token": "<s>"}).render(MESSAGES, options)


def test_chatml():
    assert rendered(CHATML) == (
        "<s><|im_start|>system\nBe <brief>.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rendered(CHATML, add_generation_prompt=False).endswith("Hi<|im_end|>\n")


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ messages | tojson }}", json.dumps(MESSAGES)),
        (
            "{{ {'b': 'ä<', 'a': 1} | tojson(indent=1, sort_keys=true) }}",
            '{\n "a": 1,\n "b": "ä<"\n}',
        ),
        ("{% for m in messages %}{% if loop.last %}{% break %}{% endif %}x{% endfor %}", "x"),
        ("{% generation %}{{ messages[1].content }}{% endgeneration %}!", "Hi!"),
        ("{% set n = namespace(x=1) %}{% set n.x = n.x + 1 %}{{ n.x }}", "2"),
        ("{{ tools is none }}{{ nothing is defined }}{{ bos_token }}", "TrueFalse<s>"),
        ("{{ strftime_now('%d %b') | length > 4 }}", "True"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
    ],
)
def test_helpers(source: str, text: str):
    assert rendered(source) == text


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses this: roles must alternate"),
        ("{{ messages[5].content.x }}", "refuses this: "),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "refuses this: access to attribute"),
        ("{{ raise_exception.__globals__['json'] }}", "refuses this: access to attribute"),
        ("{{ messages.append(1) }}", "refuses this: "),
        ("{% include 'x' %}", "this: "),
        ("{% for i in range(10 ** 9) %}x{% endfor %}", "OverflowError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        (
            "{% for i in range(9999) %}{% for j in range(9999) %}xxxxxxxx{% endfor %}{% endfor %}",
            "takes more than",
        ),
    ],
)
def test_what_is_refused(source: str, message: str):
    with pytest.raises(UserError, match=message):
        rendered(source)


@pytest.mark.parametrize("source", ["{{ x", "a\n{% fi %}", "{% for %}", "{{ " + "(" * 5000])
def test_no_template(source: str):
    with pytest.raises(UserError, match=r"t\.jinja: is no chat template"):
        rendered(source)


def test_where_it_is_from(tmp_path: Path):
    model, config = tmp_path / "model.onnx", tmp_path / "tokenizer_config.json"
    assert template_beside(model) is None
    config.write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    assert template_beside(model) is None
    config.write_text(json.dumps({"chat_template": "a{{ eos_token }}", "eos_token": "</s>"}))
    found = template_beside(model)
    assert found is not None and found.render(MESSAGES) == "a</s>" and found.file == config
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    config.write_text(json.dumps({"chat_template": named}))
    assert (found := template_beside(model)) is not None and found.render(MESSAGES) == "d"
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": "<b>"}))
    (tmp_path / "chat_template.jinja").write_text("f{{ bos_token }}")
    assert (found := template_beside(model)) is not None and found.render(MESSAGES) == "f<b>"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "is no JSON"),
        ('{"chat_template": 3}', "chat_template is 3, not a text"),
        (
            '{"chat_template": [{"name": "rag", "template": "x"}]}',
            "no template 'default', only rag",
        ),
        ('{"chat_template": [{"name": "default"}]}', "has no key 'template'"),
    ],
)
def test_damaged_files(tmp_path: Path, content: str, message: str):
    (tmp_path / "tokenizer_config.json").write_text(content)
    with pytest.raises(UserError, match=message):
        template_beside(tmp_path / "model.onnx")


def test_files_of_other_kinds(tmp_path: Path):
    model, file = tmp_path / "model.onnx", tmp_path / "x.jinja"
    with pytest.raises(UserError, match="cannot be read"):
        template_in(file, model)
    file.write_bytes(b"\xff\xff")
    with pytest.raises(UserError, match="no UTF-8"):
        template_in(file, model)
    file.write_bytes(b"x" * ((1 << 20) + 1))
    with pytest.raises(UserError, match="longer than 1 MiB"):
        template_in(file, model)
