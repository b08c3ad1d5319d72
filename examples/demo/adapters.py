"""Train the LoRA adapters of the demo model: other styles of text on the same engraved weights.

Three stages, each of which leaves files for the next one:

    text    an adapter's text, split in three; ``held_out.txt`` goes into its folder
    train   PEFT's LoRA on the committed ONNX's own int4 weights, dequantised and frozen
    judge   nats a byte of every held-out text, without and with each adapter, and samples

Everything is counted in steps and drawn from one seed, on one thread: the same machine and the same
versions give the same weights again.

    apt-get install dict-devil && pip install -r requirements.txt && python adapters.py
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from genai_recipe import BLOCK
from recipe import (
    Recipe,
    begin,
    checked,
    continued,
    nats_a_byte,
    package_folder,
    python_text,
    say,
    torch_logits,
    train,
)
from train import new_model

HERE = Path(__file__).resolve().parent
STAGES = ("text", "train", "judge")
RECIPE = Recipe(
    steps=1000,
    stop=1000,
    seed=1906,
    peak_rate=4e-3,
    short_share=0.5,
    rounded_share=0.0,
    warmup=50,
    weight_decay=0.0,
    other_share=0.0,
    keep_every=100,
)
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


@dataclass(frozen=True)
class Split:
    """A text in three: to train on, to watch the training by, and to judge by."""

    train: bytes
    choose: bytes
    held_out: bytes


@dataclass(frozen=True)
class Style:
    """An adapter."""

    text: Callable[[argparse.Namespace], Split]
    sha256: str
    """Of the whole text."""
    recipe: Recipe
    rank: int
    modules: tuple[str, ...]
    prompts: tuple[str, ...]


# ---------------------------------------------------------------------------------------- text

PACKAGE = "rich"
TABLES = ("_emoji_codes.py", "_palettes.py", "_spinners.py")
"""Modules that are mostly data."""
CHOOSE = ("columns.py", "rule.py")
HELD_OUT = ("prompt.py", "tree.py")


def python_split(options: argparse.Namespace) -> Split:
    """The source of ``rich`` (MIT licence), module after module; whole modules are held out."""
    names = sorted(entry.name for entry in package_folder(PACKAGE).glob("*.py"))
    kept = [name for name in names if name not in (*TABLES, *CHOOSE, *HELD_OUT)]
    parts = [python_text(PACKAGE, chosen) for chosen in (kept, CHOOSE, HELD_OUT)]
    return Split(*parts)


def devil_split(options: argparse.Namespace) -> Split:
    """Ambrose Bierce's Devil's Dictionary from Debian's ``dict-devil``; the last entries held out.

    The preface and what the dictionary server adds are left out.
    """
    printed = gzip.decompress(options.devil.read_bytes())
    start, end = printed.index(b"ABASEMENT, n."), printed.rindex(b"\n\n")
    text = printed[start : end + 1]
    entries = [match.start() for match in re.finditer(rb"^[A-Z][A-Z' -]*, \w", text, re.M)]
    judged = next(place for place in entries if place >= len(text) - 32 * 1024)
    tail = next(place for place in entries if place >= judged - 12 * 1024)
    return Split(text[:tail], text[tail:judged], text[judged:])


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
STYLES = {
    "python": Style(
        text=python_split,
        sha256="a5a8527c137a792d9b920029e3bc1955a34909c2120dab05d8dc189f490377ed",
        recipe=RECIPE,
        rank=16,
        modules=ATTENTION + FEED_FORWARD,
        prompts=("def main(", "class Shepherd:\n"),
    ),
    "devil": Style(
        text=devil_split,
        sha256="3ab2a53d3b10614a196bc821562d3d0ceb7f4c7c9746dca6558428ac40e687ea",
        recipe=replace(RECIPE, steps=500, stop=500),
        rank=8,
        modules=ATTENTION + FEED_FORWARD,
        prompts=("COMPUTER, n.  ", "SHEPHERD, n.  "),
    ),
}


def prepare(name: str, work: Path, out: Path, options: argparse.Namespace) -> None:
    """Write an adapter's text."""
    split = STYLES[name].text(options)
    whole = split.train + split.choose + split.held_out
    checked(whole, STYLES[name].sha256, f"the text of {name}")
    work.mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    (work / "train.txt").write_bytes(split.train)
    (work / "choose.txt").write_bytes(split.choose)
    (out / "held_out.txt").write_bytes(split.held_out)
    say(
        f"{name}: {len(split.train)} bytes to train on, {len(split.choose)} to watch by, "
        f"{len(split.held_out)} held out"
    )


# --------------------------------------------------------------------------------------- train


def dequantised(codes: np.ndarray, scales: np.ndarray) -> torch.Tensor:
    """A matrix [N, K] of MatMulNBits: two codes a byte, the low one first, 8 stands for zero."""
    values = np.stack([codes & 15, codes >> 4], -1).astype(np.float32) - 8
    values = values.reshape(*scales.shape, BLOCK) * scales[..., None]
    return torch.from_numpy(values.reshape(len(values), -1))


