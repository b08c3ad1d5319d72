"""The command line: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from intaglio.backend.program.types import SCHEMA
from intaglio.dialects.errors import CompilerBug, UserError
from intaglio.dialects.isa.registry import INSTRUCTIONS
from intaglio.runtime import cli
from intaglio.runtime.chip import load


class Result(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: str | Path) -> Result:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def refused(run: Run) -> Callable[..., str]:
    """Runs what must be a user's error, and gives the message."""

    def refused(*arguments: str | Path) -> str:
        result = run(*arguments)
        assert result.code == 1
        assert "Traceback" not in result.err and "a bug of" not in result.err
        assert result.out == ""
        return result.err

    return refused


@pytest.fixture
def refused_compile(refused: Callable[..., str], tmp_path: Path) -> Callable[..., str]:
    """As `refused`, for a compile, which must not leave anything behind."""

    def refuse(path: Path, *arguments: str, target: str = "roma-mini") -> str:
        folder = tmp_path / "outputs"
        folder.mkdir()
        out = folder / "out"
        message = refused("compile", path, "--target", target, "-o", out, *arguments)
        assert list(folder.iterdir()) == []
        return message

    return refuse


@pytest.fixture
def editable(model, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of a model that may be changed."""

    def copy(name: str) -> Path:
        shutil.copytree(model(name).parent, tmp_path / "model")
        return tmp_path / "model" / "model.onnx"

    return copy


def change(path: Path, edit: Callable[[onnx.ModelProto], None]) -> Path:
    proto = onnx.load(path, load_external_data=False)
    edit(proto)
    path.write_bytes(proto.SerializeToString())
    return path


def named(proto: onnx.ModelProto, name: str) -> Any:
    return next(node for node in proto.graph.node if node.name == name)


# --- compile ----------------------------------------------------------------------------------


def test_compile_writes_a_folder_and_says_what_fits(run: Run, model, tmp_path: Path):
    out = tmp_path / "deep" / "out"
    result = run(
        "compile",
        model("llama"),
        "--target",
        "roma-mini",
        "-o",
        out,
        "--context",
        "64",
        "--emit",
        "program",
    )
    assert result.code == 0 and result.err == ""
    assert {"manifest.json", "mapping.json", "program.json"} <= {p.name for p in out.iterdir()}
    assert (
        "ROM " in result.out
        and "64 tokens" in result.out
        and "tokens/s at position 63" in result.out
    )
    again = run("compile", model("llama"), "--target", "roma-mini", "--emit", "program", "-o", out)
    assert again.code == 0 and "tokens/s at position 127" in again.out
    # Both ends of the context: who has the critical path, and how far the nearest bound is.
    limits = [line for line in again.out.splitlines() if line.startswith("  limits  At position ")]
    assert ["position 0 " in limits[0], "position 127 " in limits[1]] == [True, True]
    assert again.out.count("The nearest bound") == 2


@pytest.mark.parametrize("stage", ["rom", "integer", "fabric"])
def test_compile_stops_at_a_stage(run: Run, model, tmp_path: Path, stage: str):
    out = tmp_path / "out"
    arguments = ("--target", "roma-mini", "--emit", stage, "-o", out)
    assert run("compile", model("llama"), *arguments).code == 0
    assert (out / "ir" / f"{stage}.mlir").is_file() and not (out / "program.json").exists()


def test_settings_and_slots_reach_the_compiler(run: Run, model, tmp_path: Path):
    out = tmp_path / "out"
    arguments = ["--target", "roma-mini", "--set", "activations=int16", "--set", "kv=int16"]
    result = run(
        "compile",
        model("llama"),
        *arguments,
        "--emit",
        "program",
        "--adapter-slots",
        "4:qkv_proj,o_proj",
        "-o",
        out,
    )
    assert result.code == 0, result.err
    content = run("inspect", out, "--format", "json").json
    assert content["formats"]["activations"] == "int16" and content["formats"]["kv"] == ["int16"]
    assert content["sram"]["adapter_slot_bytes"] > 0
    assert content["settings"] == ["activations=int16", "kv=int16"]


def test_the_mapping_can_be_followed(run: Run, model, compiled, tmp_path: Path):
    mapping = json.loads((compiled("llama") / "mapping.json").read_text())
    head = next(one for one in mapping["matrices"] if one["name"] == "lm_head")
    head["pieces"] = [{"rows": [0, 256], "tiles": [2, 4], "split": 1}]
    path, out = tmp_path / "mapping.json", tmp_path / "out"
    path.write_text(json.dumps(mapping))
    arguments = ("--target", "roma-mini", "--mapping", path, "--emit", "program", "-o", out)
    assert run("compile", model("llama"), *arguments).code == 0
    ours, theirs = load(out), load(compiled("llama"))
    assert ours.generate([1, 2, 3], 4) == theirs.generate([1, 2, 3], 4)
    assert ours.cycles(0) > theirs.cycles(0)


def test_other_folders_are_left_alone(refused, model, tmp_path: Path):
    (tmp_path / "precious").write_text("data")
    message = refused("compile", model("llama"), "--target", "roma-mini", "-o", tmp_path)
    assert message.startswith(f"{tmp_path}: this exists and is no output of intaglio")
    assert (tmp_path / "precious").read_text() == "data"


def test_missing_model(refused_compile, tmp_path: Path):
    path = tmp_path / "nothing.onnx"
    assert str(path) in refused_compile(path)


def test_truncated_model(refused_compile, editable):
    path = editable("llama")
    path.write_bytes(path.read_bytes()[:-40])
    assert refused_compile(path).startswith(f"{path}: ")


def test_text_instead_of_a_model(refused_compile, tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_text("this is no model\n" * 20)
    assert refused_compile(path).startswith(f"{path}: ")


def test_missing_external_data(refused_compile, editable):
    path = editable("llama")
    path.with_name("model.onnx.data").unlink()
    message = refused_compile(path)
    assert str(path) in message and "model.onnx.data" in message


def test_short_external_data(refused_compile, editable):
    path = editable("llama")
    data = path.with_name("model.onnx.data")
    data.write_bytes(data.read_bytes()[:1000])
    message = refused_compile(path)
    assert str(path) in message and "model.onnx.data" in message


@pytest.mark.parametrize("location", ["../outside.data", "/etc/passwd", "sub/../../outside.data"])
def test_external_data_outside_the_folder(refused_compile, editable, location: str):
    path = editable("llama")
    shutil.copy(path.with_name("model.onnx.data"), path.parent.parent / "outside.data")

    def escape(proto: onnx.ModelProto) -> None:
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = location

    message = refused_compile(change(path, escape))
    assert str(path) in message and location in message


def test_external_data_by_a_link(refused_compile, editable, run: Run):
    path = editable("llama")
    data = path.with_name("model.onnx.data")
    data.rename(path.parent.parent / "outside.data")
    data.symlink_to(path.parent.parent / "outside.data")
    assert "model.onnx.data" in refused_compile(path)


def test_all_unsupported_nodes_are_listed(refused_compile, editable):
    path = editable("llama")

    def spoil(proto: onnx.ModelProto) -> None:
        named(proto, "/model/layers.0/mlp/act_fn/Sigmoid").op_type = "Softsign"
        named(proto, "/model/layers.1/mlp/act_fn/Sigmoid").op_type = "Selu"

    lines = refused_compile(change(path, spoil))
    for number, op in enumerate(("Softsign", "Selu")):
        place = f"{path}: node '/model/layers.{number}/mlp/act_fn/Sigmoid' ({op}): "
        assert place in lines


def test_wrong_shapes(refused_compile, editable):
    path = editable("llama")

    def spoil(proto: onnx.ModelProto) -> None:
        node = named(proto, "/model/layers.1/attn/o_proj/MatMul")
        next(a for a in node.attribute if a.name == "K").i = 96

    message = refused_compile(change(path, spoil))
    assert f"{path}: node '/model/layers.1/attn/o_proj/MatMul' (MatMulNBits): " in message


def test_float_weights(refused_compile, tmp_path: Path):
    path = tmp_path / "model.onnx"
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 32])
    table = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "input_ids"], ["x"], "embed"),
            helper.make_node("MatMul", ["x", "head"], ["logits"], "head"),
        ],
        "main",
        [ids],
        [logits],
        [
            onnx.numpy_helper.from_array(v, n)
            for n, v in (("table", table), ("head", table.T.copy()))
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]), path)
    message = refused_compile(path)
    assert f"{path}: node 'head' (MatMul): " in message and "--weights int4:" in message


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--context", "0"], "--context 0: "),
        (["--context", "-5"], "--context -5: "),
        (["--context", "200"], "128"),
        (["--set", "h_unit.sram_bytes=1024"], "SRAM"),
        (["--set", "l_unit.rom_bits=8192"], "ROM"),
        (["--set", "colour=red"], "--set colour=red: target 'roma-mini' has no parameter 'colour'"),
        (["--set", "activations=int3"], "--set activations=int3: "),
        (["--set", "activations"], "--set activations: not of the form key=value"),
        (["--weights", "int5"], "int5"),
        (["--resident-adapters", "2"], "--resident-adapters 2: there are no slots for them"),
        (["--adapter-slots", "4", "--resident-adapters", "0"], "hold at least one adapter"),
        (["--adapter-slots", "many"], "adapter slots 'many' are not of the form"),
        (["--adapter-slots", "4:"], "adapter slots '4:' are not of the form"),
        (["--adapter-slots", "4:nowhere"], "nowhere"),
        (["--mapping", "/nowhere.json"], "/nowhere.json: "),
        (["--emit", "silicon"], "invalid choice: 'silicon'"),
        (["--context", "many"], "argument --context: invalid int value: 'many'"),
    ],
)
def test_wrong_options(refused_compile, model, arguments: list[str], message: str):
    assert message in refused_compile(model("llama"), *arguments)


def test_unknown_target(refused_compile, model):
    message = refused_compile(model("llama"), target="rome")
    assert message.startswith("no target is called 'rome'") and "roma" in message


@pytest.mark.parametrize(
    "arguments",
    [
        ("--set", "h_unit.sram_bytes=1024"),
        ("--set", "l_unit.rom_bits=8192"),
        ("--adapter-slots", "4:nowhere"),
    ],
)
def test_errors_of_passes_name_the_model(refused_compile, model, arguments: tuple[str, ...]):
    assert refused_compile(model("llama"), *arguments).startswith(f"{model('llama')}: ")


def test_weights_without_cells_name_nodes(refused_compile, model):
    message = refused_compile(model("llama"), target="tom-mini")
    place = f"{model('llama')}: node '/model/layers.0/attn/qkv_proj/MatMul': weights "
    assert message.startswith(place)
    assert "are int4, which tom-mini has no cells for, and " in message


def test_weights_that_change_nothing_are_said(run: Run, model, tmp_path: Path):
    options = ("--target", "roma-mini", "--emit", "rom", "-o", tmp_path / "out")
    assert run("compile", model("llama"), *options).err == ""
    result = run("compile", model("llama"), *options, "--weights", "int4:32")
    assert result.code == 0 and "warning: --weights changed nothing: " in result.err


def test_a_folder_that_cannot_be_written(refused, model, tmp_path: Path):
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / "out"
    message = refused("compile", model("llama"), "--target", "roma-mini", "-o", out)
    assert str(tmp_path / "file") in message


# --- run --------------------------------------------------------------------------------------


def test_run_json(run: Run, compiled, tmp_path: Path):
    out, logits = compiled("llama"), tmp_path / "logits.npy"
    arguments = ("--prompt-ids", "5,6,7", "--tokens", "6", "--json", "--logits", logits)
    result = run("run", out, *arguments).json
    chip = load(out)
    assert result["engine"] == "simulator" and result["prompt_ids"] == [5, 6, 7]
    assert result["tokens"] == chip.generate([5, 6, 7], 6)
    cycles = chip.generation_cycles(3, 6)
    assert result["prefill_cycles"] == cycles.prefill
    assert result["cycles"] == list(cycles.tokens) and len(result["cycles"]) == 6
    mean = sum(result["cycles"][1:]) / 5
    assert result["tokens_per_second"] == pytest.approx(500e6 / mean)
    stored = np.load(logits)
    assert stored.dtype == np.float32 and stored.shape == (6, 256)
    assert stored.argmax(-1).tolist() == result["tokens"]
    exact = chip.simulator.forward([5, 6, 7, *result["tokens"][:-1]])[2:]
    assert np.array_equal(stored * 2.0**chip.simulator.fraction_bits, exact)
    assert [p.name for p in tmp_path.iterdir()] == ["logits.npy"]


def test_run_finds_out_first_that_logits_cannot_be_written(
    refused, compiled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def stream(*arguments: object) -> None:
        raise AssertionError("tokens are generated")

    monkeypatch.setattr("intaglio.runtime.text.decoding.decode", stream)
    arguments = ("--prompt-ids", "1", "--tokens", "1", "--logits")
    for path in (tmp_path, tmp_path / "no" / "x.npy"):
        message = refused("run", compiled("llama"), *arguments, path)
        assert message.startswith(f"{path}: ") and "partial" not in message


def test_the_work_of_hardware_is_said(
    run: Run, compiled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    def no_hardware(*arguments: object, **options: object) -> None:
        raise UserError("stop here")

    monkeypatch.setattr("intaglio.runtime.engines.rtl.RTLChip", no_hardware)
    chip = load(compiled("llama"))
    instructions = sum(len(b.instructions) * len(b.instances) for b in chip.program.blocks)
    arguments = ("--engine", "rtl", "--tokens", "4")
    for command in (("run", "--prompt-ids", "1,2"), ("check", "--trace", str(tmp_path / "x.vcd"))):
        name, *rest = command
        result = run(name, chip.folder, *rest, *arguments)
        assert result.code == 1 and result.err.startswith("rtl: builds the hardware (512 ")
        count = 5 if name == "run" else 4
        assert f"at most {count} tokens of {instructions} beats and up to " in result.err
        assert "stop here" in result.err and "takes long" not in result.err


@pytest.mark.parametrize("engine", ["rtl", "verilator"])
@pytest.mark.parametrize("command", ["run", "check"])
def test_no_work_is_said_of_hardware_that_does_not_exist(
    run: Run, refused, model, tmp_path: Path, engine: str, command: str
):
    out, settings = tmp_path / "out", ("activations=half8", "formats.block=32")
    given = [text for one in settings for text in ("--set", one)]
    assert run("compile", model("tied"), "--target", "roma-mini", "-o", out, *given).code == 0
    ids = ("--prompt-ids", "1") if command == "run" else ()
    message = refused(command, out, *ids, "--tokens", "1", "--engine", engine)
    assert message.startswith("a block of 32 is more than the 16 vector lanes\n")
    assert "builds the hardware" not in message


def test_no_work_is_said_where_the_adapter_does_not_exist(refused, compiled):
    given = ("--prompt-ids", "1", "--tokens", "1", "--engine", "rtl", "--adapter", "none")
    message = refused("run", compiled("llama"), *given)
    assert "builds the hardware" not in message


def test_run_text(run: Run, compiled):
    result = run("run", compiled("llama"), "--prompt", "Once ", "--tokens", "8")
    assert result.code == 0 and result.err == ""
    assert result.out.startswith("Once ") and "cycles" in result.out
    assert "tokens/s at 500 MHz" in result.out
    content = run("run", compiled("llama"), "--prompt", "Once ", "--tokens", "8", "--json").json
    assert content["prompt_ids"] == list(b"Once ")
    assert result.out.startswith("Once " + content["text"])


def test_run_one_token(run: Run, compiled):
    result = run("run", compiled("tied"), "--prompt-ids", "1", "--tokens", "1", "--json").json
    assert result["tokens_per_second"] is None
    assert result["cycles"] == [result["prefill_cycles"]]
    text = run("run", compiled("tied"), "--prompt-ids", "1", "--tokens", "1").out
    assert text.split()[0] == str(result["tokens"][0])


def test_run_onnxruntime(run: Run, compiled):
    out = compiled("phi")
    arguments = ("--prompt-ids", "1,2", "--tokens", "5", "--engine", "onnxruntime", "--json")
    result = run("run", out, *arguments).json
    expected = [token for token, _ in load(out).reference().generate([1, 2], 5)]
    assert result["tokens"] == expected and result["engine"] == "onnxruntime"
    assert result["cycles"] is None and result["tokens_per_second"] > 0


@pytest.mark.parametrize(
    "arguments,message",
    [
        ([], "no prompt is given"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt-ids", ""], "the prompt is empty"),
        (["--prompt-ids", "1,two"], "--prompt-ids 1,two: not a list of token ids"),
        (["--prompt-ids", "1,256"], "token id 256 is out of range"),
        (["--prompt-ids", "-1"], "token id -1 is out of range"),
        (["--prompt", "a", "--prompt-ids", "1"], "not allowed with argument"),
        (["--prompt", "a" * 129], "the prompt has 129 tokens, the KV caches hold 128"),
        (["--prompt", "a" * 126], "126 prompt tokens and 4 generated ones need 129 positions"),
        (["--prompt", "a", "--engine", "fpga"], "invalid choice: 'fpga'"),
        (["--prompt", "a", "--tokens", "0"], "cannot generate 0 tokens"),
        (["--prompt", "a", "--logits", "/nowhere/x.npy"], "/nowhere/"),
    ],
)
def test_run_refuses(run: Run, compiled, arguments: list[str], message: str):
    result = run("run", compiled("llama"), "--tokens", "4", *arguments)
    assert result.code == 1 and message in result.err and "Traceback" not in result.err


@pytest.mark.parametrize(
    ("name", "context", "remedy"),
    [
        # OPT's table has 128 rows for positions, as many as the whole context.
        ("learned", None, "a longer --context is not possible: the model's own table has 128"),
        ("learned", "8", "compile with a --context of up to 128"),
        # Nothing of it is stored by position.
        ("alibi", "8", "compile with a longer --context"),
    ],
)
def test_run_says_what_gives_more_positions(
    run: Run, model, tmp_path: Path, name: str, context: str | None, remedy: str
):
    more = [] if context is None else ["--context", context]
    run("compile", model(name), "--target", "roma-mini", *more, "-o", tmp_path / "out")
    size = 128 if context is None else int(context)
    for prompt, room in (
        (size + 1, ""),
        (size, "at most 1 token; "),
        (size - 2, "at most 3 tokens; "),
    ):
        ids = ",".join(["1"] * prompt)
        result = run("run", tmp_path / "out", "--prompt-ids", ids, "--tokens", "5")
        assert result.code == 1 and f"{room}{remedy}" in result.err


def test_commands_need_a_compiled_folder(refused, tmp_path: Path, run: Run, model):
    for command in (["run", "--prompt-ids", "1", "--tokens", "1"], ["check"], ["inspect"]):
        name, *rest = command
        message = refused(name, tmp_path, *rest)
        assert message.startswith(f"{tmp_path}: this folder holds no compiled program")
    out = tmp_path / "out"
    run("compile", model("llama"), "--target", "roma-mini", "--emit", "rom", "-o", out)
    message = refused("run", out, "--prompt-ids", "1", "--tokens", "1")
    assert message.startswith(f"{out}: the compile of this folder stopped at rom, before there was")


@pytest.mark.parametrize(
    ("opcode", "edit", "said"),
    [
        ("matvec", lambda one: one["arguments"].pop("pre_shift"), "has no argument 'pre_shift'"),
        ("matvec", lambda one: one["uses"].pop("weights"), "has no role 'weights'"),
        (
            "matvec",
            lambda one: one["reads"].clear(),
            "reads 2 or 3 values (input, norm, residual), not",
        ),
        (
            "rms_norm",
            lambda one: one["arguments"].update(groups=1 << 16),
            "argument 'groups' of 'rms_norm' is 65536, which 16 bits do not hold",
        ),
        (
            "softmax_places",
            lambda one: one.update(reads=one["writes"]),
            "'softmax_places' reads scores as scores; '",
        ),
    ],
)
def test_damaged_instructions(
    refused,
    run: Run,
    compiled,
    model,
    tmp_path: Path,
    opcode: str,
    edit: Callable[[Any], object],
    said: str,
):
    """A user's error that names the instruction and what is wrong of it."""
    out = tmp_path / "out"
    if opcode == "rms_norm":
        # With exponents a block norms are parts of products.
        run(
            "compile",
            model("llama"),
            *["--target", "roma-mini", "--set", "activations=int8", "-o"],
            out,
        )
    else:
        shutil.copytree(compiled("llama"), out)
    content = json.loads((out / "program.json").read_text())
    block, number, one = next(
        (block, number, one)
        for block, each in enumerate(content["blocks"])
        for number, one in enumerate(each["instructions"])
        if one["opcode"] == opcode
    )
    edit(one)
    (out / "program.json").write_text(json.dumps(content))
    for command in (("inspect", out), ("run", out, "--prompt-ids", "1", "--tokens", "1")):
        message = refused(*command)
        place = f"blocks[{block}].instructions[{number}]: "
        assert place in message and f"'{opcode}'" in message and said in message
        assert "compile the model again" in message


def test_damaged_images(refused, compiled, tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(compiled("llama"), out)
    image = out / "rom" / "matrices.bin"
    image.write_bytes(image.read_bytes()[:100])
    message = refused("run", out, "--prompt-ids", "1", "--tokens", "1")
    assert message.startswith(f"{image}: is shorter than its program says")
    for schema in (1, 99):
        (out / "program.json").write_text(f'{{"schema": {schema}}}')
        message = refused("inspect", out)
        assert f"has schema {schema}, this version reads {SCHEMA}\n" in message
        assert "compile the model again" in message
    (out / "program.json").write_text("{")
    assert str(out / "program.json") in refused("inspect", out)


# --- check ------------------------------------------------------------------------------------


def test_check_json(run: Run, compiled, tmp_path: Path):
    result = run("check", compiled("llama"), "--tokens", "40", "--json").json
    keys = {"tokens_compared", "top1_agreement", "max_abs_logit_error", "mean_kl"}
    assert keys | {"first_divergence", "saturations"} <= set(result)
    assert result["tokens_compared"] == 40 and "perplexity" not in result
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog.\n" * 4)
    result = run("check", compiled("llama"), "--text", text, "--json").json
    assert {"perplexity", "reference_perplexity", "float_reference_perplexity"} <= set(result)


def test_check_text_and_operators(run: Run, compiled):
    result = run("check", compiled("tied"), "--tokens", "20", "--per-op")
    assert result.code == 0 and "20 tokens in 1 window" in result.out
    assert "/model/layers.1/mlp/Mul" in result.out and "no operator is above 5%" in result.out


def test_check_of_changed_images(refused, run: Run, compiled, tmp_path: Path):
    out = tmp_path / "out"
    shutil.copytree(compiled("llama"), out)
    image = out / "rom" / "matrices.bin"
    content = bytearray(image.read_bytes())
    part = load(out).program.parameters["lm_head"].codes
    assert part is not None
    content[part.offset + 3] ^= 1
    image.write_bytes(content)
    message = refused("check", out, "--tokens", "4")
    assert message.startswith(f"{image}: has other bytes than the compile wrote in lm_head: ")
    image.write_bytes(content[:-100])
    message = refused("check", out, "--tokens", "4")
    assert message.startswith(f"{image}: is shorter than its program says")
    image.unlink()
    assert refused("check", out, "--tokens", "4").startswith(f"{image}: cannot be read")


def test_check_says_which_graph_is_judged(run: Run, compiled, editable, tmp_path: Path):
    def float_head(proto: onnx.ModelProto) -> None:
        node = named(proto, "/lm_head/MatMul")
        head = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(head, "float_head"))
        product = helper.make_node("MatMul", [node.input[0], "float_head"], node.output, node.name)
        node.CopyFrom(product)

    plain = run("check", compiled("llama"), "--tokens", "4", "--json").json
    assert (plain["judged_graph"], plain["judged_weights"]) == ("reference/model.onnx", None)
    out = tmp_path / "out"
    options = ("--target", "roma-mini", "--emit", "program", "-o", out, "--weights", "int4:16")
    assert run("compile", change(editable("llama"), float_head), *options).err == ""
    found = run("check", out, "--tokens", "4", "--json").json
    assert (found["judged_graph"], found["judged_weights"]) == ("reference/model.onnx", "int4:16")
    text = run("check", out, "--tokens", "4").out
    assert "whose weights are rounded to int4:16; not the file that was compiled" in text


def test_check_tolerances(run: Run, compiled):
    out = compiled("llama")
    met = ("--tolerance", "top1_agreement=0.5", "--tolerance", "max_abs_logit_error=9")
    assert run("check", out, "--tokens", "20", *met).code == 0
    result = run("check", out, "--tokens", "20", "--json", *met, "--tolerance", "mean_kl=0")
    assert result.code == 1 and "mean_kl is " in result.err and json.loads(result.out)


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["--tolerance", "speed=1"], "'speed' cannot be bounded"),
        (["--tolerance", "perplexity=3"], "only with --text"),
        (["--tokens", "0"], "cannot compare 0 tokens"),
        (["--windows", "2"], "--windows: only with --text"),
        (["--text", "/nowhere"], "/nowhere: cannot be read"),
        (["--prompt-ids", "300"], "token id 300 is out of range"),
        (["--text", "x", "--prompt-ids", "1"], "not allowed with argument"),
        (["--engine", "onnxruntime"], "invalid choice: 'onnxruntime'"),
        (["--trace-cycles", "1:2"], "--trace-cycles: only with --trace"),
    ],
)
def test_check_refuses(refused, compiled, arguments: list[str], message: str):
    assert message in refused("check", compiled("llama"), *arguments)


