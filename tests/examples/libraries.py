"""Tiny models of other people's classes, from their configurations, with inputs for one forward
pass. Text, where there is any, has 5 tokens: never as many as the image."""

from typing import Any, NamedTuple

import diffusers
import timm
import torch
from torch import nn

from examples import accelerate_sd3, diffusers_dit, timm_vit

BATCH, TEXT, IMAGE = 2, 5, 16  # IMAGE: tokens, of 8 x 8 pixels or latents in patches of 2
HEADS = dict(num_attention_heads=2, attention_head_dim=12)
WIDTH = 24
MASK = torch.ones(BATCH, TEXT)
STEPS = torch.tensor([100, 700])


class Case(NamedTuple):
    model: nn.Module
    inputs: dict[str, Any]
    tokens: int = IMAGE  # of the image, video or sound


def text(width: int = WIDTH) -> torch.Tensor:
    return torch.randn(BATCH, TEXT, width)


def image(channels: int = 4) -> torch.Tensor:
    return torch.randn(BATCH, channels, 8, 8)


def dit() -> Case:
    inputs = dict(hidden_states=image(1), timestep=STEPS, class_labels=torch.tensor([3, 7]))
    return Case(diffusers_dit.build(), inputs)


def pixart() -> Case:
    model = diffusers.PixArtTransformer2DModel(
        **HEADS, num_layers=6, sample_size=8, cross_attention_dim=WIDTH, caption_channels=WIDTH,
        use_additional_conditions=False,
    )  # fmt: skip
    sizes = dict(resolution=None, aspect_ratio=None)
    return Case(
        model,
        dict(hidden_states=image(), encoder_hidden_states=text(), timestep=STEPS,
             added_cond_kwargs=sizes),
    )  # fmt: skip


def sana() -> Case:
    model = diffusers.SanaTransformer2DModel(
        **HEADS, in_channels=4, out_channels=4, num_layers=6, num_cross_attention_heads=2,
        cross_attention_head_dim=12, cross_attention_dim=WIDTH, caption_channels=WIDTH,
        sample_size=8, patch_size=2,
    )  # fmt: skip
    return Case(model, dict(hidden_states=image(), encoder_hidden_states=text(), timestep=STEPS))


def sd3() -> Case:
    tokens, pooled = accelerate_sd3.captions()
    label = torch.tensor([3, 7])
    inputs = dict(hidden_states=image(1), encoder_hidden_states=tokens[label],
                  pooled_projections=pooled[label], timestep=STEPS)  # fmt: skip
    return Case(accelerate_sd3.build(), inputs)


def flux() -> Case:
    model = diffusers.FluxTransformer2DModel(
        **HEADS, in_channels=4, num_layers=3, num_single_layers=3, joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH, axes_dims_rope=(4, 4, 4),
    )  # fmt: skip
    return Case(
        model,
        dict(hidden_states=torch.randn(BATCH, IMAGE, 4), encoder_hidden_states=text(),
             pooled_projections=torch.randn(BATCH, WIDTH), timestep=STEPS / 1000,
             img_ids=torch.zeros(IMAGE, 3), txt_ids=torch.zeros(TEXT, 3)),
    )  # fmt: skip


def auraflow() -> Case:
    model = diffusers.AuraFlowTransformer2DModel(
        **HEADS, sample_size=8, num_mmdit_layers=3, num_single_dit_layers=3,
        joint_attention_dim=WIDTH, caption_projection_dim=WIDTH, pos_embed_max_size=IMAGE,
    )  # fmt: skip
    return Case(
        model, dict(hidden_states=image(), encoder_hidden_states=text(), timestep=STEPS / 1000)
    )


def qwen() -> Case:
    model = diffusers.QwenImageTransformer2DModel(
        **HEADS, in_channels=16, out_channels=4, num_layers=6, joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 4),
    )  # fmt: skip
    return Case(
        model,
        dict(hidden_states=torch.randn(BATCH, IMAGE, 16), encoder_hidden_states=text(),
             encoder_hidden_states_mask=MASK, timestep=STEPS / 1000,
             img_shapes=[[(1, 4, 4)]] * BATCH),
    )  # fmt: skip


def wan() -> Case:
    model = diffusers.WanTransformer3DModel(
        **HEADS, num_layers=6, ffn_dim=32, in_channels=4, out_channels=4, text_dim=WIDTH,
        freq_dim=16, rope_max_seq_len=32,
    )  # fmt: skip
    video = torch.randn(BATCH, 4, 3, 8, 8)
    return Case(
        model, dict(hidden_states=video, timestep=STEPS, encoder_hidden_states=text()), 3 * IMAGE
    )


