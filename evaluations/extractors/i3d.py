"""I3D as StyleGAN-V's TorchScript file has it, an extractor of clips: FVD is the Frechet distance
of its 400 features.

--extractor i3d:i3d_torchscript.pt
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from runtime.errors import InputError
from runtime.files import sha256_of
from runtime.precision import plain_float32

from .extractor import UNREADABLE, Features, reason_of

# i3d_torchscript.pt as many public evaluations pin it, 51,235,320 bytes.
SHA256 = "bec6519f66ea534e953026b4ae2c65553c17bf105611c746d904657e5860a5e2"
FEWEST = 10  # frames, which it makes an eighth of before it averages two
HOW = dict(rescale=True, resize=True, return_features=True)  # the file's own: 224 pixels, -1..1


class I3DExtractor:
    """Logits of Kinetics' 400 classes per clip, frames resized and rescaled by the file itself.

    The published FVDs are of this file, but few say how many frames, at which stride, were taken
    of how many videos of which part: compare values under the same ones only.
    """

    half_distances = reads_labels = False
    rate = None
    distance = "fvd"

    def __init__(self, network: nn.Module, fingerprint: str, device: torch.device) -> None:
        self.network, self.device = network.eval().to(device), device
        self.name = "i3d, resized by its file"
        self.fingerprint = fingerprint

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Features:
        """uint8 (N, 1 or 3, T, H, W) -> pool (N, 400).

        Raises:
            InputError: these are no clips, or such of too few frames.
        """
        if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[1] not in (1, 3):
            raise InputError(f"--extractor i3d sees clips, and these are {tuple(clips.shape[1:])}")
        if clips.shape[2] < FEWEST:
            raise InputError(
                f"--extractor i3d sees {FEWEST} frames or more, and these clips have "
                f"{clips.shape[2]}: draw longer ones, or where the data have classes use "
                "--extractor classifier"
            )
        with plain_float32(self.device):
            x = clips.to(self.device).expand(-1, 3, -1, -1, -1).float()
            return Features(self.network(x, **HOW).float(), spatial=None)

    def probabilities(self, pool: Tensor) -> None:
        """None: FVD's tools report no Inception score."""


def load(path: str, device: torch.device, *, allow_unverified: bool = False) -> I3DExtractor:
    """The file is a program, which loading begins to run: it has to be the published one.

    Args:
        allow_unverified: run another one.

    Raises:
        InputError: no such file, another one, or one that is no I3D.
    """
    if not Path(path).is_file():
        raise InputError(
            f"--extractor i3d:{path}: there is no such file; give StyleGAN-V's i3d_torchscript.pt"
        )
    found = sha256_of(path)
    if found != SHA256 and not allow_unverified:
        raise InputError(
            f"--extractor i3d:{path} is not the published i3d_torchscript.pt (SHA-256 "
            f"{found[:8]}..., not {SHA256[:8]}...), and it is a program: if you trust it, run it "
            "with --allow-unverified-weights"
        )
    try:
        network = torch.jit.load(path, map_location="cpu")
        blank = torch.zeros(1, 3, 16, 32, 32)
        with torch.no_grad():
            features = network.eval()(blank, **HOW)
        if not torch.is_tensor(features) or features.ndim != 2:
            raise ValueError("it gives no features per clip")
    except (*UNREADABLE, torch.jit.Error) as error:
        raise InputError(f"--extractor i3d:{path} is no I3D ({reason_of(error)})") from error
    return I3DExtractor(network, found, device)
