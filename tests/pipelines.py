"""Pipelines of Wan and CogVideoX with all their parts, small and of seeded random weights, saved as
diffusers saves them."""

import json
from pathlib import Path

import torch

WORDS = "pushing putting holding a cup box next to on the table left right up".split()
VOCABULARY = 40  # at most
WIDTH = 32  # of a text's tokens


def tokenizer():
    """T5's: words, and </s> at the end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(f"▁{word}", -float(n + 1)) for n, word in enumerate(WORDS)]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def give_sentencepiece(pipeline: Path) -> None:
    """Put the tokenizer of CogVideoX's repository in the place of `tokenizer`'s: spiece.model, as
    sentencepiece trains it, which the pipeline's class converts."""
    import io

    import sentencepiece

    model = io.BytesIO()
    lines = [" ".join(WORDS[first:] + WORDS[:first]) for first in range(len(WORDS))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, vocab_size=VOCABULARY,
        hard_vocab_limit=False, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    folder = pipeline / "tokenizer"
    for path in folder.iterdir():
        path.unlink()
    (folder / "spiece.model").write_bytes(model.getvalue())
    about = {"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 226}
    about |= {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    index = json.loads((pipeline / "model_index.json").read_text())
    index["tokenizer"] = ["transformers", "T5Tokenizer"]
    (pipeline / "model_index.json").write_text(json.dumps(index))


def text_encoder(config_class, model_class):
    return model_class(
        config_class(
            vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=32, num_layers=1, num_heads=2
        )
    )


def save_wan(folder: Path, layers: int = 5) -> Path:
    from diffusers import (
        AutoencoderKLWan,
        FlowMatchEulerDiscreteScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    transformer = WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=WIDTH, freq_dim=32, ffn_dim=48,
        num_layers=layers,
    )  # fmt: skip
    vae = AutoencoderKLWan(base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    pipeline = WanPipeline(
        tokenizer=tokenizer(), text_encoder=text_encoder(UMT5Config, UMT5EncoderModel), vae=vae,
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


def save_cogvideox(folder: Path, layers: int = 5) -> Path:
    from diffusers import (
        AutoencoderKLCogVideoX,
        CogVideoXDDIMScheduler,
        CogVideoXPipeline,
        CogVideoXTransformer3DModel,
    )
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2, attention_head_dim=16, text_embed_dim=WIDTH, time_embed_dim=16,
        num_layers=layers, sample_width=8, sample_height=6, sample_frames=9,
        max_text_seq_length=226,
    )  # fmt: skip
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), norm_num_groups=2, layers_per_block=1, latent_channels=16
    )
    scheduler = CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False,
        rescale_betas_zero_snr=True, snr_shift_scale=3.0, timestep_spacing="trailing",
    )  # fmt: skip
    pipeline = CogVideoXPipeline(
        tokenizer=tokenizer(), text_encoder=text_encoder(T5Config, T5EncoderModel), vae=vae,
        transformer=transformer, scheduler=scheduler,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    return folder


SAVES = {"Wan2.1": save_wan, "CogVideoX": save_cogvideox}