# --- the others -------------------------------------------------------------------------------


def test_targets(run: Run, refused):
    assert "roma-mini" in run("targets").out
    names = [target["name"] for target in run("targets", "--json").json["targets"]]
    assert names == sorted(names) and {"roma", "roma-mini"} <= set(names)
    assert "assumed" in run("targets", "roma").out
    assert run("targets", "roma", "--json").json["name"] == "roma"
    assert "no target is called 'rom'" in refused("targets", "rom")


def test_ops(run: Run):
    operators = run("ops", "--json").json["operators"]
    names = {(one["domain"], one["op_type"]) for one in operators}
    assert {("com.microsoft", "MatMulNBits"), ("ai.onnx", "LayerNormalization")} <= names
    text = run("ops").out
    assert all(f"  {name} (since" in text for _, name in names)


def test_the_instructions(run: Run):
    found = run("ops", "--instructions", "--json").json["instructions"]
    assert [(one["opcode"], one["queue"]) for one in found] == [
        (one.opcode, one.queue) for one in INSTRUCTIONS
    ]
    softcap = next(one for one in found if one["opcode"] == "softcap")
    number = "[mantissa (signed, 25 bits), exponent (signed, 11 bits)]"
    assert softcap["arguments"] == [
        {"name": name, "of": number, "optional": False} for name in ("inverse", "cap")
    ]
    assert softcap["meaning"] == ["elementwise.softcap"]
    text = run("ops", "--instructions").out
    for one in found:
        (entry,) = re.findall(
            rf"^{one['opcode']} \(queue {one['queue']}\)\n(?:  .*\n|\n(?=  ))*", text, re.M
        )
        for key in ("reads", "writes", "uses", "arguments"):
            named = re.findall(rf"^    {key} +(\w+)", entry, re.M)
            assert named == [part["name"] for part in one[key]]


