"""Adapters of an output folder: add, list, remove, run, check; refusals leave no trace."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from intaglio.backend.output.output import sha256_of
from intaglio.dialects.errors import UserError
from intaglio.runtime import cli
from intaglio.runtime.adapters.adapters import summary_lines
from intaglio.runtime.chip import Chip, load
from intaglio.runtime.judge.check import check

ROLES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
Make = Callable[..., Path]


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): sha256_of(path) if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def out(slotted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(slotted, tmp_path / "out"))


@pytest.fixture
def chip(out: Path) -> Chip:
    return load(out)


@pytest.fixture
def make(tensors: Callable[..., Any], write_peft: Make) -> Make:
    """A PEFT folder for the model with slots; options of `peft_tensors` and of the config."""

    def make(*, change: Callable[[dict[str, np.ndarray]], Any] | None = None, **options: Any):
        known = {k: options.pop(k) for k in ("rank", "roles", "seed") if k in options}
        content = tensors(**known)
        if change is not None:
            content = change(content) or content
        return write_peft(content, **({"r": known["rank"]} if "rank" in known else {}), **options)

    return make


def renamed(old: str, new: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {name.replace(old, new): t for name, t in content.items()}


# --- add, list, remove --------------------------------------------------------------------------


def test_add_changes_nothing_else(chip: Chip, out: Path, make: Make):
    before = contents(out)
    summary = chip.adapters.add("style", make())
    after = contents(out)
    assert {n: h for n, h in after.items() if not n.startswith("adapters")} == before
    assert sorted(p.name for p in (out / "adapters" / "style").iterdir()) == [
        "adapter.bin",
        "adapter.json",
        "adapter.onnx_adapter",
    ]
    assert list(chip.adapters) == ["style"] and "style" in chip.adapters
    assert summary == chip.adapters.list()[0]
    assert {site for site, rank in summary.ranks.items() if rank} == {
        f"layers.{layer}.{role}" for layer in (0, 1) for role in ("q_proj", "v_proj", "down_proj")
    }
    assert 0 < summary.mean_loss <= summary.worst_loss < 0.05 and summary.is_for_base
    assert summary.load_cycles > 0 and summary.format == "fp8"
    chip.adapters.remove("style")
    assert contents(out) == before


def test_what_a_large_row_hides_is_said(chip: Chip, make: Make):
    """The mean loss is as ever; the worst output is named, with a warning."""
    usual = chip.adapters.add("usual", make())
    assert not usual.warnings and 0 < usual.worst_line[1] < 0.2

    def spoilt(content: dict[str, np.ndarray]) -> None:
        name = next(name for name in content if "layers.1" in name and "v_proj.lora_B" in name)
        content[name][3] *= np.float32(1e12)

    summary = chip.adapters.add("spoilt", make(change=spoilt))
    assert summary.worst_loss < 0.1 and summary.worst_line[1] > 0.9
    assert summary.worst_line[0].endswith(" of layers.1.v_proj")
    (warning,) = summary.warnings
    assert warning.startswith("site 'layers.1.v_proj', ") and "loses 100 %" in warning
    assert any(summary.worst_line[0] in line for line in summary_lines(summary))
    assert replace(summary, warnings=()) in chip.adapters.list()


def test_add_is_deterministic(chip: Chip, out: Path, make: Make):
    folder = make()
    chip.adapters.add("a", folder)
    first = contents(out / "adapters")
    chip.adapters.remove("a")
    chip.adapters.add("a", folder)
    assert contents(out / "adapters") == first


def test_an_adapter_of_another_chip_with_the_same_base(chip: Chip, out: Path, make: Make):
    chip.adapters.add("a", make())
    chip.adapters.add("b", out / "adapters" / "a")
    one, other = chip.adapters.load("a"), chip.adapters.load("b")
    for name, site in one.sites.items():
        np.testing.assert_array_equal(site.b.codes, other.sites[name].b.codes)


def test_ranks_by_module(chip: Chip, tensors: Callable[..., Any], write_peft: Make):
    content = tensors(roles=("q_proj",), rank=2) | tensors(roles=("v_proj",), rank=3)
    folder = write_peft(content, r=2, rank_pattern={"v_proj": 3})
    ranks = chip.adapters.add("a", folder).ranks
    assert ranks["layers.1.q_proj"] == 2 and ranks["layers.1.v_proj"] == 3


@pytest.mark.parametrize(
    "module",
    ["self_attn.qkv_proj", "attn.c_attn", "attn.Wqkv"],
)
def test_packed_modules(chip: Chip, tensors: Callable[..., Any], write_peft: Make, module: str):
    """One A for q, k and v, and B's rows one after the other."""
    split = tensors(roles=ROLES[:3])
    key = "base_model.model.model.layers.0.self_attn.{}.lora_{}.weight"
    b = np.concatenate([split[key.format(role, "B")] for role in ROLES[:3]])
    a = split[key.format("q_proj", "A")]
    prefix = f"base_model.model.model.layers.0.{module}"
    folder = write_peft({f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b})
    assert sum(rank > 0 for rank in chip.adapters.add("a", folder).ranks.values()) == 3
    image = chip.adapters.load("a")
    assert [image.sites[f"layers.0.{role}"].b.rows for role in ROLES[:3]] == [64, 32, 32]
    for role in ("k_proj", "v_proj"):
        one = image.sites[f"layers.0.{role}"]
        np.testing.assert_array_equal(one.a.codes, image.sites["layers.0.q_proj"].a.codes)


