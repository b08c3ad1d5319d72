"""Make the BitNet demo model: a byte-level BitNet b1.58, trained on the King James Bible.

Four stages, each of which leaves files for the next one:

    text    the text of the demo model (see ../recipe.py)
    train   a float checkpoint; every step goes through the ternary rounding of the weights and
            the int8 rounding of the activations
    export  an ``autobitlinear`` checkpoint (weights -1, 0, +1 and a scale), and its ONNX
    judge   the ONNX against torch, nats a byte of the held-out text, and samples

Everything is counted in steps and drawn from one seed, on one thread: the same machine and the same
versions give the same weights again.

    apt-get install bible-kjv && pip install -r requirements.txt && python train.py
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from transformers import BitNetConfig, BitNetForCausalLM, DynamicCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from recipe import (
    CONTEXT,
    Graph,
    Recipe,
    begin,
    command_line,
    nats_a_byte,
    plain,
    prepare,
    report,
    round_weights,
    say,
    torch_logits,
    train,
)

HERE = Path(__file__).resolve().parent
STAGES = ("text", "train", "export", "judge")
HELD_OUT = HERE.parent / "demo" / "held_out.txt"
HEAD = "lm_head"
"""The one Linear that stays float: its weights are the embedding's."""
OPSET = 20
LEGS = (
    Recipe(steps=3600, stop=1250, seed=1611, peak_rate=4e-3, keep_every=250),
    Recipe(
        steps=450, stop=450, seed=1612, peak_rate=2.5e-3, warmup=20, short_share=0.4, keep_every=50
    ),
)
"""The run. The second leg brings the rate down, which is still high where the first one stops."""


# --------------------------------------------------------------------------------------- model