def cogvideox() -> Case:
    model = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, num_layers=6, in_channels=4, out_channels=4,
        text_embed_dim=WIDTH, time_embed_dim=8, sample_width=8, sample_height=8, sample_frames=9,
        max_text_seq_length=TEXT,
    )  # fmt: skip
    video = torch.randn(BATCH, 3, 4, 8, 8)
    return Case(
        model, dict(hidden_states=video, encoder_hidden_states=text(), timestep=STEPS), 3 * IMAGE
    )


def hunyuan_video() -> Case:
    model = diffusers.HunyuanVideoTransformer3DModel(
        **HEADS, in_channels=4, out_channels=4, num_layers=3, num_single_layers=3,
        num_refiner_layers=1, text_embed_dim=WIDTH, pooled_projection_dim=WIDTH,
        rope_axes_dim=(4, 4, 4),
    )  # fmt: skip
    return Case(
        model,
        dict(hidden_states=torch.randn(BATCH, 4, 3, 8, 8), timestep=STEPS,
             encoder_hidden_states=text(), encoder_attention_mask=MASK,
             pooled_projections=torch.randn(BATCH, WIDTH), guidance=torch.full((BATCH,), 6000.0)),
        3 * IMAGE,
    )  # fmt: skip


def mochi() -> Case:
    model = diffusers.MochiTransformer3DModel(
        **HEADS, num_layers=6, pooled_projection_dim=WIDTH, in_channels=4, text_embed_dim=WIDTH,
        time_embed_dim=8, max_sequence_length=TEXT,
    )  # fmt: skip
    return Case(
        model,
        dict(hidden_states=torch.randn(BATCH, 4, 3, 8, 8), encoder_hidden_states=text(),
             timestep=STEPS, encoder_attention_mask=MASK.bool()),
        3 * IMAGE,
    )  # fmt: skip


def ltx() -> Case:
    model = diffusers.LTXVideoTransformer3DModel(
        **HEADS, in_channels=4, out_channels=4, num_layers=6, cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
    )  # fmt: skip
    return Case(
        model,
        dict(hidden_states=torch.randn(BATCH, 3 * IMAGE, 4), encoder_hidden_states=text(),
             timestep=STEPS, encoder_attention_mask=MASK, num_frames=3, height=4, width=4),
        3 * IMAGE,
    )  # fmt: skip


def stable_audio() -> Case:
    model = diffusers.StableAudioDiTModel(
        **HEADS, sample_size=IMAGE, in_channels=4, num_layers=6, num_key_value_attention_heads=1,
        out_channels=4, cross_attention_dim=WIDTH, time_proj_dim=8, global_states_input_dim=WIDTH,
        cross_attention_input_dim=WIDTH,
    )  # fmt: skip
    rotary = diffusers.models.embeddings.get_1d_rotary_pos_embed(
        6, IMAGE + 1, use_real=True, repeat_interleave_real=False
    )
    return Case(
        model,
        dict(hidden_states=torch.randn(BATCH, 4, IMAGE), timestep=STEPS / 1000,
             encoder_hidden_states=text(), global_hidden_states=torch.randn(BATCH, 1, WIDTH),
             rotary_embedding=rotary),
    )  # fmt: skip


def vit() -> Case:
    return Case(timm_vit.build(), dict(x=image(1)))


def eva() -> Case:
    model = timm.models.Eva(
        img_size=8, patch_size=2, in_chans=1, embed_dim=WIDTH, depth=6, num_heads=2, num_classes=10
    )
    return Case(model, dict(x=image(1)))


def encoder() -> Case:
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 32, dropout=0.0)  # (tokens, batch, width)
    model = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    return Case(model, dict(src=torch.randn(IMAGE, BATCH, WIDTH)))


CASES = {
    "DiTTransformer2DModel": dit,
    "PixArtTransformer2DModel": pixart,
    "SanaTransformer2DModel": sana,
    "SD3Transformer2DModel": sd3,
    "FluxTransformer2DModel": flux,
    "AuraFlowTransformer2DModel": auraflow,
    "QwenImageTransformer2DModel": qwen,
    "WanTransformer3DModel": wan,
    "LTXVideoTransformer3DModel": ltx,
    "CogVideoXTransformer3DModel": cogvideox,
    "HunyuanVideoTransformer3DModel": hunyuan_video,
    "MochiTransformer3DModel": mochi,
    "StableAudioDiTModel": stable_audio,
    "VisionTransformer": vit,
    "Eva": eva,
    "TransformerEncoder": encoder,
}
