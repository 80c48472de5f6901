"""The Inception of 2015-12-05, whose features FID, sFID and the Inception score are made of.

It computes what the graph in ADM's evaluator does (github.com/openai/guided-diffusion); where it
differs from torchvision's Inception, a comment says so.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.errors import InputError
from runtime.files import sha256_of
from runtime.precision import plain_float32
from runtime.tensors import read_tensors

from .extractor import UNREADABLE, Features, as_color, reason_of

NAME = "inception-2015-12-05"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FILES = (  # one file under two names: torch-fidelity's release v0.2.0, pytorch-fid's fid_weights
    f"weights-{NAME}-6726825d.pth",
    f"pt_{NAME}-6726825d.pth",
)
SIZE = 299  # pixels that the network sees
CLASSES = 1008
SPATIAL = 7  # channels of Mixed_6d that sFID takes: 7 x 17 x 17 = 2023 features


class Unit(NamedTuple):
    """Convolution, BatchNorm, ReLU; with stride 1 it keeps the image's size."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Pool = Callable[[Tensor], Tensor]


class Branch(NamedTuple):
    """Steps one after another; where it forks, each of `ends` reads what the steps give."""

    steps: tuple[Unit | Pool, ...]
    ends: tuple[Unit, ...] = ()


def halve(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=2)


def max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def average_pool(x: Tensor) -> Tensor:
    # TensorFlow's mean leaves the padding out; torchvision's counts it as zeros.
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def chain(*steps: Unit | Pool) -> Branch:
    return Branch(steps)


def mixed_5(pooled: int) -> list[Branch]:
    return [
        chain(Unit("branch1x1", 64)),
        chain(Unit("branch5x5_1", 48), Unit("branch5x5_2", 64, (5, 5))),
        chain(
            Unit("branch3x3dbl_1", 64),
            Unit("branch3x3dbl_2", 96, (3, 3)),
            Unit("branch3x3dbl_3", 96, (3, 3)),
        ),
        chain(average_pool, Unit("branch_pool", pooled)),
    ]


def mixed_6a() -> list[Branch]:
    return [
        chain(Unit("branch3x3", 384, (3, 3), stride=2)),
        chain(
            Unit("branch3x3dbl_1", 64),
            Unit("branch3x3dbl_2", 96, (3, 3)),
            Unit("branch3x3dbl_3", 96, (3, 3), stride=2),
        ),
        chain(halve),
    ]


def mixed_6(width: int) -> list[Branch]:
    return [
        chain(Unit("branch1x1", 192)),
        chain(
            Unit("branch7x7_1", width),
            Unit("branch7x7_2", width, (1, 7)),
            Unit("branch7x7_3", 192, (7, 1)),
        ),
        chain(
            Unit("branch7x7dbl_1", width),
            Unit("branch7x7dbl_2", width, (7, 1)),
            Unit("branch7x7dbl_3", width, (1, 7)),
            Unit("branch7x7dbl_4", width, (7, 1)),
            Unit("branch7x7dbl_5", 192, (1, 7)),
        ),
        chain(average_pool, Unit("branch_pool", 192)),
    ]


def mixed_7a() -> list[Branch]:
    return [
        chain(Unit("branch3x3_1", 192), Unit("branch3x3_2", 320, (3, 3), stride=2)),
        chain(
            Unit("branch7x7x3_1", 192),
            Unit("branch7x7x3_2", 192, (1, 7)),
            Unit("branch7x7x3_3", 192, (7, 1)),
            Unit("branch7x7x3_4", 192, (3, 3), stride=2),
        ),
        chain(halve),
    ]


def mixed_7(pool: Pool) -> list[Branch]:
    return [
        chain(Unit("branch1x1", 320)),
        Branch(
            (Unit("branch3x3_1", 384),),
            ends=(Unit("branch3x3_2a", 384, (1, 3)), Unit("branch3x3_2b", 384, (3, 1))),
        ),
        Branch(
            (Unit("branch3x3dbl_1", 448), Unit("branch3x3dbl_2", 384, (3, 3))),
            ends=(Unit("branch3x3dbl_3a", 384, (1, 3)), Unit("branch3x3dbl_3b", 384, (3, 1))),
        ),
        chain(pool, Unit("branch_pool", 192)),
    ]