def test_inspect_to_a_file(run: Run, compiled, tmp_path: Path, refused):
    out, file = compiled("llama"), tmp_path / "report"
    assert run("inspect", out, "-o", file) == (0, "", "")
    assert file.read_text() == run("inspect", out).out
    assert run("inspect", out, "--format", "json", "-o", file).code == 0
    assert json.loads(file.read_text()) == run("inspect", out, "--format", "json").json
    assert "No such file" in refused("inspect", out, "-o", tmp_path / "no" / "report")


def test_inspect_formats(run: Run, compiled, tmp_path: Path, refused):
    out, file = compiled("llama"), tmp_path / "report"
    for form, beginning in (("html", "<!DOCTYPE html>"), ("perfetto", '{"displayTimeUnit"')):
        text = run("inspect", out, "--format", form).out
        assert text.startswith(beginning)
        assert run("inspect", out, "--format", form, "-o", file) == (0, "", "")
        assert file.read_text() == text
    chosen = run("inspect", out, "--format", "json", "--position", "5, 9").json
    assert [one["position"] for one in chosen["positions"]] == [5, 9]
    trace = run("inspect", out, "--format", "perfetto", "--position", "5,9").json
    assert trace["otherData"]["position"] == 9
    beats = run("inspect", out, "--format", "perfetto", "--position", "5,9", "--beats").json
    assert beats["otherData"] == trace["otherData"]
    more = len(beats["traceEvents"])
    assert beats["traceEvents"][: len(trace["traceEvents"])] == trace["traceEvents"]
    assert more > len(trace["traceEvents"])
    for form in ("text", "json", "html", "svg"):
        assert "--format perfetto does" in refused("inspect", out, "--format", form, "--beats")
    assert "not a list of positions" in refused("inspect", out, "--position", "5,-1")
    assert "out of range" in refused("inspect", out, "--position", "4096")


