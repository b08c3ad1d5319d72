"""Names of modules: those of a decoder's layers are sites, others are not."""

from __future__ import annotations

import pytest

from intaglio.runtime.adapters.module_names import read_name, site_names


@pytest.mark.parametrize(
    ("module", "sites"),
    [
        ("model.layers.11.self_attn.o_proj", ["layers.11.o_proj"]),
        ("transformer.h.3.attn.c_proj", ["layers.3.o_proj"]),
        ("transformer.h.3.mlp.c_proj", ["layers.3.down_proj"]),
        ("transformer.h.3.mlp.c_fc", ["layers.3.up_proj"]),
        ("transformer.h.3.attn.attention.q_proj", ["layers.3.q_proj"]),
        ("transformer.h.3.mlp.fc_in", ["layers.3.up_proj"]),
        ("transformer.blocks.3.attn.out_proj", ["layers.3.o_proj"]),
        ("model.transformer.blocks.3.ffn.down_proj", ["layers.3.down_proj"]),
        ("model.layers.3.self_attn.dense", ["layers.3.o_proj"]),
        ("model.layers.3.mlp.fc2", ["layers.3.down_proj"]),
        ("model.layers.3.mlp.gate_up_proj", ["layers.3.gate_proj", "layers.3.up_proj"]),
        ("transformer.h.0.attn.c_attn", [f"layers.0.{x}_proj" for x in "qkv"]),
        ("layers.3.attention.wq", ["layers.3.q_proj"]),
        ("layers.3.feed_forward.w3", ["layers.3.up_proj"]),
        ("gpt_neox.layers.3.attention.dense", ["layers.3.o_proj"]),
        ("gpt_neox.layers.3.mlp.dense_4h_to_h", ["layers.3.down_proj"]),
        ("model.decoder.layers.3.fc1", ["layers.3.up_proj"]),
        ("model.decoder.layers.3.self_attn.out_proj", ["layers.3.o_proj"]),
        ("model.language_model.layers.3.self_attn.q_proj", ["layers.3.q_proj"]),
        ("language_model.model.layers.3.mlp.up_proj", ["layers.3.up_proj"]),
        ("language_model.model.decoder.layers.3.self_attn.k_proj", ["layers.3.k_proj"]),
        ("model.text_model.layers.3.mlp.gate_proj", ["layers.3.gate_proj"]),
        ("thinker.model.layers.3.self_attn.v_proj", ["layers.3.v_proj"]),
        ("module.model.layers.3.self_attn.v_proj", ["layers.3.v_proj"]),
        ("model.layers.3.attn.q_proj", ["layers.3.q_proj"]),
        ("layers.3.q_proj", ["layers.3.q_proj"]),
        ("layers.3.down_proj", ["layers.3.down_proj"]),
    ],
)
def test_sites(module: str, sites: list[str]):
    assert list(site_names(module)) == sites


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("model.vision_tower.blocks.3.self_attn.q_proj", "of a vision tower"),
        ("visual.blocks.3.attn.q_proj", "of a vision tower"),
        ("vision_model.encoder.layers.3.self_attn.q_proj", "of a vision tower"),
        ("model.image_encoder.blocks.3.mlp.fc1", "of a vision tower"),
        ("audio_tower.layers.3.self_attn.q_proj", "of an audio model"),
        ("talker.model.layers.3.self_attn.q_proj", "of an audio model"),
        ("model.speech_encoder.layers.3.self_attn.q_proj", "of an audio model"),
        ("encoder.layers.3.self_attn.q_proj", "of an encoder"),
        ("model.encoder.layers.3.self_attn.q_proj", "of an encoder"),
        ("text_model.encoder.layers.3.self_attn.q_proj", "of an encoder"),
        ("qformer.encoder.layer.3.attention.q_proj", "of a connector between models"),
        ("mtp.layers.3.self_attn.q_proj", "of a head that drafts tokens"),
        ("model.mtp.layers.3.mlp.up_proj", "of a head that drafts tokens"),
        ("draft.model.layers.3.self_attn.q_proj", "of a head that drafts tokens"),
        ("model.layers.3.cross_attn.q_proj", "cross attention"),
        ("model.decoder.layers.3.encoder_attn.q_proj", "cross attention"),
        ("transformer.h.3.crossattention.c_proj", "cross attention"),
        ("model.layers.3.mlp.experts.7.gate_proj", "an expert's"),
        ("model.layers.3.mlp.shared_expert.gate_proj", "an expert's"),
        ("model.layers.3.block_sparse_moe.experts.0.w1", "an expert's"),
        ("reward.layers.3.self_attn.q_proj", "what stands before layers.3 is no decoder's path"),
        ("model.adapter.layers.3.self_attn.q_proj", "('adapter')"),
        # Qwen's first has w1 for up and w2 for the gate, so that the name says nothing.
        ("transformer.h.3.mlp.w1", None),
        ("model.layers.3.mlp.q_proj", None),
        ("model.layers.3.self_attn.up_proj", None),
        ("model.layers.3.mlp.dense", None),
        ("model.layers.3.dense", None),
        ("gpt_neox.layers.3.attention.query_key_value", None),
        ("model.layers.3.layers.4.self_attn.q_proj", None),
        ("model.layers.3.input_layernorm", None),
        ("model.layers.3", None),
        ("lm_head", None),
        ("", None),
    ],
)
def test_what_is_no_site_says_what_it_is(module: str, why: str | None):
    named = read_name(module)
    assert named.sites == ()
    assert named.why is None if why is None else why in (named.why or "")
