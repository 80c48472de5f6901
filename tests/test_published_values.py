"""The paper's rows of music, motion and video, and what they were scored with, number by number:
what flags resolve to, whichever file says it. Where the paper is silent, what was chosen."""

import math

import pytest
import torch
from torch import nn

from evaluations.extractors import open_extractor
from models import MDM
from runtime.config import NpzDDPM, NpzODE, TrainConfig, parse
from runtime.errors import InputError
from runtime.presets import PRESETS
from transport import PROTOCOLS

# As SiT trains on images, unless a row says else.
SIT = dict(
    lr=1e-4, weight_decay=0.0, ema_decay=0.9999, path_type="Linear", prediction="velocity",
    time_shift=1.0, similarity="cosine", stop_gradient=True, class_dropout_prob=0.1,
)  # fmt: skip
MUSIC = SIT | dict(
    dataset_name="mtg-jamendo", model="SiT-XL/1", learn_sigma=False, global_batch_size=1024,
    encoder_depth=8, gt_encoder_depth=21, reg_weight=0.2,
)  # fmt: skip
MOTION = SIT | dict(
    dataset_name="humanml3d", model="MDM", prediction="data", global_batch_size=64,
    max_steps=600_000, encoder_depth=3, gt_encoder_depth=6, reg_weight=0.2, precision="fp32",
    global_seed=10, ckpt_every=50_000, cfg_scale=2.5, dropout=None,
)  # fmt: skip
FINE_TUNING = SIT | dict(
    dataset_name="ssv2", global_batch_size=160, max_steps=1100, encoder_depth=4,
    gt_encoder_depth=24, similarity="trd", trd_margin=0.0, reg_weight=0.5, lora_rank=32,
    lora_alpha=32.0, weight_decay=0.01, clip_grad_norm=1.0, precision="bf16", ema_decay=0.0,
)  # fmt: skip
WAN = FINE_TUNING | dict(model="Wan2.1", time_shift=3.0)
ROWS = {
    "t3-465": MUSIC | dict(max_steps=19_530),  # 465 epochs of 42 batches
    "t3-650": MUSIC | dict(max_steps=27_300),
    "t4": MOTION | dict(path_type="Cosine-1000", ema_decay=0.0, mask_frames=False),
    "mdm-50": MOTION | dict(path_type="Cosine-50", ema_decay=0.9999, mask_frames=True),
    "t7": SIT
    | dict(
        dataset_name="clevrer", model="SiT-XL/1x2x2", learn_sigma=False, global_batch_size=128,
        max_steps=24_000, encoder_depth=8, gt_encoder_depth=16, reg_weight=0.2, ema_decay=0.9994,
    ),
    "wan-ssv2": WAN,
    "cogvideox-ssv2": FINE_TUNING
    | dict(model="CogVideoX", path_type="CogVideoX", prediction="v_prediction"),
    "official-lora": WAN
    | dict(
        time_shift=5.0, similarity="cosine", encoder_depth=9, gt_encoder_depth=17,
        reg_weight=0.002, stop_gradient=False, clip_grad_norm=0.0,
    ),
}  # fmt: skip
GUIDED = dict(guidance_low=0.0, guidance_high=1.0)
SAMPLING = {
    "mdm": (NpzDDPM, dict(num_sampling_steps=None, ddim=False, cfg_scale=2.5, cfg_channels=None)),
    "wan": (
        NpzODE,
        dict(sampling_method="euler", num_sampling_steps=51, cfg_scale=5.0, time_shift=3.0,
             cfg_channels="all"),
    ),
    "cogvideox": (
        NpzDDPM, dict(num_sampling_steps=50, ddim=True, cfg_scale=6.0, cfg_channels="all")
    ),
}  # fmt: skip


def resolved(flags, wanted):
    return {name: getattr(flags, name) for name in wanted}


@pytest.mark.parametrize("name", ROWS)
def test_presets_train_as_published(name):
    flags = parse(TrainConfig, PRESETS, ["--preset", name])
    assert resolved(flags, ROWS[name]) == ROWS[name]


@pytest.mark.parametrize("name", SAMPLING)
def test_protocols_sample_as_published(name):
    command, wanted = SAMPLING[name]
    row = {key: value for key, value in PROTOCOLS[name].items() if key != "mode"}
    assert resolved(command(**row), wanted | GUIDED) == wanted | GUIDED


def test_the_ema_of_clevrer_forgets_how_it_began():
    """Its half-life is at most a twentieth of the run: that of images, 0.29 of it."""
    flags = parse(TrainConfig, PRESETS, ["--preset", "t7"])
    assert math.log(0.5) / math.log(flags.ema_decay) < 0.05 * flags.max_steps


def test_mdm_drops_a_tenth_of_its_activations():
    with torch.device("meta"):
        model = MDM()
    dropped = [part.p for part in model.modules() if isinstance(part, nn.Dropout)]
    dropped += [part.dropout for part in model.modules() if isinstance(part, nn.MultiheadAttention)]
    assert len(dropped) == 1 + 8 * 4 and set(dropped) == {0.1}


def test_fad_is_heard_by_larger_clap_music(monkeypatch):
    asked = []

    def absent(load, name, *_, **__):
        asked.append(name)
        raise OSError("none")

    pytest.importorskip("transformers")
    monkeypatch.setattr("evaluations.extractors.clap.looked_up", absent)
    with pytest.raises(InputError, match="clap:laion/larger_clap_music"):
        open_extractor("clap:", torch.device("cpu"))
    assert asked == ["laion/larger_clap_music"]