def test_usage_is_the_users_error(refused, run: Run, capsys: pytest.CaptureFixture[str]):
    assert "usage: intaglio" in refused()
    assert "invalid choice: 'polish'" in refused("polish")
    assert "required: --target, -o" in refused("compile", "x.onnx")
    with pytest.raises(SystemExit) as stop:
        run("--version")
    assert stop.value.code == 0 and capsys.readouterr().out.startswith("intaglio ")


def test_bugs_are_told_apart(run: Run, monkeypatch: pytest.MonkeyPatch, refused):
    def broken(error: Exception) -> None:
        def raises(args: object) -> int:
            raise error

        monkeypatch.setattr(cli, "_ops", raises)

    broken(CompilerBug("the module is wrong after nothing"))
    result = run("ops")
    assert result.code == 2 and "Traceback" not in result.err
    assert "the module is wrong after nothing\n  this is a bug of intaglio" in result.err
    broken(ZeroDivisionError("division by zero"))
    assert run("ops").err.startswith("ZeroDivisionError: division by zero")
    for arguments in (["--debug", "ops"], ["ops", "--debug"]):
        with pytest.raises(ZeroDivisionError):
            run(*arguments)
    broken(OSError(28, "No space left on device", "somewhere"))
    assert refused("ops") == "somewhere: No space left on device\n"
    broken(KeyboardInterrupt())  # pyright: ignore[reportArgumentType]
    assert run("ops").code == 130


