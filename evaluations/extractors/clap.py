"""LAION-CLAP as transformers has it, an extractor of sounds: FAD is the Frechet distance of its
embeddings brought to length 1.

--extractor clap:laion/larger_clap_music         an embedding per sound
--extractor clap-fadtk:laion/larger_clap_music   one per second of it; see `windows`
"""

from collections.abc import Callable, Sequence
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
LONGEST = 480_000  # samples that CLAP hears


def whole(sound: np.ndarray) -> list[np.ndarray]:
    """The first 10 seconds of a sound (samples,); CLAP repeats what is shorter."""
    return [sound[:LONGEST]]


def windows(sound: np.ndarray) -> list[np.ndarray]:
    """10 seconds from every second of a sound (samples,) on, zeros behind its end, in steps of
    int16 towards zero: as fadtk (https://github.com/microsoft/fadtk) has LAION-CLAP hear it."""
    coarse = (32767 * sound.clip(-1, 1)).astype(np.int16) / 32767
    padded = np.pad(coarse, (0, LONGEST))
    return [padded[first : first + LONGEST] for first in range(0, len(sound), RATE)]


# Name of the extractor -> what CLAP hears of a sound. The numbers are not comparable.
WAYS: dict[str, Callable[[np.ndarray], list[np.ndarray]]] = {
    "clap": whole,
    "clap-fadtk": windows,
}


class ClapExtractor:
    """Embeddings of sounds, or of windows of them, mono at 48 kHz.

    Values are comparable under the same model alone: the published FADs are of LAION-CLAP, but
    do not say which of its checkpoints, nor of which parts.
    """

    half_distances = reads_labels = False
    distance = "fad"
    rate = 44_100  # MTG-Jamendo's

    def __init__(
        self, network: nn.Module, prepare, kind: str, name: str, device: torch.device
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.prepare, self.device = prepare, device
        self.name, self.cut = f"{kind}:{name}", WAYS[kind]
        self.truncation = "fusion" if network.config.enable_fusion else "rand_trunc"
        self.fingerprint = fingerprint(network.state_dict())

    def __call__(self, sounds: Tensor) -> Features:
        """int16 (N, channels, samples) -> pool (N, D), and windows where a sound has several.

        Raises:
            InputError: these are no sounds.
        """
        if sounds.dtype != torch.int16 or sounds.ndim != 3:
            raise InputError(f"--extractor {self.name} hears sounds, and these are pictures")
        mono = sounds.float().mean(1).cpu().numpy() / 32768
        windows = [part for one in mono for part in self.cut(resampled(one, self.rate, RATE))]
        size = len(sounds)  # the caller's number fits memory, and there may be ten times as many
        found = torch.cat([
            self.embedded(windows[first : first + size]) for first in range(0, len(windows), size)
        ])  # fmt: skip
        each = len(found) // len(sounds)  # all are equally long
        return Features(found[::each], spatial=None, windows=found if each > 1 else None)

    def embedded(self, heard: Sequence[np.ndarray]) -> Tensor:
        """Sounds at RATE, LONGEST samples or fewer -> (N, D) of length 1."""
        inputs = self.prepare(
            [one.astype(np.float64) for one in heard],
            sampling_rate=RATE,
            return_tensors="pt",
            padding="repeatpad",
            truncation=self.truncation,
        ).to(self.device)
        if "is_longer" in inputs:  # of a fusing CLAP; its own code draws one at random to be
            inputs["is_longer"] = torch.zeros_like(inputs["is_longer"])
        with torch.no_grad(), plain_float32(self.device):
            return F.normalize(self.network(**inputs).audio_embeds.float())

    def probabilities(self, pool: Tensor) -> None:
        """CLAP has no classes."""


def load(kind: str, name: str, device: torch.device) -> ClapExtractor:
    """A hub id or a folder of ClapAudioModelWithProjection and its ClapFeatureExtractor.

    Args:
        kind: of WAYS.

    Raises:
        InputError: no transformers here, or not to be had.
    """
    try:
        from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor
    except ImportError as error:
        raise InputError(
            f"--extractor {kind}:{name} needs transformers ({error}): pip install '.[audio]'"
        ) from error
    name = name or "laion/larger_clap_music"
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise InputError(f"--extractor {kind}:{name}: there is no such folder")
    try:
        # Of some models the hub has nothing but torch.save's files, which are read without code.
        network = looked_up(
            ClapAudioModelWithProjection.from_pretrained, name, None, weights_only=True,
            use_safetensors=is_path(name) or None,
        )  # fmt: skip
        prepare = looked_up(ClapFeatureExtractor.from_pretrained, name, None)
    except UNREADABLE as error:
        raise InputError(
            f"--extractor {kind}:{name}: it is neither in the cache of the Hugging Face hub nor to "
            f"be had from it here ({reason_of(error)}); name the folder of a saved one"
        ) from error
    return ClapExtractor(network, prepare, kind, name, device)