def test_base_hash_is_accepted(chip: Chip, make: Make):
    chip.adapters.add("a", make(base_sha256=chip.adapters.base))
    chip.adapters.add("b", make(base_sha256=sha256_of(chip.model).upper()))
    chip.adapters.add("data", make(base_sha256=sha256_of(chip.model.with_name("model.onnx.data"))))
    with pytest.raises(UserError, match="was trained on another base: it names 00"):
        chip.adapters.add("c", make(base_sha256="00"))


# --- refusals -----------------------------------------------------------------------------------


def spoiled(content: dict[str, np.ndarray]) -> None:
    content[next(iter(content))][0, 0] = np.nan


def halved(content: dict[str, np.ndarray]) -> None:
    content.pop(next(iter(content)))


def narrowed(content: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: (t[:, :-1].copy() if "lora_A" in n else t) for n, t in content.items()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 5}, "has rank 5, the slot of layers.0.down_proj holds 4"),
        ({"rank": 5}, "compile with --adapter-slots 5, or train with a smaller rank"),
        ({"change": narrowed}, "is for a matrix of 64 x 95; layers.0.down_proj of the chip has"),
        ({"change": renamed("q_proj", "lm_head")}, "is no module that a chip has adapter slots"),
        (
            {"change": renamed("model.model.layers.1", "model.model.vision_tower.blocks.1")},
            "'model.vision_tower.blocks.1.mlp.down_proj' (and 'model.vision_tower.blocks.1.self_",
        ),
        (
            {"change": renamed("model.model.layers.1", "model.model.vision_tower.blocks.1")},
            "v_proj') is no module that a chip has adapter slots for: of a vision tower",
        ),
        (
            {"change": renamed("mlp.down_proj", "mlp.experts.3.down_proj")},
            "'model.layers.1.mlp.experts.3.down_proj') is no module that a chip has adapter slots",
        ),
        (
            {"change": renamed("model.layers.1", "mtp.layers.1")},
            "of a head that drafts tokens",
        ),
        ({"change": renamed("self_attn.q", "cross_attn.q")}, "cross attention"),
        ({"change": renamed("layers.1", "layers.7")}, "no adapter slot: there is none at layers.7"),
        ({"change": renamed("layers.1", "layers.7")}, "slots at q_proj, k_proj, v_proj, o_proj"),
        ({"change": spoiled}, "has values that are not finite"),
        ({"change": halved}, "has lora_B without lora_A"),
        ({"base_sha256": "12"}, "was trained on another base"),
        ({"use_dora": True}, "DoRA"),
    ],
)
def test_refused_adapters_leave_no_trace(
    chip: Chip, out: Path, make: Make, options: dict[str, Any], message: str
):
    chip.adapters.add("there", make())
    before = contents(out)
    with pytest.raises(UserError) as caught:
        chip.adapters.add("style", make(**options))
    assert message in str(caught.value)
    assert contents(out) == before


