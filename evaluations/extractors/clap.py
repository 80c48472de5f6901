"""LAION-CLAP as transformers has it, an extractor of sounds: FAD is the Frechet distance of its
embeddings brought to length 1.

--extractor clap:laion/larger_clap_music
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from domains.codecs import fingerprint, is_path, looked_up
from domains.sound import resampled
from runtime.errors import InputError
from runtime.precision import plain_float32

from .extractor import UNREADABLE, Features, reason_of

RATE = 48_000  # that CLAP hears
LONGEST = 480_000  # samples that CLAP hears: longer sounds are cut, shorter ones repeated


class ClapExtractor:
    """One embedding per sound, mono at 48 kHz, of its first 10 seconds ("per clip").

    Values are comparable under the same model alone: the published FADs are of LAION-CLAP, but
    do not say which of its checkpoints.
    """

    half_distances = reads_labels = False
    distance = "fad"
    rate = 44_100  # MTG-Jamendo's

    def __init__(self, network: nn.Module, prepare, name: str, device: torch.device) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.prepare, self.device = prepare, device
        self.name = f"clap:{name}"
        self.truncation = "fusion" if network.config.enable_fusion else "rand_trunc"
        self.fingerprint = fingerprint(network.state_dict())

    def __call__(self, sounds: Tensor) -> Features:
        """int16 (N, channels, samples) -> pool (N, D).

        Raises:
            InputError: these are no sounds.
        """
        if sounds.dtype != torch.int16 or sounds.ndim != 3:
            raise InputError(f"--extractor {self.name} hears sounds, and these are pictures")
        mono = sounds.float().mean(1).cpu().numpy() / 32768
        heard = [resampled(one, self.rate, RATE)[:LONGEST] for one in mono]
        inputs = self.prepare(
            [one.astype(np.float64) for one in heard],
            sampling_rate=RATE,
            return_tensors="pt",
            padding="repeatpad",
            truncation=self.truncation,
        ).to(self.device)
        with torch.no_grad(), plain_float32(self.device):
            return Features(F.normalize(self.network(**inputs).audio_embeds.float()), spatial=None)

    def probabilities(self, pool: Tensor) -> None:
        """CLAP has no classes."""


def load(name: str, device: torch.device) -> ClapExtractor:
    """A hub id or a folder of ClapAudioModelWithProjection and its ClapFeatureExtractor.

    Raises:
        InputError: no transformers here, or not to be had.
    """
    try:
        from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor
    except ImportError as error:
        raise InputError(
            f"--extractor clap:{name} needs transformers ({error}): pip install '.[audio]'"
        ) from error
    name = name or "laion/larger_clap_music"
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise InputError(f"--extractor clap:{name}: there is no such folder")
    try:
        # Of some models the hub has nothing but torch.save's files, which are read without code.
        network = looked_up(
            ClapAudioModelWithProjection.from_pretrained, name, None, weights_only=True,
            use_safetensors=is_path(name) or None,
        )  # fmt: skip
        prepare = looked_up(ClapFeatureExtractor.from_pretrained, name, None)
    except UNREADABLE as error:
        raise InputError(
            f"--extractor clap:{name}: it is neither in the cache of the Hugging Face hub nor to "
            f"be had from it here ({reason_of(error)}); name the folder of a saved one"
        ) from error
    return ClapExtractor(network, prepare, name, device)
