"""Make the mixture of experts: a byte-level gpt-oss that has read the King James Bible, in int4.

Four stages, each of which leaves files for the next one:

    text    the text of the demo model (see ../recipe.py)
    train   a float checkpoint; its last quarter is trained through the int4 rounding
    export  onnxruntime-genai's builder writes the int4 ONNX, the experts as ``QMoE``
    judge   nats a byte of the held-out text under torch and onnxruntime, and samples

Everything is counted in steps and drawn from one seed, on one thread: the same machine and the same
versions give the same weights again.

    apt-get install bible-kjv && pip install -r requirements.txt && python train.py
"""

from __future__ import annotations

import json
import shutil
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
    prepare,
    round_weights,
    schedule_options,
    scheduled,
    train,
)

if TYPE_CHECKING:
    import torch
    from transformers import GptOssForCausalLM

HERE = Path(__file__).resolve().parent
STAGES = ("text", "train", "export", "judge")
HELD_OUT = HERE.parent / "demo" / "held_out.txt"
RECIPE = Recipe(steps=1500, stop=1500, seed=1611, peak_rate=3e-3)
EXPERTS, CHOSEN = 8, 2
BALANCE = 0.01
"""Weight of the penalty on experts that take more than their share of the bytes."""


# --------------------------------------------------------------------------------------- train


def round_experts(model: GptOssForCausalLM) -> None:
    """The same of the experts' matrices, which are [E, K, N], and of the routers'."""
    import torch
    from torch.nn.utils import parametrize
    from transformers.models.gpt_oss.modeling_gpt_oss import GptOssExperts, GptOssTopKRouter

    class Rounded(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return rounded(weight)

    class RoundedExperts(torch.nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return rounded(weight.transpose(1, 2)).transpose(1, 2)

    round_weights(model, rounded)
    for module in list(model.modules()):
        if isinstance(module, GptOssExperts):
            for name in ("gate_up_proj", "down_proj"):
                parametrize.register_parametrization(module, name, RoundedExperts())
        elif isinstance(module, GptOssTopKRouter):
            parametrize.register_parametrization(module, "weight", Rounded())


def new_model() -> GptOssForCausalLM:
    """The untrained model."""
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        num_local_experts=EXPERTS,
        num_experts_per_tok=CHOSEN,
        sliding_window=128,
        max_position_embeddings=CONTEXT,
        # The builder writes gpt-oss with YaRN only.
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 2.0,
            "original_max_position_embeddings": CONTEXT // 2,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
        },
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        initializer_range=0.04,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    return GptOssForCausalLM(config)


class Balance:
    """A penalty that is least where every expert has the same share of the bytes.

    Per layer: ``E * sum over experts of (share of the choices * mean probability)``, 1 at least.
    """

    def __init__(self, model: GptOssForCausalLM) -> None:
        from transformers.models.gpt_oss.modeling_gpt_oss import GptOssTopKRouter

        self.seen: list[tuple[torch.Tensor, torch.Tensor]] = []
        for module in model.modules():
            if isinstance(module, GptOssTopKRouter):
                module.register_forward_hook(self.keep)

    def keep(self, module: object, inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
        """A router's logits [T, E] and choices [T, k]."""
        if outputs[0].requires_grad:
            self.seen.append((outputs[0], outputs[2]))

    def __call__(self) -> torch.Tensor:
        """The penalty of the forward pass at hand."""
        import torch

        total = torch.zeros(())
        for logits, chosen in self.seen:
            taken = torch.nn.functional.one_hot(chosen, EXPERTS).float().sum(1).mean(0) / CHOSEN
            total = total + EXPERTS * (taken * logits.softmax(-1).mean(0)).sum()
        count = len(self.seen)
        self.seen.clear()
        return BALANCE * total / count


def learn(work: Path, recipe: Recipe) -> None:
    """Train from nothing, and leave a float checkpoint and the course of the loss."""
    random = begin(recipe.seed)
    model = new_model()
    course = train(
        model,
        work,
        recipe,
        random,
        round_now=partial(round_experts, model),
        save=lambda: bare(model).save_pretrained(work / "checkpoint"),
        penalty=Balance(model),
    )
    (work / "course.json").write_text(json.dumps(course))


def bare(model: GptOssForCausalLM) -> GptOssForCausalLM:
    """A copy of the model that is ready to save, with float weights as before the rounding."""
    state = {}
    for name, value in model.state_dict().items():
        left, found, right = name.partition("parametrizations.")
        state[left + right.removesuffix(".original") if found else name] = value
    copied = type(model)(model.config)
    copied.load_state_dict(state)
    return copied.eval()


# -------------------------------------------------------------------------------------- export


def export(work: Path, out: Path) -> None:
    """Run onnxruntime-genai's builder on the checkpoint; keep the graph, its data, its config.

    The builder takes the experts of a gpt-oss from a checkpoint in MXFP4 only. Here it is handed
    the float ones, as it would have decoded them; what it makes of them is its own.
    """
    from onnxruntime_genai.models import builder
    from safetensors.torch import load_file

    checkpoint, built, cache = work / "checkpoint", work / "built", work / "cache"
    stand_in_tokenizer(checkpoint)
    shutil.rmtree(built, ignore_errors=True)
    state = load_file(checkpoint / "model.safetensors")

    def experts(_: object, layer: int, decode: bool = False) -> tuple[torch.Tensor, ...]:
        prefix = f"model.layers.{layer}.mlp.experts."
        names = ("gate_up_proj", "down_proj")
        return tuple(state[prefix + name].transpose(1, 2).contiguous() for name in names)

    builder.GPTOSSModel.load_mxfp4_experts = experts
    what = (None, str(checkpoint), str(built), "int4", "cpu", str(cache))
    builder.create_model(
        *what, **builder.parse_extra_options(*what, ["hf_token=false", "windowed_kv_cache=false"])
    )
    ship(built, out)


# --------------------------------------------------------------------------------------- judge


def judge(work: Path, out: Path) -> None:
    """Nats a byte of the held-out text, three ways, and samples; also in ``figures.json``."""
    import torch
    from transformers import GptOssForCausalLM

    torch.set_num_threads(1)
    text = HELD_OUT.read_bytes()
    model = GptOssForCausalLM.from_pretrained(work / "checkpoint").eval()
    judge_export(work, out, model, text)


# ---------------------------------------------------------------------------------------- main


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__, STAGES, HERE, Path("build/experts"))
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