def test_truncated_safetensors_leave_no_trace(chip: Chip, out: Path, make: Make):
    folder, before = make(), contents(out)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(UserError, match="is no whole safetensors file"):
        chip.adapters.add("style", folder)
    assert contents(out) == before


def test_a_failure_while_writing_leaves_no_trace(
    chip: Chip, out: Path, make: Make, monkeypatch: pytest.MonkeyPatch
):
    from intaglio.runtime.adapters import adapters

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    before = contents(out)
    monkeypatch.setattr(adapters, "write_floats", full)
    with pytest.raises(UserError, match="cannot be written: No space left"):
        chip.adapters.add("style", make())
    assert contents(out) == before


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../x", ".hidden", "-x", "a b", "x" * 65])
def test_names(chip: Chip, out: Path, make: Make, name: str):
    before = contents(out)
    with pytest.raises(UserError, match="is no name for an adapter"):
        chip.adapters.add(name, make())
    with pytest.raises(UserError, match="there is no adapter"):
        chip.adapters.remove(name)
    with pytest.raises(UserError, match="there is no adapter"):
        chip.use_adapter(name)
    assert contents(out) == before


def test_a_name_is_given_once(chip: Chip, make: Make):
    chip.adapters.add("a", make())
    with pytest.raises(UserError, match="there is an adapter 'a' already"):
        chip.adapters.add("a", make())


def test_without_slots(compiled: Callable[[str], Path], make: Make):
    chip = load(compiled("llama"))
    with pytest.raises(UserError, match="no adapter slots") as caught:
        chip.adapters.add("a", make())
    assert "compile with --adapter-slots RANK" in str(caught.value)


def test_adapters_of_another_base_are_not_loaded(chip: Chip, out: Path, make: Make):
    chip.adapters.add("a", make())
    path = out / "adapters" / "a" / "adapter.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"base_sha256": "00"}))
    assert not chip.adapters.list()[0].is_for_base
    with pytest.raises(UserError, match="was converted for another base: 00"):
        chip.use_adapter("a")
    with pytest.raises(UserError, match="was trained on another base"):
        chip.adapters.add("b", path.parent)


def test_half_written_folders_are_no_adapters(chip: Chip, out: Path):
    (out / "adapters" / ".a.1.partial").mkdir(parents=True)
    assert list(chip.adapters) == [] and len(chip.adapters) == 0


# --- warnings -----------------------------------------------------------------------------------


