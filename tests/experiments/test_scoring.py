"""How samples are drawn and scored in sweeps: the paper's numbers, written out."""

import pytest

from experiments.scoring import PAPER, SCORINGS
from runtime.config import TrainConfig

SAMPLES = {
    "imagenet-1k": 50_000, "mtg-jamendo": 10_000, "humanml3d": 20 * 1024, "clevrer": 5000,
    "ssv2": 5000,
}  # fmt: skip
EXTRACTORS = {
    "imagenet-1k": "inception", "mtg-jamendo": "clap:laion/larger_clap_music",
    "clevrer": "i3d:i3d_torchscript.pt", "ssv2": "i3d:i3d_torchscript.pt",
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLES)
def test_the_papers_data_are_sampled_as_often_as_published_and_with_the_protocols_steps(name):
    scoring = SCORINGS.get(name, PAPER)
    words = scoring.sample_words()
    assert words[:2] == ["--num-fid-samples", str(SAMPLES[name])]
    assert "--num-sampling-steps" not in words


@pytest.mark.parametrize("name", EXTRACTORS)
def test_they_are_scored_by_the_published_extractor_beside_what_no_model_saw(name, tmp_path):
    """ImageNet's reference is ADM's file, of training images as all published ones are."""
    scoring = SCORINGS.get(name, PAPER)
    words = scoring.score_words(tmp_path / "s.npz", TrainConfig(data_path="DATA"))
    assert words[words.index("--extractor") + 1] == EXTRACTORS[name]
    reference = words[words.index("evaluations.images") + 1]
    if name == "imagenet-1k":
        assert reference == "VIRTUAL_imagenet256_labeled.npz" and "--held-out" not in words
    else:
        assert reference == name and "--held-out" in words


def test_motions_are_scored_in_replications_of_1024(tmp_path):
    config = TrainConfig(data_path="HumanML3D")
    words = SCORINGS["humanml3d"].score_words(tmp_path / "s.npz", config)
    assert words[words.index("--per-replication") + 1] == "1024"
    assert words[words.index("--evaluator") + 1] == "motion-diffusion-model"
