"""A small classifier trained on a data set itself: the extractor of small data."""

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import domains
from domains.codecs import fingerprint, to_float
from domains.reading import read
from domains.sound import PICTURE, pictures
from runtime import checkpoint
from runtime.errors import InputError
from runtime.precision import plain_float32
from runtime.random import generator, seed_of
from runtime.tensors import read_tensors

from .extractor import UNREADABLE, Features, reason_of

MOST = 1_000_000  # classes, pixels along a side, channels or frames of a network in a file
MAX_BYTES = 2**30  # of raw images held in memory; what is larger wants a pretrained extractor


class SmallCNN(nn.Module):
    """Three convolutions, mean pooling to 64 features, one linear layer.

    Of clips (`frames` > 1) it sees every frame together with the next one, and pools over frames.
    """

    def __init__(self, channels: int, num_classes: int, image_size: int, frames: int = 1) -> None:
        super().__init__()
        channels *= 1 if frames == 1 else 2
        strides = (1 if image_size < 16 else 2, 2, 2)  # 8x8 must not shrink to a point
        layers: list[nn.Module] = []
        for stride, (before, after) in zip(strides, pairwise((channels, 32, 64, 64)), strict=True):
            layers += [
                nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            ]
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Linear(64, num_classes)

    def forward(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, C, H, W), or clips (B, C, T, H, W) -> pooled features (B, 64) and logits (B,
        classes)."""
        if raw.ndim == 4:
            features = self.convolutions(to_float(raw)).mean(dim=(2, 3))
        else:
            pairs = torch.cat([raw[:, :, :-1], raw[:, :, 1:]], dim=1).transpose(1, 2)
            found = self.convolutions(to_float(pairs.flatten(0, 1)))
            features = found.unflatten(0, pairs.shape[:2]).mean(dim=(1, 3, 4))
        return features, self.head(features)


class Reading(NamedTuple):
    features: Tensor  # (N, 64)
    classes: Tensor  # (N,), the most probable


@dataclass
class Classifier:
    """A trained network and what it was trained on; an extractor without spatial features."""

    network: SmallCNN
    config: dict  # of SmallCNN
    dataset_name: str
    accuracy: float  # on held-out images, when it was trained
    fingerprint: str = field(init=False)  # SHA-256 of the weights
    distance: ClassVar[str] = "fd_classifier"
    half_distances: ClassVar[bool] = False  # ADM's rounding is Inception's alone
    rate: ClassVar[None] = None
    reads_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.network.eval().requires_grad_(False)
        self.fingerprint = fingerprint(self.network.state_dict())

    @property
    def name(self) -> str:
        return f"classifier:{self.fingerprint[:8]}"

    @property
    def device(self) -> torch.device:
        return self.network.head.weight.device

    def to(self, device: torch.device | str) -> "Classifier":
        self.network.to(device)
        return self

    def __call__(self, images: Tensor) -> Features:
        """uint8 (N, C, H, W), clips (N, C, T, H, W), or int16 sounds, which it sees as
        spectrograms -> pool (N, 64).

        Raises:
            InputError: images of another size or number of channels than it was trained on.
        """
        images = visible(images)
        size, frames = self.config["image_size"], self.config.get("frames", 1)
        clip, named = ((), "") if frames == 1 else ((frames,), "frames, ")
        expected = (self.config["channels"], *clip, size, size)
        if tuple(images.shape[1:]) != expected:
            raise InputError(
                f"--extractor {self.name} was trained on images of {expected} (channels, {named}"
                f"height, width), but these are {tuple(images.shape[1:])}"
            )
        return Features(self.read(images).features, spatial=None)

    def probabilities(self, pool: Tensor) -> Tensor:
        """Pooled features (N, 64) -> (N, classes)."""
        with plain_float32(self.device):
            return self.network.head(pool.to(self.device)).softmax(dim=1)

    def read(self, raw: Tensor) -> Reading:
        """uint8 images or clips -> features and classes, 500 at a time."""
        with plain_float32(self.device):
            parts = [self.network(part.to(self.device)) for part in raw.split(500)]
        features, logits = (torch.cat(outputs) for outputs in zip(*parts, strict=True))
        return Reading(features, logits.argmax(1))

    def save(self, path: str | Path) -> None:
        content = {
            "state": self.network.state_dict(),
            "config": self.config,
            "dataset_name": self.dataset_name,
            "accuracy": self.accuracy,
            "sha256": self.fingerprint,
        }
        checkpoint.save(Path(path), content)


def load(path: str | Path) -> Classifier:
    """A classifier that `save` wrote.

    Raises:
        InputError: no such file, or another kind of file.
    """
    if not Path(path).is_file():
        raise InputError(
            f"--extractor classifier:{path}: there is no such file; "
            "python -m evaluations.images train-classifier makes it"
        )
    try:
        content = read_tensors(Path(path))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        name, config, accuracy = (content[k] for k in ("dataset_name", "config", "accuracy"))
        if not isinstance(name, str) or not isinstance(accuracy, float):
            raise ValueError("it does not say what it was trained on")
        check_sizes(config)
        network = SmallCNN(**config)
        network.load_state_dict(content["state"])
        if fingerprint(network.state_dict()) != content["sha256"]:
            raise ValueError("its weights are not those that were saved")
        if not all(value.isfinite().all() for value in network.state_dict().values()):
            raise ValueError("its weights are not finite")
    except UNREADABLE as error:
        raise refused(path, reason_of(error)) from error
    return Classifier(network, config, name, accuracy)


def check_sizes(config: Any) -> None:
    """
    Raises:
        ValueError: no arguments of a SmallCNN.
    """
    if any(type(size) is not int or not 0 < size <= MOST for size in dict(config).values()):
        raise ValueError("its sizes are none of a small network")


def refused(path: str | Path, reason: str) -> InputError:
    return InputError(
        f"{path} is no classifier of evaluations.images train-classifier ({reason}): "
        "delete it, or name another one with --extractor classifier:FILE"
    )


def config_of(domain: domains.Domain) -> dict:
    """The arguments of a domain's SmallCNN."""
    if not domain.num_classes:
        raise InputError(f"a classifier of {domain.name} needs classes, and it has none")
    if domain.num_frames == 1:
        raise InputError("a classifier of clips needs --num-frames 2 or more")
    channels, *_, image_size = (1, PICTURE) if is_sound(domain) else domain.raw_shape
    config = {
        "channels": channels, "num_classes": domain.num_classes, "image_size": image_size
    }  # fmt: skip
    return config | ({"frames": domain.num_frames} if domain.num_frames else {})