class Norm(nn.Module):
    """BatchNorm with stored statistics. nn.BatchNorm2d would also want a count of batches, which
    the published files do not have."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.empty(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=1e-3
        )


class ConvUnit(nn.Module):
    def __init__(
        self,
        before: int,
        channels: int,
        kernel: tuple[int, int],
        stride: int = 1,
        padding: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, channels, kernel, stride, padding, bias=False)
        self.bn = Norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Branches side by side, their outputs joined along the channels in the branches' order."""

    def __init__(self, before: int, branches: list[Branch]) -> None:
        super().__init__()
        self.branches, self.channels = branches, 0
        for steps, ends in branches:
            width = before
            for step in steps:
                if isinstance(step, Unit):
                    width = self.add(width, step)
            self.channels += sum(self.add(width, end) for end in ends) or width

    def add(self, before: int, unit: Unit) -> int:
        name, channels, kernel, stride = unit
        padding = (kernel[0] // 2, kernel[1] // 2) if stride == 1 else (0, 0)
        self.add_module(name, ConvUnit(before, channels, kernel, stride, padding))
        return channels

    def take(self, step: Unit | Pool, x: Tensor) -> Tensor:
        return self.get_submodule(step.name)(x) if isinstance(step, Unit) else step(x)

    def forward(self, x: Tensor) -> Tensor:
        outputs = []
        for steps, ends in self.branches:
            y = x
            for step in steps:
                y = self.take(step, y)
            outputs += [self.take(end, y) for end in ends] or [y]
        return torch.cat(outputs, dim=1)


class InceptionNet(nn.Module):
    """The network, with torchvision's names of parameters; it has weights once some are loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvUnit(3, 32, (3, 3), stride=2)
        self.Conv2d_2a_3x3 = ConvUnit(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = ConvUnit(32, 64, (3, 3), padding=(1, 1))
        self.Conv2d_3b_1x1 = ConvUnit(64, 80, (1, 1))
        self.Conv2d_4a_3x3 = ConvUnit(80, 192, (3, 3))
        width = 192
        blocks = {
            "Mixed_5b": mixed_5(32), "Mixed_5c": mixed_5(64), "Mixed_5d": mixed_5(64),
            "Mixed_6a": mixed_6a(), "Mixed_6b": mixed_6(128), "Mixed_6c": mixed_6(160),
            "Mixed_6d": mixed_6(160), "Mixed_6e": mixed_6(192),
            "Mixed_7a": mixed_7a(), "Mixed_7b": mixed_7(average_pool),
            "Mixed_7c": mixed_7(max_pool),  # torchvision takes the mean here too
        }  # fmt: skip
        for name, branches in blocks.items():
            block = Mixed(width, branches)
            self.add_module(name, block)
            width = block.channels
        self.fc = nn.Linear(width, CLASSES)

    def forward(self, images: Tensor) -> Features:
        """uint8 (N, 3, H, W) of any size -> pool (N, 2048), spatial (N, 2023)."""
        x = (resize(images, SIZE) - 128) / 128
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = halve(x)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = halve(x)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))
        # branch1x1 comes first in the block's output: the graph's node mixed_6/conv.
        spatial = flat(x[:, :SPATIAL])
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))
        return Features(x.mean(dim=(2, 3)), spatial)


def flat(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H W C), TensorFlow's order, in which references store mu_s."""
    return x.permute(0, 2, 3, 1).flatten(1)


def resize(images: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) -> float32 (N, C, size, size), bit for bit as TF1's ResizeBilinear.

    No antialiasing, no rounding. Two gathers and a blend per axis, columns first: the order of
    operations of TensorFlow's kernel, which F.interpolate (half-pixel) cannot have.
    """
    low, high, weight = positions(images.shape[3], size, images.device)
    left, right = (images.index_select(3, column).float() for column in (low, high))
    rows = left + (right - left) * weight
    low, high, weight = positions(images.shape[2], size, images.device)
    top, bottom = (rows.index_select(2, row) for row in (low, high))
    return top + (bottom - top) * weight[:, None]


def positions(before: int, after: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Each new pixel's two neighbours among the old ones, and the weight of the second.

    Pixel i lies at i before/after (TF1: align_corners and half_pixel_centers both off)."""
    scale = torch.tensor(before / after, dtype=torch.float32, device=device)
    source = torch.arange(after, dtype=torch.float32, device=device) * scale
    low = source.long().clamp(max=before - 1)
    return low, (low + 1).clamp(max=before - 1), source - low


class Inception:
    """The extractor of FID, sFID and the Inception score.

    Args:
        network: with weights.
        fingerprint: SHA-256 of the file that the weights came from.
    """

    name, distance = NAME, "fid"
    half_distances, reads_labels = True, False
    rate = None

    def __init__(self, network: InceptionNet, fingerprint: str, device: torch.device) -> None:
        network = network.eval().requires_grad_(False)
        self.network = network.to(device, memory_format=torch.channels_last)
        self.fingerprint, self.device = fingerprint, device

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, 1 or 3, H, W) -> pool (N, 2048), spatial (N, 2023).

        Raises:
            InputError: neither grey nor color.
        """
        assert images.dtype == torch.uint8 and images.ndim == 4
        with plain_float32(self.device):
            return self.network(as_color(images.to(self.device), "inception"))

    def probabilities(self, pool: Tensor) -> Tensor:
        """(N, 2048) -> (N, 1008). ADM's score takes the weight of the last layer, not its bias."""
        with plain_float32(self.device):
            return F.linear(pool.to(self.device), self.network.fc.weight).softmax(dim=1)


