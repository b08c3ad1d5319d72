"""Make the demo model: a byte-level Llama, trained on the King James Bible, as an int4 ONNX.

Four stages, each of which leaves files for the next one:

    text    the Bible (from Debian's ``bible-kjv``) and a little Python source, split in three
    train   a float checkpoint; its last quarter is trained through the int4 rounding
    export  onnxruntime-genai's builder writes the int4 ONNX
    judge   nats a byte of the held-out text under torch and onnxruntime, and samples

Everything is counted in steps and drawn from one seed, on one thread: the same machine and the same
versions give the same weights again. The text, the training loop and the judging: ../recipe.py.

    apt-get install bible-kjv && pip install -r requirements.txt && python train.py
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from genai_recipe import judge_export, rounded, ship, stand_in_tokenizer
from recipe import (
    CONTEXT,
    Recipe,
    begin,
    command_line,
    plain,
    prepare,
    round_weights,
    schedule_options,
    scheduled,
    train,
)

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM

HERE = Path(__file__).resolve().parent
STAGES = ("text", "train", "export", "judge")
RECIPE = Recipe(steps=3000, stop=2800, seed=1611, peak_rate=2e-3)


# --------------------------------------------------------------------------------------- train


def new_model() -> LlamaForCausalLM:
    """The untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=5,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        initializer_range=0.04,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config)


def learn(work: Path, recipe: Recipe) -> None:
    """Train from nothing, and leave a float checkpoint and the course of the loss."""
    random = begin(recipe.seed)
    model = new_model()
    course = train(
        model,
        work,
        recipe,
        random,
        round_now=partial(round_weights, model, rounded),
        save=lambda: plain(model).save_pretrained(work / "checkpoint"),
    )
    (work / "course.json").write_text(json.dumps(course))


# -------------------------------------------------------------------------------------- export


def export(work: Path, out: Path) -> None:
    """Run onnxruntime-genai's builder on the checkpoint; keep the graph, its data, its config."""
    checkpoint, built, cache = work / "checkpoint", work / "built", work / "cache"
    stand_in_tokenizer(checkpoint)
    shutil.rmtree(built, ignore_errors=True)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", str(checkpoint), "-o", str(built), "-c", str(cache)]
    command += ["-p", "int4", "-e", "cpu", "--extra_options", "hf_token=false"]
    subprocess.run(command, check=True)
    ship(built, out)


# --------------------------------------------------------------------------------------- judge


def judge(work: Path, out: Path) -> None:
    """Nats a byte of the held-out text, three ways, and samples; also in ``figures.json``."""
    import torch
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    text = (out / "held_out.txt").read_bytes()
    model = LlamaForCausalLM.from_pretrained(work / "checkpoint").eval()
    judge_export(work, out, model, text)


# ---------------------------------------------------------------------------------------- main


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__, STAGES, HERE, Path("build/demo"))
    schedule_options(parser, RECIPE)
    options = parser.parse_args(arguments)

    stages = options.only or STAGES
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if "text" in stages:
        prepare(options.work, options.bible, options.bible_data)
        shutil.copyfile(options.work / "held_out.txt", options.out / "held_out.txt")
    if "train" in stages:
        learn(options.work, scheduled(options))
    if "export" in stages:
        export(options.work, options.out)
    if "judge" in stages:
        judge(options.work, options.out)


if __name__ == "__main__":
    main()