def test_a_reader_that_goes_away(compiled):
    command = [sys.executable, "-m", "intaglio.runtime.cli", "inspect", str(compiled("llama"))]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert done.returncode == 1 and done.stderr == b""


@pytest.mark.parametrize("command", ["ops", "targets", "targets roma-mini --json"])
@pytest.mark.parametrize("where", [">&-", ">/dev/full"])
def test_an_output_that_takes_nothing(command: str, where: str):
    """What is wrong is one line, and no bug."""
    text = f'"{sys.executable}" -m intaglio.runtime.cli {command} {where}'
    done = subprocess.run(["sh", "-c", text], stderr=subprocess.PIPE, text=True, check=False)
    (line,) = done.stderr.splitlines()
    assert line.startswith("standard output ") and done.returncode == 1


def test_small_commands_import_little():
    code = (
        "import sys; from intaglio.runtime.cli import main; main(['targets']); "
        "sys.exit(bool({'numpy', 'onnx', 'xdsl', 'onnxruntime', 'rich'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_progress_is_for_terminals(monkeypatch: pytest.MonkeyPatch, run: Run, model, tmp_path):
    arguments = ("compile", model("llama"), "--target", "roma-mini", "-o", tmp_path / "out")
    assert run(*arguments).err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert "fabric" in run(*arguments).err