def load(
    path: str | Path | None, device: torch.device, *, allow_unverified: bool = False
) -> Inception:
    """The extractor from a file of weights; nothing is downloaded, no code in it is run.

    Args:
        path: None: where torch.hub keeps the files of pytorch-fid and torch-fidelity.
        allow_unverified: take a file of another SHA-256, or in OpenAI's layout.

    Raises:
        InputError: absent, another SHA-256, or no weights of this network.
    """
    path = find(path)
    check_kind(path)
    sha256 = sha256_of(path)
    if sha256 != SHA256 and not allow_unverified:
        raise InputError(
            f"--inception-weights {path}: its SHA-256 is {sha256}, not {SHA256} of the published "
            "file: fetch that again, or take this one with --allow-unverified-weights"
        )
    try:
        state = read_tensors(path)
        if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
            raise ValueError("it is not a dictionary of tensors")
        with torch.device("meta"):  # no time and no random numbers for weights that are replaced
            network = InceptionNet()
        network.load_state_dict(weights_of(state, network), assign=True)
    except UNREADABLE as error:
        raise refused(path, reason_of(error)) from error
    return Inception(network, sha256, device)


def find(path: str | Path | None) -> Path:
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    places = [Path(path)] if path else [folder / file for file in FILES]
    for place in places:
        if place.is_file():
            return place
    raise InputError(
        f"no Inception weights: looked for {' and '.join(map(str, places))}; give "
        f"--inception-weights FILE, either {FILES[1]} of pytorch-fid's release fid_weights or "
        f"{FILES[0]} of torch-fidelity's release v0.2.0 (one file, SHA-256 {SHA256}), or score "
        "under a classifier of your own data with --extractor classifier:FILE"
    )


def refused(path: Path, reason: str) -> InputError:
    return InputError(
        f"--inception-weights {path}: these are no weights of {NAME} ({reason}); "
        f"{FILES[1]} is the file to give"
    )


def check_kind(path: Path) -> None:
    """Refuse the other forms that this network is published in, each by its name."""
    with open(path, "rb") as file:
        start = file.read(1)
    if start == b"\n":  # the first field of a protocol buffer; no torch file begins so
        raise refused(
            path,
            "a TensorFlow GraphDef is not supported: torch-fidelity's "
            "utils/util_convert_inception_weights.py converts it",
        )
    try:
        script = is_torchscript(path)
    except UNREADABLE as error:
        raise refused(path, reason_of(error)) from error
    if script:
        raise refused(path, "TorchScript, as NVIDIA published it, is not supported")


def is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def weights_of(state: dict[str, Tensor], network: InceptionNet) -> dict[str, Tensor]:
    """A file's tensors under our names, in float32."""
    if "output.weight" in state:
        state = from_openai(state, network)
    return {k: v.float() for k, v in state.items() if not k.endswith("num_batches_tracked")}


def numbered(name: str, count: int) -> list[str]:
    return [name, *(f"{name}_{i}" for i in range(1, count))]


GRAPH_UNITS = {  # what the graph, and OpenAI's file, call the units of each block, in our order
    "Mixed_5": [
        "conv", *numbered("tower.conv", 2), *numbered("tower_1.conv", 3), "tower_2.conv",
    ],
    "Mixed_6a": ["conv", *numbered("tower.conv", 3)],
    "Mixed_6": [
        "conv", *numbered("tower.conv", 3), *numbered("tower_1.conv", 5), "tower_2.conv",
    ],
    "Mixed_7a": [*numbered("tower.conv", 2), *numbered("tower_1.conv", 4)],
    "Mixed_7": [
        "conv", "tower_conv", *numbered("tower_mixed_conv", 2), *numbered("tower_1_conv", 2),
        *numbered("tower_1_mixed_conv", 2), "tower_2_conv",
    ],
}  # fmt: skip
GRAPH_TENSORS = {
    "weight": "conv.weight", "beta": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var",
}  # fmt: skip


def from_openai(state: dict[str, Tensor], network: InceptionNet) -> dict[str, Tensor]:
    """Tensors in the layout of consistency_models' th_evaluator.py, under our names.

    Raises:
        KeyError: it has others.
    """
    names = {"output": "fc"}  # theirs -> ours
    blocks = [*numbered("conv", 5), *numbered("mixed", 11)]
    for theirs, (ours, block) in zip(blocks, network.named_children(), strict=False):
        units = GRAPH_UNITS.get(ours, GRAPH_UNITS.get(ours[:-1]))
        if units is None:
            names[f"layers.{theirs}"] = ours
            continue
        for unit, (name, _) in zip(units, block.named_children(), strict=True):
            names[f"layers.{theirs}.{unit}"] = f"{ours}.{name}"
    renamed = {}
    for key, tensor in state.items():
        unit, _, kind = key.rpartition(".")
        # The last layer's tensors are called as ours are.
        renamed[f"{names[unit]}.{kind if unit == 'output' else GRAPH_TENSORS[kind]}"] = tensor
    # The graph stores a scale of 1 and does not apply it; this layout leaves it out.
    scales = {k.replace("bias", "weight"): torch.ones_like(v) for k, v in renamed.items()
              if k.endswith("bn.bias")}  # fmt: skip
    return renamed | scales
