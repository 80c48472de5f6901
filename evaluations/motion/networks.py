"""The three networks of T2M's evaluator: captions and motions in one space of embeddings."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from domains import humanml3d
from evaluations.extractors.extractor import UNREADABLE, reason_of
from runtime.errors import InputError
from runtime.tensors import read_tensors

from . import words

WIDEST = 65_536
FEET = 4  # the last features of a frame, which no network sees


class Sizes(NamedTuple):
    """Widths of the networks; the published ones."""

    movement: int = 512
    motion: int = 1024
    text: int = 512
    embedding: int = 512


class MovementConvEncoder(nn.Module):
    """Frames (B, T, 259) -> movements (B, T / 4, width)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv1d(inputs, hidden, kernel_size=4, stride=2, padding=1),
            nn.Dropout(0.2),
            nn.LeakyReLU(0.2),
            nn.Conv1d(hidden, outputs, kernel_size=4, stride=2, padding=1),
            nn.Dropout(0.2),
            nn.LeakyReLU(0.2),
        )
        self.out_net = nn.Linear(outputs, outputs)

    def forward(self, frames: Tensor) -> Tensor:
        return self.out_net(self.main(frames.mT).mT)


class MotionEncoderBiGRUCo(nn.Module):
    """The first `lengths` of a sequence (B, T, inputs) -> embeddings (B, outputs)."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.input_emb = nn.Linear(inputs, hidden)
        self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True)
        self.output_net = nn.Sequential(
            nn.Linear(2 * hidden, hidden),
            nn.LayerNorm(hidden),
            nn.LeakyReLU(0.2),
            nn.Linear(hidden, outputs),
        )
        self.hidden = nn.Parameter(torch.randn(2, 1, hidden))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        start = self.hidden.repeat(1, len(x), 1)
        shown = pack_padded_sequence(
            self.input_emb(x), lengths.cpu(), batch_first=True, enforce_sorted=False
        )
        _, (forward, backward) = self.gru(shown, start)
        return self.output_net(torch.cat([forward, backward], -1))


class TextEncoderBiGRUCo(MotionEncoderBiGRUCo):
    """Words with their kinds -> embeddings (B, outputs)."""

    def __init__(self, hidden: int, outputs: int) -> None:
        super().__init__(words.WIDTH, hidden, outputs)
        self.pos_emb = nn.Linear(len(words.KINDS), words.WIDTH)

    def forward(self, vectors: Tensor, kinds: Tensor, lengths: Tensor) -> Tensor:
        return super().forward(vectors + self.pos_emb(kinds), lengths)


class Matching(nn.Module):
    """The networks under the names that finest.tar has for them."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        frame = humanml3d.WIDTH - FEET
        self.movement_encoder = MovementConvEncoder(frame, sizes.movement, sizes.movement)
        self.motion_encoder = MotionEncoderBiGRUCo(sizes.movement, sizes.motion, sizes.embedding)
        self.text_encoder = TextEncoderBiGRUCo(sizes.text, sizes.embedding)

    def motions(self, motions: Tensor, lengths: Tensor) -> Tensor:
        """Normalized (B, T, 263), T a multiple of 4, frames that count (B,) -> (B, embedding)."""
        movements = self.movement_encoder(motions[..., :-FEET])
        return self.motion_encoder(movements, lengths // humanml3d.UNIT)

    def texts(self, read: words.Words) -> Tensor:
        """-> (B, embedding)."""
        device = self.text_encoder.hidden.device
        return self.text_encoder(read.vectors.to(device), read.kinds.to(device), read.lengths)


class Loaded(NamedTuple):
    networks: Matching
    trained_on: str | None  # the data of `experiments.motion_evaluator`; None: as T2M publishes


def load(path: Path) -> Loaded:
    """finest.tar of T2M, or of `experiments.motion_evaluator`.

    Raises:
        InputError: damaged, or not these networks.
    """
    try:
        content = read_tensors(path)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")
        check_sizes(content.get("sizes", {}))
        with torch.device("meta"):  # no time and no random numbers for weights that are replaced
            networks = Matching(Sizes(**content.get("sizes", {})))
        for name, network in networks.named_children():
            network.load_state_dict(checked(content.get(name), name, network), assign=True)
    except UNREADABLE as error:
        raise InputError(
            f"{path} is no text_mot_match of T2M ({reason_of(error)}): fetch it again, or train one"
            " with python -m experiments.motion_evaluator"
        ) from error
    trained_on = content.get("trained_on")
    return Loaded(networks.eval().requires_grad_(False), trained_on and str(trained_on))


def check_sizes(sizes: Any) -> None:
    """
    Raises:
        ValueError: no widths of networks.
    """
    if any(type(size) is not int or not 0 < size <= WIDEST for size in dict(sizes).values()):
        raise ValueError("its sizes are no widths of networks")


def checked(state: Any, called: str, network: nn.Module) -> dict[str, Tensor]:
    """
    Raises:
        ValueError: a tensor is missing, unknown, of another shape or not finite.
    """
    if not isinstance(state, dict):
        raise ValueError(f"it has no {called}")
    expected = network.state_dict()
    for name in {**expected, **state}:
        tensor = state.get(name)
        if name not in expected:
            raise ValueError(f"{called}.{name} is none of its tensors")
        if not torch.is_tensor(tensor):
            raise ValueError(f"{called}.{name} is missing")
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{called}.{name} is {tuple(tensor.shape)}, not {tuple(expected[name].shape)}"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"{called}.{name} is not finite")
    return {name: tensor.float() for name, tensor in state.items()}