class Through(torch.autograd.Function):
    """The rounded values forward; backward, the gradient as if nothing had been rounded."""

    @staticmethod
    def forward(ctx: Any, exact: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
        return rounded

    @staticmethod
    def backward(ctx: Any, *grad_outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad_outputs[0], None


def ternary(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """BitNet's weights: -1, 0 or +1 each, and one scale, the mean magnitude."""
    scale = weight.abs().mean().clamp(min=1e-5)
    return (weight / scale).round().clamp(-1, 1), scale


def rounded_weight(weight: torch.Tensor) -> torch.Tensor:
    """What BitNet makes of a weight matrix."""
    codes, scale = ternary(weight.detach())
    return Through.apply(weight, codes * scale)


def rounded_activation(values: torch.Tensor) -> torch.Tensor:
    """What BitNet makes of activations: int8, with one scale for each token.

    The operations are those of transformers' ``AutoBitLinear``, and so of the exported graph.
    """
    with torch.no_grad():
        scale = 127 / values.abs().amax(-1, keepdim=True).clamp_(min=1e-5)
        rounded = (values * scale).round_().clamp_(-128, 127).div_(scale)
    return Through.apply(values, rounded)


def config(**options: Any) -> BitNetConfig:
    """The shape of the model."""
    return BitNetConfig(
        vocab_size=256,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.04,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        **options,
    )


def new_model() -> BitNetForCausalLM:
    """The untrained model.

    Every BitLinear reads a norm, and the norms in front of them feed nothing else: activations are
    rounded once, behind the norm, and not again in each of the projections that share them.
    """
    model = BitNetForCausalLM(config())
    for name, module in model.named_modules():
        if name.endswith(("layernorm", "sub_norm")):
            module.register_forward_hook(lambda *call: rounded_activation(call[-1]))
    return model


def learn(work: Path, legs: list[Recipe], onwards: bool) -> None:
    """Train from nothing, or ``onwards`` from the checkpoint; leave a float checkpoint.

    Each leg has its own seed, and Adam begins anew in it.
    """
    courses: list[dict[str, float]] = []
    for leg in legs:
        random = begin(leg.seed)
        model = new_model()
        if onwards:
            model.load_state_dict(
                BitNetForCausalLM.from_pretrained(work / "checkpoint").state_dict()
            )
        round_weights(model, rounded_weight, but=HEAD)
        save = partial(leave, model, work)
        courses += train(model, work, leg, random, round_now=lambda: None, save=save)
        onwards = True
    (work / "course.json").write_text(json.dumps(courses))


def leave(model: BitNetForCausalLM, work: Path) -> None:
    """Leave a float checkpoint."""
    plain(model).save_pretrained(work / "checkpoint")


# -------------------------------------------------------------------------------------- export


def engraved(work: Path) -> BitNetForCausalLM:
    """The checkpoint in ``autobitlinear`` form: ternary weights beside their scale."""
    from transformers import BitNetQuantConfig

    model = BitNetForCausalLM.from_pretrained(work / "checkpoint")
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != HEAD:
            codes, scale = ternary(state[f"{name}.weight"])
            state[f"{name}.weight"], state[f"{name}.weight_scale"] = codes, scale.reshape(1)
    quantization = BitNetQuantConfig(
        modules_to_not_convert=[HEAD], linear_class="autobitlinear", quantization_mode="offline"
    )
    offline = BitNetForCausalLM.from_pretrained(
        None, config=config(quantization_config=quantization.to_dict()), state_dict=state
    )
    return offline.eval()


class Flat(torch.nn.Module):
    """The model with its caches as plain inputs and outputs."""

    def __init__(self, model: BitNetForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        past: list[tuple[torch.Tensor, torch.Tensor]],
    ) -> tuple[torch.Tensor, list[tuple[torch.Tensor | None, torch.Tensor | None]]]:
        cache = DynamicCache()
        for layer, (key, value) in enumerate(past):
            cache.update(key, value, layer)
        result = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        return result.logits, [(key, value) for key, value, *_ in cache]


def exported(model: BitNetForCausalLM) -> onnx.ModelProto:
    """The graph that torch's exporter writes, with the names of its inputs made readable.

    The exporter's notes on every node (module names, stack traces, paths of this machine) go.
    """
    shape = model.config
    layers = shape.num_hidden_layers
    heads = shape.num_key_value_heads or shape.num_attention_heads
    width = shape.hidden_size // shape.num_attention_heads
    names = [f"{layer}.{part}" for layer in range(layers) for part in ("key", "value")]
    batch, length, past = 2, 3, 5
    none = torch.zeros(batch, heads, past, width)
    inputs = {
        "input_ids": torch.zeros(batch, length, dtype=torch.int64),
        "attention_mask": torch.ones(batch, past + length, dtype=torch.int64),
        "position_ids": torch.arange(past, past + length).repeat(batch, 1),
        "past": [(none.clone(), none.clone()) for _ in range(layers)],
    }
    cache = {0: "batch_size", 2: "past_sequence_length"}
    shapes = {
        "input_ids": {0: "batch_size", 1: "sequence_length"},
        "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
        "position_ids": {0: "batch_size", 1: "sequence_length"},
        "past": [(cache, cache)] * layers,
    }
    program = torch.onnx.export(
        Flat(model),
        kwargs=inputs,
        dynamo=True,
        dynamic_shapes=shapes,
        opset_version=OPSET,
        input_names=[*list(inputs)[:3], *(f"past_key_values.{name}" for name in names)],
        output_names=["logits", *(f"present.{name}" for name in names)],
    )
    assert program is not None
    proto = program.model_proto
    for part in [proto, proto.graph, *proto.graph.node, *proto.graph.value_info]:
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    for part in [*proto.graph.initializer, *proto.graph.input, *proto.graph.output]:
        part.ClearField("metadata_props")
    return proto


def export(work: Path, out: Path) -> None:
    """Write the checkpoint as ``model/model.onnx``, one file."""
    proto = exported(engraved(work))
    onnx.checker.check_model(proto, full_check=True)
    (out / "model").mkdir(exist_ok=True)
    content = proto.SerializeToString()
    (out / "model" / "model.onnx").write_bytes(content)
    say(f"export: model.onnx, {len(content)} bytes, {len(proto.graph.node)} nodes")


# --------------------------------------------------------------------------------------- judge


def check(graph: Graph, proto: onnx.ModelProto, model: BitNetForCausalLM, text: bytes) -> None:
    """The graph against torch: every matrix ternary, the same logits at once and byte by byte.

    Both add up in different orders. Where an activation lies within 1e-7 of a tie, that is enough
    for one of them to round it up and the other down; from there on the logits differ a little.
    """
    constants = {entry.name: numpy_helper.to_array(entry) for entry in proto.graph.initializer}
    matrices = [constants.get(n.input[1]) for n in proto.graph.node if n.op_type == "MatMul"]
    ternaries = [m for m in matrices if m is not None and set(np.unique(m)) <= {-1.0, 0.0, 1.0}]
    wanted = 7 * model.config.num_hidden_layers
    zeros = 1 - sum(np.count_nonzero(m) for m in ternaries) / sum(m.size for m in ternaries)
    say(f"{len(ternaries)} of {wanted} matrices are -1, 0, +1; {zeros:.1%} of the weights are 0")

    width = 64
    ids = np.frombuffer(text[: 16 * width], np.uint8).astype(np.int64).reshape(-1, width)
    expected = torch_logits(model)(ids)
    past, single = graph.empty(len(ids)), []
    for place in range(width):
        results = graph.run(ids[:, place : place + 1], past)
        past = {name: results[name.replace("past_key_values", "present")] for name in past}
        single.append(results["logits"])
    for how, found in (("at once", graph.logits(ids)), ("step by step", np.concatenate(single, 1))):
        apart = np.abs(found - expected).max(-1)
        say(
            f"logits of onnxruntime {how} and of torch: apart by {np.median(apart):.1e} (median), "
            f"{apart.max():.1e} (most); {(apart <= 1e-4).mean():.1%} of the bytes within 1e-4"
        )


def judge(work: Path, out: Path) -> None:
    """Nats a byte of the held-out text, three ways, and samples; also in ``figures.json``."""
    torch.set_num_threads(1)
    text = HELD_OUT.read_bytes()
    proto = onnx.load(out / "model" / "model.onnx")
    graph, model = Graph(proto), engraved(work)
    check(graph, proto, model, text)
    figures = {
        "torch": nats_a_byte(torch_logits(model), text),
        "onnxruntime": nats_a_byte(graph.logits, text),
    }
    report(
        work,
        figures,
        greedy=lambda prompt: graph.continued(prompt, 200),
        drawn=lambda prompt: graph.continued(prompt, 400, 0.7),
    )


# ---------------------------------------------------------------------------------------- main


def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = command_line(__doc__, STAGES, HERE, Path("build/bitnet"))
    add = parser.add_argument
    add("--stop", type=int, help="at most so many steps in each leg")
    add("--onwards", action="store_true", help="the last leg only, from the checkpoint")
    options = parser.parse_args(arguments)

    stages = options.only or STAGES
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)
    if "text" in stages:
        prepare(options.work, options.bible, options.bible_data)
    if "train" in stages:
        legs = [replace(leg, stop=min(options.stop or leg.stop, leg.stop)) for leg in LEGS]
        learn(options.work, legs[-1:] if options.onwards else legs, options.onwards)
    if "export" in stages:
        export(options.work, options.out)
    if "judge" in stages:
        judge(options.work, options.out)


if __name__ == "__main__":
    main()
