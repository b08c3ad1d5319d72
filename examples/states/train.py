"""Make the model of linear attention: a byte-level Qwen3.5 that has read the King James Bible.

Four stages, each of which leaves files for the next one:

    text    the text of the demo model (see ../recipe.py)
    train   a float checkpoint; its last quarter is trained through the int4 rounding
    export  onnxruntime-genai's builder writes the int4 ONNX, with ``LinearAttention``
    judge   nats a byte of the held-out text under torch and onnxruntime, and samples

Everything is counted in steps and drawn from one seed, on one thread: the same machine and the same
versions give the same weights again.

    apt-get install bible-kjv && pip install -r requirements.txt && python train.py
"""

from __future__ import annotations

import json
import math
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
    from transformers import Qwen3_5ForCausalLM

HERE = Path(__file__).resolve().parent
STAGES = ("text", "train", "export", "judge")
HELD_OUT = HERE.parent / "demo" / "held_out.txt"
RECIPE = Recipe(steps=2000, stop=2000, seed=1611, peak_rate=3e-3, keep_every=500)
LEFT_FLOAT = (".in_proj_a", ".in_proj_b")
"""The products that the builder leaves in float: those of the decays and of the new values."""


# --------------------------------------------------------------------------------------- train


def new_model() -> Qwen3_5ForCausalLM:
    """The untrained model, with layers linear, linear, linear, full."""
    import torch
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    config = Qwen3_5TextConfig(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        linear_conv_kernel_dim=4,
        linear_num_key_heads=2,
        linear_num_value_heads=6,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        max_position_embeddings=CONTEXT,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [3, 3, 2],
            "mrope_interleaved": True,
        },
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        initializer_range=0.04,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    model = Qwen3_5ForCausalLM(config)
    # transformers begins with decays of which nine in ten forget within a byte. Here they begin
    # where the step sizes of Mamba-2 do, between a thousandth and a tenth.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".dt_bias"):
                least, most = math.log(1e-3), math.log(1e-1)
                steps = torch.exp(torch.rand_like(parameter) * (most - least) + least)
                parameter.copy_(steps.expm1().log())
    return model


def learn(work: Path, recipe: Recipe) -> None:
    """Train from nothing, and leave a float checkpoint and the course of the loss."""
    random = begin(recipe.seed)
    model = new_model()
    course = train(
        model,
        work,
        recipe,
        random,
        round_now=partial(round_weights, model, rounded, LEFT_FLOAT),
        save=lambda: plain(model).save_pretrained(work / "checkpoint"),
    )
    (work / "course.json").write_text(json.dumps(course))


# -------------------------------------------------------------------------------------- export


def export(work: Path, out: Path) -> None:
    """Run onnxruntime-genai's builder on the checkpoint; keep the graph, its data, its config.

    The builder takes a Qwen3.5 only together with its eyes. The checkpoint that it is handed has
    such, without a layer and with random weights; it leaves them out.
    """
    from transformers import Qwen3_5Config, Qwen3_5ForCausalLM, Qwen3_5ForConditionalGeneration

    model = Qwen3_5ForCausalLM.from_pretrained(work / "checkpoint")
    width = model.config.hidden_size
    eyes = {"depth": 0, "hidden_size": 32, "intermediate_size": 32, "num_heads": 1}
    whole = Qwen3_5ForConditionalGeneration(
        Qwen3_5Config(
            text_config=model.config.to_dict(),
            vision_config=eyes | {"out_hidden_size": width},
            tie_word_embeddings=False,
        )
    )
    whole.model.language_model.load_state_dict(model.model.state_dict())
    whole.lm_head.load_state_dict(model.lm_head.state_dict())
    checkpoint, built, cache = work / "with_eyes", work / "built", work / "cache"
    whole.save_pretrained(checkpoint)
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
    from transformers import Qwen3_5ForCausalLM

    torch.set_num_threads(1)
    text = HELD_OUT.read_bytes()
    model = Qwen3_5ForCausalLM.from_pretrained(work / "checkpoint").eval()
    judge_export(work, out, model, text)


# ---------------------------------------------------------------------------------------- main


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__, STAGES, HERE, Path("build/states"))
    schedule_options(parser, RECIPE)
    options = parser.parse_args(arguments)

    stages = options.only or STAGES
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if "text" in stages:
        prepare(options.work, options.bible, options.bible_data)
    if "train" in stages:
        learn(options.work, scheduled(options))
    if "export" in stages:
        export(options.work, options.out)
    if "judge" in stages:
        judge(options.work, options.out)


if __name__ == "__main__":
    main()