def engraved_model(path: Path) -> LlamaForCausalLM:
    """The committed ONNX as a torch model, with exactly the weights that int4 stands for."""
    found = {e.name: numpy_helper.to_array(e) for e in onnx.load(path).graph.initializer}

    def matrix(name: str) -> torch.Tensor:
        codes, scales = (found[f"{name}.MatMul.weight_{part}"] for part in ("Q4", "scales"))
        return dequantised(codes, scales)

    def vector(name: str) -> torch.Tensor:
        return torch.from_numpy(found[f"{name}.weight"].copy())

    model = new_model()
    shape = model.config
    parts = [shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads]
    state = {"model.embed_tokens.weight": vector("model.embed_tokens")}
    for layer in range(shape.num_hidden_layers):
        place = f"model.layers.{layer}"
        qkv = matrix(f"{place}.attn.qkv_proj").split([part * shape.head_dim for part in parts])
        for letter, weight in zip("qkv", qkv, strict=True):
            state[f"{place}.self_attn.{letter}_proj.weight"] = weight
        state[f"{place}.self_attn.o_proj.weight"] = matrix(f"{place}.attn.o_proj")
        for name in FEED_FORWARD:
            state[f"{place}.mlp.{name}.weight"] = matrix(f"{place}.mlp.{name}")
        for name in ("input_layernorm", "post_attention_layernorm"):
            state[f"{place}.{name}.weight"] = vector(f"{place}.{name}")
    last = f"model.layers.{shape.num_hidden_layers}.final_norm_layernorm"
    state["model.norm.weight"], state["lm_head.weight"] = vector(last), matrix("lm_head")
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def save(model: PeftModel, work: Path, out: Path) -> None:
    """Leave the adapter in PEFT's form, in float16, with no trace of this machine."""
    model.save_pretrained(str(work / "adapter"))
    weights = load_file(work / "adapter" / WEIGHTS)
    save_file(
        {n: w.half().contiguous() for n, w in weights.items()}, out / WEIGHTS, {"format": "pt"}
    )
    config = json.loads((work / "adapter" / CONFIG).read_text())
    config["base_model_name_or_path"] = None
    config["target_modules"] = sorted(config["target_modules"])  # PEFT keeps a set
    (out / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    say(f"{out.name}: {WEIGHTS}, {(out / WEIGHTS).stat().st_size} bytes")


def learn(name: str, base: Path, work: Path, out: Path, stop: int | None) -> None:
    """Train an adapter, and leave it with the course of the loss."""
    style = STYLES[name]
    recipe = replace(style.recipe, stop=min(stop or style.recipe.stop, style.recipe.stop))
    random = begin(recipe.seed)
    lora = LoraConfig(
        r=style.rank,
        lora_alpha=2 * style.rank,
        target_modules=list(style.modules),
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(engraved_model(base), lora)
    course = train(
        model, work, recipe, random, round_now=lambda: None, save=lambda: save(model, work, out)
    )
    (work / "course.json").write_text(json.dumps(course))


# --------------------------------------------------------------------------------------- judge


def sample(model: torch.nn.Module, prompt: str, temperature: float) -> str:
    """A prompt, continued by torch."""
    seen: list[int] = []

    def next_logits(ids: np.ndarray) -> np.ndarray:
        seen.extend(int(number) for number in ids[0])
        return torch_logits(model)(np.array([seen]))[0, -1]

    return continued(next_logits, prompt, 250, temperature, np.random.default_rng(0))


def judge(names: list[str], base: Path, work: Path, out: Path) -> None:
    """Nats a byte of each text under each adapter and under none, and samples."""
    torch.set_num_threads(1)
    texts = {"bible": (HERE / "held_out.txt").read_bytes()}
    texts |= {name: (out / name / "held_out.txt").read_bytes() for name in names}
    figures: dict[str, dict[str, float]] = {}
    samples: dict[str, dict[str, str]] = {}
    for name in ["", *names]:
        model = engraved_model(base)
        if name:
            model = PeftModel.from_pretrained(model, str(out / name)).eval()
        logits, what = torch_logits(model), name or "no adapter"
        figures[what] = {text: nats_a_byte(logits, content) for text, content in texts.items()}
        say(f"{what}: " + ", ".join(f"{t} {v:.4f}" for t, v in figures[what].items()))
        prompts = [p for n in names if name in ("", n) for p in STYLES[n].prompts]
        samples[what] = {prompt: sample(model, prompt, 0.6) for prompt in prompts}
        for text in samples[what].values():
            say(f"--- {what}\n{text}")
    content = {"nats_a_byte": figures, "samples": samples}
    work.mkdir(parents=True, exist_ok=True)
    (work / "figures.json").write_text(json.dumps(content, indent=2) + "\n")


# ---------------------------------------------------------------------------------------- main


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--only", choices=STAGES, action="append", help="run these stages only")
    add("--adapter", choices=STYLES, action="append", help="these adapters only")
    add("--stop", type=int, help="at most so many steps")
    add("--model", type=Path, default=HERE / "model" / "model.onnx", help="the engraved model")
    add("--out", type=Path, default=HERE / "adapters", help="for what is shipped")
    add("--work", type=Path, default=Path("build/adapters"), help="for all else (%(default)s)")
    devil = Path("/usr/share/dictd/devil.dict.dz")
    add("--devil", type=Path, default=devil, help="the Devil's Dictionary (%(default)s)")
    options = parser.parse_args(arguments)

    names: list[str] = options.adapter or list(STYLES)
    stages = options.only or STAGES
    for name in names:
        work, out = options.work / name, options.out / name
        if "text" in stages:
            prepare(name, work, out, options)
        if "train" in stages:
            learn(name, options.model, work, out, options.stop)
    if "judge" in stages:
        judge(names, options.model, options.work, options.out)


if __name__ == "__main__":
    main()