def without(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {name: t for name, t in content.items() if part not in name}


def zeros(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda content: {n: (t * 0 if part in n else t) for n, t in content.items()}


@pytest.mark.parametrize(
    ("options", "warnings"),
    [
        ({}, ""),
        ({"layers_to_transform": [0, 1]}, ""),
        ({"layers_to_transform": 0, "change": without("layers.1")}, ""),
        (
            {"change": without("layers.1")},
            ("the adapter has q_proj, v_proj, down_proj for layer 0, and nothing for layer 1"),
        ),
        (
            {"change": without("layers.0.self_attn.v_proj")},
            "the adapter has v_proj for layer 1, and nothing for layer 0",
        ),
        (
            {"layers_to_transform": [0, 1], "change": without("layers.1")},
            (
                "the adapter has q_proj, v_proj, down_proj for layer 0, and nothing for layer 1, "
                "which layers_to_transform lists"
            ),
        ),
        (
            {"layers_to_transform": [0], "roles": ("q_proj",)},
            (
                "layers_to_transform is [0], so that the matrices of 1 module are left out, as "
                "PEFT does: model.layers.1.self_attn.q_proj"
            ),
        ),
        (
            {"layers_to_transform": 1, "layers_pattern": "layers", "lora_alpha": 0},
            (
                "layers_to_transform is 1, of layers, so that the matrices of 3 modules are left "
                "out, as PEFT does: model.layers.0.mlp.down_proj, model.layers.0.self_attn.q_proj, "
                "model.layers.0.self_attn.v_proj\n"
                "3 of 3 modules have a scaling of 0, so that the adapter changes nothing there: "
                "model.layers.1.mlp.down_proj, model.layers.1.self_attn.q_proj, "
                "model.layers.1.self_attn.v_proj"
            ),
        ),
        (
            {"alpha_pattern": {"^q_proj": 100}},
            (
                "alpha_pattern has '^q_proj', which matches no module of the adapter: a pattern is "
                "for the end of a name, from its beginning or a dot on"
            ),
        ),
        (
            {"rank_pattern": {"proj": 4, "o_proj": 9, "q_proj": 4}},
            (
                "rank_pattern has 'proj', 'o_proj', which match no module of the adapter: a "
                "pattern is for the end of a name, from its beginning or a dot on"
            ),
        ),
        (
            {"lora_alpha": 0},
            (
                "6 of 6 modules have a scaling of 0, so that the adapter changes nothing there: "
                "model.layers.0.mlp.down_proj, model.layers.0.self_attn.q_proj, "
                "model.layers.0.self_attn.v_proj, model.layers.1.mlp.down_proj and 2 more"
            ),
        ),
        (
            {"alpha_pattern": {r"layers\.1\..*q_proj": 0}},
            (
                "1 of 6 modules has a scaling of 0, so that the adapter changes nothing there: "
                "model.layers.1.self_attn.q_proj"
            ),
        ),
        (
            {"change": zeros("v_proj.lora_B")},
            (
                "2 of 6 modules have an A or B of zeros, so that the adapter changes nothing "
                "there: model.layers.0.self_attn.v_proj, model.layers.1.self_attn.v_proj"
            ),
        ),
        (
            {"change": zeros("layers.1.mlp.down_proj.lora_A")},
            (
                "1 of 6 modules has an A or B of zeros, so that the adapter changes nothing there: "
                "model.layers.1.mlp.down_proj"
            ),
        ),
    ],
)
def test_warnings(chip: Chip, make: Make, options: dict[str, Any], warnings: str):
    assert "\n".join(chip.adapters.add("a", make(**options)).warnings) == warnings


def test_warnings_on_the_command_line(run, out: Path, make: Make):
    folder = make(lora_alpha=0)
    code, text, error = run("adapter", "add", out, "a", folder, "--json")
    assert code == 0 and error.startswith(f"warning: {folder}: 6 of 6 modules have a scaling of 0")
    assert len(json.loads(text)["warnings"]) == 1


@pytest.mark.parametrize("options", [{"lora_alpha": 0}, {"change": zeros("lora_B")}])
def test_nothing_loses_of_nothing(run, out: Path, make: Make, options: dict[str, Any]):
    code, text, _ = run("adapter", "add", out, "a", make(**options))
    assert code == 0 and "of its own part" not in text


def test_layers_that_peft_leaves_out_have_no_rank(chip: Chip, make: Make):
    added = chip.adapters.add("a", make(layers_to_transform=[1]))
    assert {name for name, rank in added.ranks.items() if rank} == {
        f"layers.1.{role}" for role in ("q_proj", "v_proj", "down_proj")
    }


# --- run and check ------------------------------------------------------------------------------


def test_one_adapter_after_another(chip: Chip, out: Path, make: Make):
    """A, then B, then none: what fresh chips give."""
    prompt = [5, 6, 7]
    base = chip.generate(prompt, 8)
    chip.adapters.add("a", make(roles=ROLES, seed=1))
    chip.adapters.add("b", make(roles=ROLES, seed=2, rank=2))
    logits: dict[str | None, list[Any]] = {}
    for name in ("a", "b", None):
        chip.use_adapter(name)
        fresh = load(out)
        fresh.use_adapter(name)
        ours, theirs = list(chip.stream(prompt, 8)), list(fresh.stream(prompt, 8))
        assert [one.token for one in ours] == [one.token for one in theirs]
        logits[name] = [one.logits for one in ours]
        np.testing.assert_array_equal(logits[name], [one.logits for one in theirs])
    assert chip.generate(prompt, 8) == base
    assert not np.array_equal(logits["a"][0], logits["b"][0])
    assert not np.array_equal(logits["a"][0], logits[None][0])


def test_an_adapter_of_zeros_is_the_base(chip: Chip, make: Make):
    def untrained(content: dict[str, np.ndarray]) -> None:
        for name in content:
            if "lora_B" in name:
                content[name] *= 0

    chip.adapters.add("zero", make(change=untrained))
    plain = [one.logits for one in chip.stream([5, 6], 4)]
    chip.use_adapter("zero")
    np.testing.assert_array_equal([one.logits for one in chip.stream([5, 6], 4)], plain)


@pytest.mark.parametrize("roles", [("q_proj", "v_proj"), ("o_proj", "down_proj"), ROLES])
def test_check_against_onnxruntime(chip: Chip, make: Make, tmp_path: Path, roles):
    """onnxruntime runs the same base with the float adapter beside each site."""
    chip.adapters.add("a", make(roles=roles, lora_alpha=8))
    text = tmp_path / "text"
    text.write_bytes(bytes(range(30, 94)))
    plain = check(chip, text=text)
    result = check(chip, text=text, adapter="a", per_op=True)
    assert "adapter" not in plain and chip.adapter is None
    assert result["adapter"] == "a" and 0 < result["adapter_loss"] < 0.05
    assert result["base_perplexity"] == plain["perplexity"]
    # The adapter changes much more than the two are apart.
    references = {name: [chip.reference(float_activations=True)] for name in ("base",)}
    base = references["base"][0].feed(list(range(30, 40)))
    chip.use_adapter("a")
    adapted = chip.reference(float_activations=True).feed(list(range(30, 40)))
    effect = np.abs(adapted - base).max()
    assert effect > 4 * result["max_abs_logit_error"]
    assert abs(result["perplexity_change"]) < 0.02
    assert result["operator_error"] < 0.1


def test_the_judge_without_an_adapter_is_the_base(chip: Chip):
    from intaglio.runtime.adapters.adapters import judged_with
    from intaglio.runtime.judge.reference import Reference

    ids = [1, 2, 3, 4]
    for float_activations in (False, True):
        one = Reference(chip.model, float_activations=float_activations)
        other = Reference(
            judged_with(chip.folder, chip.files.manifest), float_activations=float_activations
        )
        np.testing.assert_array_equal(one.feed(ids), other.feed(ids))


# --- command line -------------------------------------------------------------------------------


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_commands(run, out: Path, make: Make):
    folder = make(roles=ROLES)
    code, text, _ = run("adapter", "list", out)
    assert code == 0 and "14 slots of rank 4 in fp8" in text and "no adapters" in text
    code, text, _ = run("adapter", "add", out, "style", folder)
    assert code == 0 and "style: rank 4 at 14 of 14 sites" in text and "fp8 loses" in text
    code, text, _ = run("adapter", "list", out, "--json")
    content = json.loads(text)
    (one,) = content["adapters"]
    assert one["name"] == "style" and one["rank"] == 4 and one["is_for_base"]
    assert one["worst_loss"] == max(one["worst_loss"], one["mean_loss"])
    assert content["slots"]["layers.0.k_proj"] == {"rank": 4, "rows": 32, "columns": 64}
    code, text, _ = run("adapter", "list", out)
    assert "style" in text and "at most" in text
    code, text, _ = run("run", out, "--prompt-ids", "1,2", "--tokens", 3, "--json")
    base = json.loads(text)
    assert "adapter" not in base
    arguments = ("run", out, "--prompt-ids", "1,2", "--tokens", 3, "--adapter", "style")
    code, text, _ = run(*arguments, "--json")
    result = json.loads(text)
    assert result["adapter"] == "style" and result["adapter_load_cycles"] == one["load_cycles"]
    code, text, _ = run(*arguments)
    assert f"style, loaded in {one['load_cycles']:,} cycles" in text
    code, text, _ = run(*arguments, "--engine", "onnxruntime", "--json")
    judged = json.loads(text)
    assert code == 0 and judged["adapter"] == "style"
    code, text, _ = run("check", out, "--adapter", "style", "--tokens", 8, "--json")
    assert code == 0 and json.loads(text)["adapter"] == "style"
    code, text, _ = run("adapter", "remove", out, "style")
    assert (code, text) == (0, "") and not (out / "adapters").exists()


def test_command_errors(run, out: Path, make: Make, tmp_path: Path):
    for arguments, message in (
        (("adapter", "add", out, "a", tmp_path / "none"), "there is no such adapter"),
        (("adapter", "add", tmp_path, "a", make()), "holds no compiled program"),
        (("adapter", "remove", out, "a"), "there is no adapter 'a'"),
        (("run", out, "--prompt-ids", "1", "--tokens", 1, "--adapter", "a"), "no adapter 'a'"),
        (("check", out, "--adapter", "a"), "no adapter 'a'"),
        (("adapter",), "ACTION"),
    ):
        code, text, error = run(*arguments)
        assert code == 1 and text == "" and message in error


def test_check_text_names_both_perplexities(run, out: Path, make: Make, tmp_path: Path):
    chip = load(out)
    chip.adapters.add("a", make())
    text = tmp_path / "text"
    text.write_bytes(bytes(range(30, 94)))
    code, printed, _ = run("check", out, "--adapter", "a", "--text", text)
    assert code == 0 and "adapter      a: perplexity" in printed


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


@pytest.mark.parametrize(
    ("options", "spoil", "message"),
    [
        ({"rank": 5}, None, "compile with --adapter-slots 5"),
        ({"base_sha256": "12"}, None, "was trained on another base"),
        ({}, cut, "is no whole safetensors file"),
        ({"change": spoiled}, None, "has values that are not finite"),
        ({"change": renamed("q_proj", "router")}, None, "is no module that a chip has adapter"),
        ({"target_modules": ["q_proj", "k_proj"]}, None, "the target module 'k_proj' has no"),
        ({"bias": "lora_only"}, None, "biases are trained, but engraved"),
        ({"modules_to_save": ["lm_head"]}, None, "whole modules are replaced"),
        ({"peft_type": "LOHA"}, None, "the adapter is of the kind LOHA"),
    ],
)
def test_wrong_adapters_give_one_error(
    run, out: Path, make: Make, options: dict[str, Any], spoil: Any, message: str
):
    """On the command line: exit 1, one error, nothing printed, OUT as it was."""
    folder, before = make(**options), contents(out)
    if spoil is not None:
        spoil(folder)
    code, text, error = run("adapter", "add", out, "style", folder)
    assert (code, text) == (1, "") and message in error
    assert "Traceback" not in error and len(error.splitlines()) <= 2
    assert contents(out) == before


def test_wrong_adapters_for_a_chip_without_slots(run, compiled: Callable[[str], Path], make: Make):
    out = compiled("llama")
    before = contents(out)
    code, text, error = run("adapter", "add", out, "style", make())
    assert (code, text) == (1, "") and "the chip has no adapter slots" in error
    assert contents(out) == before
