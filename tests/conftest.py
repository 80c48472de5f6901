"""Shared pieces of the tests; `make test` runs them all."""

import os

# Before torch: several processes share few cores, and sums must not depend on their number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch
from filelock import FileLock
from torch import nn


def pytest_xdist_auto_num_workers() -> int:
    """Three for two cores: ranks that wait for one another leave a fifth of the time idle."""
    return (os.cpu_count() or 1) * 3 // 2


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def perturb():
    """Give a model weights at which every block does something: at its initial values each block
    is the identity (adaLN-zero), and no test of the features could fail."""

    def apply(model: nn.Module, scale: float = 0.2) -> nn.Module:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name != "pos_embed":
                    parameter += scale * torch.randn(parameter.shape, generator=generator)
        return model

    return apply


@pytest.fixture(scope="session")
def digits_classifier(tmp_path_factory):
    """The file of the digits' classifier, trained once for all processes that run tests."""
    import domains
    from evaluations.extractors import classifier

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    file = folder / "classifier-digits.pt"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            classifier.train_to_file(domains.build("digits"), file, min_accuracy=0.5)
    return file


@pytest.fixture(scope="session")
def tiny_vae(tmp_path_factory):
    """A real AutoencoderKL, small and with seeded weights, saved as diffusers saves it."""
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        scaling_factor=0.18215,
    )
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder)
    return str(folder)
