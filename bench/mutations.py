"""A campaign of mutated graphs and files: right, or refused, and nothing else.

    python bench/mutations.py [--count 5000] [--seed 2026] [--jobs 2] [--only KIND] [--log FILE]

Every case takes a small model of test/models, changes one thing by a seeded draw (graph, attribute,
shape, weights, bytes of a file, companion files, an adapter, a target or mapping file, a file of an
output folder), and gives it to the commands that a user would. What is accepted is compared with
onnxruntime on the same file, with activations and KV of 16 bits, so that a wrong value shows. A
case is a fault where a command

- ends with another status than 0 or 1, or prints a traceback,
- takes more than `SECONDS` of the processor, `STUCK` in all, or more than `BYTES` of memory,
- accepts a graph whose logits are more than `ERROR` of their range from onnxruntime's, and neither
  a warning nor a counted saturation says so,
- answers otherwise than before, though a file of its output folder has changed.

Faults are listed with seed and number; `--case N` runs one again and keeps its folder. Each case
runs in a process of its own, forked with everything imported.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import resource
import shutil
import signal
import sys
import tempfile
import tomllib
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from intaglio.runtime import cli

SECONDS = 30
STUCK = 300
BYTES = 4 << 30
ERROR = 0.05
ROOT = Path(__file__).parents[1]
MODELS = ("llama", "tied", "qwen", "phi", "int8", "ternary")
TARGET = "roma-mini"
PRECISE = ("--set", "activations=int16", "--set", "kv=int16")
TOKENS = "8"

Rng = np.random.Generator
INTEGERS = (-(2**63), -1, 0, 1, 2, 3, 5, 7, 16, 64, 2**31, 2**40)
FLOATS = (0.0, -1.0, 1e-30, 1e-5, 0.5, 3.0, 1e4, 1e30, math.inf, math.nan)


@dataclass
class Result:
    """What came of one case."""

    number: int
    kind: str
    change: str = ""
    outcome: str = ""
    fault: str = ""
    seconds: float = 0.0
    peak: int = 0
    said: list[str] = field(default_factory=list)


# Graphs


def _pick(rng: Rng, items: Any) -> Any:
    items = list(items)
    if not items:
        raise LookupError("nothing to change")
    return items[int(rng.integers(len(items)))]


def _names(graph: onnx.GraphProto) -> list[str]:
    own = [one.name for one in (*graph.input, *graph.initializer)]
    return own + [name for node in graph.node for name in node.output if name]


def drop_node(rng: Rng, model: onnx.ModelProto) -> str:
    """A node is gone."""
    index = int(rng.integers(len(model.graph.node)))
    name = model.graph.node[index].name
    del model.graph.node[index]
    return name


def rewire(rng: Rng, model: onnx.ModelProto) -> str:
    """An input reads another tensor of the graph."""
    node = _pick(rng, (node for node in model.graph.node if node.input))
    place = int(rng.integers(len(node.input)))
    node.input[place] = _pick(rng, [*_names(model.graph), "", "nowhere"])
    return f"{node.name} input {place} = {node.input[place]}"


def swap_inputs(rng: Rng, model: onnx.ModelProto) -> str:
    """Two inputs of a node change places."""
    node = _pick(rng, (node for node in model.graph.node if len(node.input) > 1))
    a, b = (int(one) for one in rng.choice(len(node.input), 2, replace=False))
    node.input[a], node.input[b] = node.input[b], node.input[a]
    return f"{node.name} {a} {b}"


def arity(rng: Rng, model: onnx.ModelProto) -> str:
    """A node has an input or output more or less."""
    node = _pick(rng, model.graph.node)
    values = node.input if rng.integers(2) else node.output
    if rng.integers(2) and values:
        gone = values.pop()
        return f"{node.name} lost {gone}"
    values.append(_pick(rng, [*_names(model.graph), "", "another"]))
    return f"{node.name} gained {values[-1]}"


def rename(rng: Rng, model: onnx.ModelProto) -> str:
    """A node, tensor or graph input takes the name of another."""
    graph = model.graph
    kind = _pick(rng, (graph.node, graph.initializer, graph.input, graph.output))
    one, other = _pick(rng, kind), _pick(rng, kind)
    was, one.name = one.name, other.name
    return f"{was} -> {other.name}"


def twice(rng: Rng, model: onnx.ModelProto) -> str:
    """An initialiser is there twice, the second time with other values."""
    tensor = _pick(rng, (t for t in model.graph.initializer if t.data_type == 1))
    copy = model.graph.initializer.add()
    values = numpy_helper.to_array(tensor) * np.float32(_pick(rng, (1.0, 2.0, -1.0)))
    copy.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return tensor.name


def operator(rng: Rng, model: onnx.ModelProto) -> str:
    """A node is of another operator or domain."""
    node = _pick(rng, model.graph.node)
    was = node.op_type
    if rng.integers(3):
        node.op_type = _pick(rng, {other.op_type for other in model.graph.node} | {"Relu", "Exp"})
    else:
        node.domain = _pick(rng, ("", "com.microsoft", "ai.onnx.ml", "nobody"))
    return f"{node.name}: {was} -> {node.domain}:{node.op_type}"


def attribute(rng: Rng, model: onnx.ModelProto) -> str:
    """An attribute has another value, another type, is gone, or is unknown."""
    node = _pick(rng, (node for node in model.graph.node if node.attribute))
    index = int(rng.integers(len(node.attribute)))
    one = node.attribute[index]
    what = int(rng.integers(8))
    if what == 0:
        del node.attribute[index]
        return f"{node.name} lost {one.name}"
    if what == 1:
        node.attribute.append(helper.make_attribute("unheard_of", 1))
        return f"{node.name} gained unheard_of"
    value: Any = _pick(rng, INTEGERS)
    if one.type == onnx.AttributeProto.FLOAT or what == 2:
        value = float(_pick(rng, FLOATS))
    elif one.type == onnx.AttributeProto.STRING:
        value = _pick(rng, ("", "x", "int8"))
    with contextlib.suppress(ValueError, OverflowError):
        node.attribute[index].CopyFrom(helper.make_attribute(one.name, value))
    return f"{node.name} {one.name} = {value}"


def opset(rng: Rng, model: onnx.ModelProto) -> str:
    """Another version of an operator set, or of the file format."""
    if rng.integers(4) == 0:
        model.ir_version = int(_pick(rng, (0, 1, 7, 9, 12, 99)))
        return f"ir_version {model.ir_version}"
    one = _pick(rng, model.opset_import)
    one.version = int(_pick(rng, (0, 1, 7, 11, 13, 17, 20, 22, 24, 99)))
    return f"{one.domain} {one.version}"


def shape(rng: Rng, model: onnx.ModelProto) -> str:
    """An input or output of the graph has another shape or type."""
    graph = model.graph
    one = _pick(rng, (*graph.input, *graph.output))
    kind = one.type.tensor_type
    if rng.integers(4) == 0 or not kind.shape.dim:
        kind.elem_type = int(_pick(rng, (1, 2, 3, 6, 7, 9, 10, 16)))
        return f"{one.name} type {kind.elem_type}"
    dim = _pick(rng, kind.shape.dim)
    if rng.integers(2):
        dim.dim_value = int(_pick(rng, (0, 1, 2, 3, 17, 2**40)))
    else:
        dim.dim_param = str(_pick(rng, ("n", "batch_size", "sequence_length")))
    return f"{one.name} {dim}"


# Tensors


def _tensor(rng: Rng, model: onnx.ModelProto) -> tuple[onnx.TensorProto, np.ndarray]:
    tensor = _pick(rng, model.graph.initializer)
    return tensor, numpy_helper.to_array(tensor).copy()


def values(rng: Rng, model: onnx.ModelProto) -> str:
    """A tensor's values are scaled, cut, or hold an extreme element."""
    tensor, array = _tensor(rng, model)
    what = str(_pick(rng, ("scale", "one", "row", "zero", "random", "sign")))
    flat = array.reshape(-1)
    if not flat.size:
        raise LookupError("an empty tensor")
    if array.dtype.kind == "f":
        factor = array.dtype.type(_pick(rng, (1e-30, 1e-6, 1e-3, 0.1, 30, 1e3, 1e6, 1e30)))
        with np.errstate(all="ignore"):
            if what == "scale":
                array *= factor
            elif what == "one":
                flat[int(rng.integers(flat.size))] *= factor
            elif what == "row":
                array.reshape(len(array) if array.ndim else 1, -1)[0] *= factor
            elif what == "zero":
                flat[: max(1, flat.size // 4)] = 0
            elif what == "sign":
                array *= -1
            else:
                flat[int(rng.integers(flat.size))] = _pick(rng, (np.nan, np.inf, -np.inf, 0))
        what += f" {factor:g}"
    else:
        low, high = (0, 256) if array.dtype.itemsize == 1 else (-3, 1 << 20)
        count = max(1, flat.size // int(_pick(rng, (1, 4, flat.size))))
        flat[:count] = rng.integers(low, high, count).astype(array.dtype)
        what = f"codes {count}"
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return f"{tensor.name} {what}"


def form(rng: Rng, model: onnx.ModelProto) -> str:
    """A tensor has another shape or element type."""
    tensor, array = _tensor(rng, model)
    what = int(rng.integers(4))
    if what == 0:
        array = array.T.copy()
    elif what == 1:
        array = array.reshape(-1)
    elif what == 2:
        array = array[:-1] if array.ndim and len(array) > 1 else array.reshape(1, -1)
    else:
        kind = _pick(rng, (np.float16, np.float64, np.int64, np.int8, np.uint8, np.float32))
        with np.errstate(all="ignore"):
            array = array.astype(kind)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    return f"{tensor.name} {array.dtype}{list(array.shape)}"


def external(rng: Rng, model: onnx.ModelProto) -> str:
    """External data lie at another place."""
    tensor = _pick(rng, (t for t in model.graph.initializer if t.external_data))
    entry = _pick(rng, tensor.external_data)
    if entry.key == "location":
        entry.value = str(_pick(rng, ("", ".", "nothing.data", "model.onnx")))
    else:
        entry.value = str(_pick(rng, ("", "-1", "0", "1", "7", "4096", "1e3", str(2**62))))
    return f"{tensor.name} {entry.key} = {entry.value}"


def changed_graph(edit: Callable[[Rng, onnx.ModelProto], str], inline: bool = True) -> Callable:
    """A case that changes the graph, and is compiled and compared with onnxruntime."""

    def case(rng: Rng, folder: Path, result: Result) -> None:
        path = folder / "model.onnx"
        model = onnx.load(path, load_external_data=inline)
        result.change = edit(rng, model)
        path.write_bytes(model.SerializeToString())
        _compared(path, folder / "out", result)

    return case


# Files


def _damage(rng: Rng, path: Path) -> str:
    """Some bytes of a file are others, or its end is missing."""
    data = bytearray(path.read_bytes())
    if rng.integers(4) == 0 or not data:
        cut = int(rng.integers(len(data) + 1))
        path.write_bytes(data[:cut])
        return f"{path.name} cut to {cut}"
    places = rng.integers(0, len(data), int(rng.integers(1, 4)))
    for place in places:
        data[int(place)] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    return f"{path.name} bytes {places.tolist()}"


def _edit_json(rng: Rng, path: Path) -> str:
    """One value somewhere in a JSON file is another, or gone."""
    content = json.loads(path.read_text())
    place, way = content, []
    while isinstance(place, (dict, list)) and place:
        key = _pick(rng, place if isinstance(place, dict) else range(len(place)))
        way.append(key)
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.integers(6) == 0:
            break
        place = inner
    if not way:
        raise LookupError("an empty file")
    value = _pick(rng, (None, True, -1, 0, 3, 2**70, 0.5, "", "../x", [], {}, "1e999"))
    if rng.integers(5) == 0:
        del place[way[-1]]
        value = "gone"
    else:
        place[way[-1]] = value
    path.write_text(json.dumps(content))
    return f"{path.name} {'.'.join(map(str, way))} = {value}"


def model_bytes(rng: Rng, folder: Path, result: Result) -> None:
    """Bytes of the ONNX file."""
    result.change = _damage(rng, folder / "model.onnx")
    _compared(folder / "model.onnx", folder / "out", result)


def companions(rng: Rng, folder: Path, result: Result) -> None:
    """Bytes or values of the files beside the model."""
    path = _pick(rng, sorted(folder.glob("*.json")))
    result.change = (_edit_json if rng.integers(2) else _damage)(rng, path)
    if _command(result, "compile", folder / "model.onnx", *_compile(folder / "out")) == 0:
        _command(result, "run", folder / "out", "--prompt-ids", "1,2", "--tokens", "2", "--json")


def adapter(rng: Rng, folder: Path, result: Result) -> None:
    """Bytes or values of a PEFT folder."""
    shutil.copytree(BASES["adapter"], folder / "adapter")
    shutil.copytree(BASES["slots"], folder / "out")
    path = _pick(rng, sorted((folder / "adapter").iterdir()))
    edits = (_edit_json, _damage) if path.suffix == ".json" else (_damage,)
    result.change = _pick(rng, edits)(rng, path)
    if _command(result, "adapter", "add", folder / "out", "one", folder / "adapter") == 0:
        command = ("check", folder / "out", "--adapter", "one", "--tokens", TOKENS, "--json")
        _judged(result, _command(result, *command))


def target_file(rng: Rng, folder: Path, result: Result) -> None:
    """A value of a target file."""
    text = (ROOT / "backend" / "targets" / f"{TARGET}.toml").read_text()
    lines = [i for i, line in enumerate(text.splitlines()) if "value = " in line]
    number = int(_pick(rng, lines))
    rows = text.splitlines()
    head, _, rest = rows[number].partition("value = ")
    new = _pick(rng, ("0", "-1", "1", "3", "4096", "1e30", "nan", '"x"', "[]", "true", str(2**80)))
    rows[number] = f"{head}value = {new}{rest[rest.find(',') :] if ',' in rest else ' }'}"
    path = folder / "target.toml"
    path.write_text("\n".join(rows) + "\n")
    result.change = rows[number][:60]
    with contextlib.suppress(tomllib.TOMLDecodeError):
        tomllib.loads(path.read_text())
    out = folder / "out"
    _compared(folder / "model.onnx", out, result, "--target", path, *_compile(out)[2:])


def mapping(rng: Rng, folder: Path, result: Result) -> None:
    """A value of a mapping file that is fed back."""
    path = folder / "mapping.json"
    shutil.copy(BASES["out"] / "mapping.json", path)
    result.change = _edit_json(rng, path)
    out = folder / "out"
    _compared(folder / "model.onnx", out, result, *_compile(out), "--mapping", path)


def output(rng: Rng, folder: Path, result: Result) -> None:
    """A file of an output folder: whatever still runs answers as before."""
    out = folder / "out"
    shutil.copytree(BASES["out"], out)
    path = _pick(rng, sorted(p for p in out.rglob("*") if p.is_file() and "ir" not in p.parts))
    edits = (_edit_json, _damage) if path.suffix == ".json" else (_damage,)
    try:
        result.change = _pick(rng, edits)(rng, path)
    except json.JSONDecodeError as error:
        raise LookupError("no JSON") from error
    command = ("run", out, "--prompt-ids", "1,2", "--tokens", "3", "--json")
    if _command(result, *command) == 0:
        tokens = json.loads(result.said[-1].partition("\0")[2])["tokens"]
        result.outcome = "answers as before"
        if tokens != ANSWER:
            result.fault = f"{tokens} for {ANSWER}"


KINDS: dict[str, tuple[int, Callable[[Rng, Path, Result], None]]] = {
    "drop_node": (4, changed_graph(drop_node)),
    "rewire": (6, changed_graph(rewire)),
    "swap_inputs": (5, changed_graph(swap_inputs)),
    "arity": (5, changed_graph(arity)),
    "rename": (4, changed_graph(rename)),
    "twice": (2, changed_graph(twice)),
    "operator": (4, changed_graph(operator)),
    "attribute": (10, changed_graph(attribute)),
    "opset": (3, changed_graph(opset)),
    "shape": (4, changed_graph(shape)),
    "values": (16, changed_graph(values)),
    "form": (6, changed_graph(form)),
    "external": (3, changed_graph(external, inline=False)),
    "model_bytes": (6, model_bytes),
    "companions": (3, companions),
    "adapter": (6, adapter),
    "target_file": (5, target_file),
    "mapping": (4, mapping),
    "output": (8, output),
}
"""For each kind how often it is drawn, and the case."""

BASES: dict[str, Path] = {}
ANSWER: list[int] = []


# Commands


def _compile(out: Path) -> tuple[Any, ...]:
    return ("--target", TARGET, "--emit", "program", *PRECISE, "-o", out)


def _command(result: Result, *arguments: Any) -> int:
    """Runs a command as a user does; what it says is kept, a fault noted."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main([str(one) for one in arguments])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 1
    result.said.append(f"{arguments[0]} {status}: {err.getvalue()[-2000:]}\0{out.getvalue()}")
    if status not in (0, 1) or "Traceback" in err.getvalue():
        result.fault = f"{arguments[0]} ended with {status}"
    result.outcome = "accepted" if status == 0 else "refused"
    return status


def _compared(path: Path, out: Path, result: Result, *options: Any) -> None:
    if _command(result, "compile", path, *(options or _compile(out))) == 0:
        _judged(result, _command(result, "check", out, "--tokens", TOKENS, "--json"))


def _judged(result: Result, status: int) -> None:
    """Whether what was accepted is what onnxruntime says, or was warned of."""
    if status:
        result.outcome = "accepted, and onnxruntime cannot judge it"
        return
    content = json.loads(result.said[-1].partition("\0")[2])
    error = content.get("max_error_of_range")
    warned = any("warning" in one.partition("\0")[0] for one in result.said)
    if error is None or not math.isfinite(error):
        result.outcome = "accepted, without a finite figure"
    elif error <= ERROR:
        result.outcome = "accepted and right"
    elif warned or content.get("saturations"):
        result.outcome = "accepted with a warning"
    else:
        result.fault = f"error {error:.3g} of the range, without a word"


# Campaign


def _case(seed: int, number: int, only: str | None, folder: Path) -> Result:
    rng = np.random.default_rng([seed, number])
    names = [only] if only else list(KINDS)
    weights = np.array([KINDS[name][0] for name in names], float)
    kind = str(rng.choice(names, p=weights / weights.sum()))
    result = Result(number, kind)
    shutil.copytree(BASES[str(rng.choice(MODELS))], folder, dirs_exist_ok=True)
    try:
        KINDS[kind][1](rng, folder, result)
    except LookupError as error:
        result.outcome = f"nothing to change: {error}"
    return result


def _forked(seed: int, number: int, only: str | None, folder: Path) -> Result:
    """A case in a process of its own, with its limits."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            resource.setrlimit(resource.RLIMIT_AS, (4 * BYTES, 4 * BYTES))
            resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
            signal.alarm(STUCK)
            try:
                result = _case(seed, number, only, folder)
            except BaseException:
                result = Result(number, only or "?", fault=traceback.format_exc()[-1500:])
            used = resource.getrusage(resource.RUSAGE_SELF)
            result.peak, result.seconds = used.ru_maxrss * 1024, used.ru_utime + used.ru_stime
            result.said = [one.partition("\0")[0][-700:] for one in result.said]
            with os.fdopen(write, "w") as pipe:
                json.dump(asdict(result), pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if text:
        result = Result(**json.loads(text))
    else:
        slow = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU)
        how = "takes too long" if slow else f"died: {status}"
        result = Result(number, only or "?", fault=how)
    if result.peak > BYTES:
        result.fault = f"{result.peak / 1e9:.1f} GB of memory"
    return result


def _worker(args: argparse.Namespace, numbers: range, log: Path) -> None:
    with log.open("w") as file, tempfile.TemporaryDirectory() as scratch:
        for number in numbers:
            folder = Path(scratch) / str(number)
            result = _forked(args.seed, number, args.only, folder)
            shutil.rmtree(folder, ignore_errors=True)
            file.write(json.dumps(asdict(result)) + "\n")
            file.flush()
            if result.fault:
                print(f"case {number} ({result.kind}): {result.change}: {result.fault}", flush=True)


def _bases(folder: Path) -> None:
    """The models that cases begin with, and what is made of them once."""
    spec = spec_from_file_location("make_models", ROOT / "test" / "models" / "make_models.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    for name in MODELS:
        BASES[name] = module.make_model(name, folder / name).parent
    model, result = BASES[MODELS[0]] / "model.onnx", Result(0, "base")
    BASES["out"], BASES["slots"] = folder / "out", folder / "slots"
    _command(result, "compile", model, *_compile(BASES["out"]))
    _command(result, "compile", model, *_compile(BASES["slots"]), "--adapter-slots", "4")
    _command(result, "run", BASES["out"], "--prompt-ids", "1,2", "--tokens", "3", "--json")
    if result.fault or "refused" in result.outcome:
        sys.exit("\n".join(one.replace("\0", "\n") for one in result.said))
    ANSWER.extend(json.loads(result.said[-1].partition("\0")[2])["tokens"])
    BASES["adapter"] = _peft(BASES["slots"], folder / "adapter")


def _peft(out: Path, folder: Path) -> Path:
    """A PEFT adapter of rank 2 for every site of a chip."""
    from safetensors.numpy import save_file

    from intaglio.backend.program.program import load_program

    rng, folder = np.random.default_rng(1), folder
    folder.mkdir()
    tensors: dict[str, np.ndarray] = {}
    modules = set[str]()
    for name, site in load_program(out).sites.items():
        layer, _, module = name.removeprefix("layers.").partition(".")
        part = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        stem = f"base_model.model.model.layers.{layer}.{part}.{module}"
        modules.add(module)
        for end, rows, columns in (("A", 2, site.columns), ("B", site.rows, 2)):
            values = rng.standard_normal((rows, columns)) / 8
            tensors[f"{stem}.lora_{end}.weight"] = values.astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors")
    content = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": sorted(modules)}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    return folder


def _results(logs: list[Path]) -> Iterator[Result]:
    for log in logs:
        yield from (Result(**json.loads(line)) for line in log.read_text().splitlines())


def main() -> int:
    """Runs the campaign; 1 where there is a fault."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--case", type=int)
    parser.add_argument("--log", type=Path)
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as scratch:
        _bases(Path(scratch))
        if args.case is not None:
            kept = Path(tempfile.mkdtemp(prefix=f"case-{args.case}-"))
            result = _forked(args.seed, args.case, args.only, kept)
            print(json.dumps(asdict(result), indent=1), f"\n{kept}")
            return int(bool(result.fault))
        logs = [Path(scratch) / f"{job}.jsonl" for job in range(args.jobs)]
        workers = []
        for job, log in enumerate(logs):
            if (child := os.fork()) == 0:
                try:
                    _worker(args, range(job, args.count, args.jobs), log)
                finally:
                    sys.stdout.flush()
                    os._exit(0)
            workers.append(child)
        for child in workers:
            os.waitpid(child, 0)
        results = sorted(_results(logs), key=lambda one: one.number)
        if args.log:
            args.log.write_text("".join(json.dumps(asdict(one)) + "\n" for one in results))
    faults = [one for one in results if one.fault]
    outcomes = Counter(one.outcome.partition(":")[0] or "fault" for one in results)
    for outcome, count in outcomes.most_common():
        print(f"{count:6} {outcome}")
    print(f"{len(results)} cases, seed {args.seed}: {len(faults)} faults")
    print(
        f"longest {max(one.seconds for one in results):.1f} CPU seconds, largest "
        f"{max(one.peak for one in results) / 1e6:.0f} MB"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