class LabeledImages(NamedTuple):
    raw: Tensor  # uint8 (N, C, H, W) or (N, C, T, H, W)
    y: Tensor  # int64 (N,)


def images_of(domain: domains.Domain, image_set: domains.DataSet) -> LabeledImages:
    """All images of a set, without augmentation.

    Raises:
        InputError: too many for memory, or a corrupt one.
    """
    size = PICTURE**2 if is_sound(domain) else math.prod(domain.raw_shape)
    if len(image_set) * size > MAX_BYTES:
        raise InputError(
            f"{domain.name} has {len(image_set)} samples, too many for the small classifier: "
            "fd_classifier is for small data sets"
        )
    raw, labels = [], []
    for batch in read(image_set, range(len(image_set)), 100, torch.device("cpu")):
        raw.append(visible(batch.raw))
        labels.append(batch.y)
    y = torch.cat(labels)
    if domain.multi_label:
        if bool((y.sum(1) != 1).any()):
            raise InputError(f"a classifier needs one label per sample, {domain.name} has several")
        y = y.argmax(1)
    return LabeledImages(torch.cat(raw), y)


def is_sound(domain: domains.Domain) -> bool:
    return len(domain.raw_shape) == 2


def visible(raw: Tensor) -> Tensor:
    """uint8 pictures and clips as they are; the spectrograms of int16 sounds."""
    return pictures(raw) if raw.dtype == torch.int16 else raw


def train(
    domain: domains.Domain, *, seed: int = 0, steps: int = 600, batch: int = 128
) -> Classifier:
    """A classifier of the domain's training images, a function of the seed, on the CPU.

    Its accuracy is measured on the held-out images.

    Raises:
        InputError: the domain has no held-out images, no classes, or too many images.
    """
    config = config_of(domain)
    held_out = images_of(domain, domain.held_out_set())
    real = images_of(domain, domain.train_set(augment=False))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "classifier"))
        network = SmallCNN(**config)
    random = generator("cpu", seed, "classifier", "batches")
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps)
    for _ in range(steps):
        chosen = torch.randint(len(real.raw), (batch,), generator=random)
        _, logits = network(real.raw[chosen])
        loss = F.cross_entropy(logits, real.y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    classifier = Classifier(network, config, domain.name, accuracy=0.0)
    right = classifier.read(held_out.raw).classes == held_out.y
    classifier.accuracy = right.float().mean().item()
    return classifier


def train_to_file(domain: domains.Domain, path: str | Path, *, min_accuracy: float) -> Classifier:
    """Train and save.

    Raises:
        InputError: the classifier is worse than `min_accuracy`, and nothing is saved.
    """
    classifier = train(domain)
    if classifier.accuracy < min_accuracy:
        raise InputError(
            f"the classifier of {domain.name} reads {classifier.accuracy:.1%} of held-out images, "
            f"below --min-accuracy {min_accuracy}: it is no yardstick, and was not saved"
        )
    classifier.save(path)
    return classifier
