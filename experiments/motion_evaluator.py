"""An evaluator of motions for data of your own, in the layout of T2M's.

python -m experiments.motion_evaluator --data data/motions/HumanML3D --out evaluators/motions
"""

import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from domains.humanml3d import LOUD, LOUDER, Caption, Clips, read_clips, read_statistics
from evaluations.motion import words
from evaluations.motion.batches import BATCH, Batch, name_of, real_batches
from evaluations.motion.evaluator import GLOVE, MEAN, NETWORKS, Statistics
from evaluations.motion.networks import Matching, Sizes
from evaluations.motion.words import END, START, UNKNOWN, Vocabulary, write_vocabulary
from runtime import checkpoint
from runtime.config import at_least, checked
from runtime.entry import run, speaks
from runtime.errors import InputError
from runtime.files import atomic_write
from runtime.random import generator, seed_of

MARGIN = 10.0  # between a caption and the motions of others
SIZES = Sizes(movement=128, motion=192, text=128, embedding=64)
LEARNING_RATE = 1e-3
CLIP = 0.5  # norm of the gradient


@dataclass(frozen=True)
class Flags:
    """Train T2M's three networks, smaller, on the train split of any folder in HumanML3D's layout;
    kept are the weights of the lowest loss on its val split.

    As text-to-motion trains them, but for the movement encoder, which learns with the others rather
    than as an autoencoder before, and for word vectors, which are random. Scores are comparable
    only under the same file: publish it with them.

    $ python -m experiments.motion_evaluator --data data/motions/HumanML3D --out evaluators/motions
    """

    data: str  # a folder in HumanML3D's layout
    out: Path  # the folder for evaluations.motion --evaluator
    epochs: int = 30  # over the train split
    seed: int = 0  # of the weights, and of the batches' order


def main() -> None:
    flags = checked(tyro.cli(Flags, console_outputs=speaks()))
    at_least(flags, epochs=1)
    clips, held_out = (read_clips(flags.data, split) for split in ("train", "val"))
    if min(len(clips), len(held_out)) < 2 or len(clips) < BATCH:
        raise InputError(
            f"{flags.data} has {len(clips)} clips to train on and {len(held_out)} in val.txt: an "
            f"evaluator needs {BATCH} and 2"
        )
    statistics = own_statistics(flags.data)
    vocabulary = vocabulary_of(clips.captions)
    networks, epoch, loss = train(clips, held_out, statistics, vocabulary, flags)
    trained_on = f"{len(clips)} clips of {name_of(flags.data)}"
    save(flags.out, networks, statistics, vocabulary, {"epoch": epoch, "trained_on": trained_on})
    print(f"{trained_on}: loss {loss:.4g} on val.txt after {epoch} epochs")
    print(flags.out)


def own_statistics(data: str) -> Statistics:
    """The data's, with the root and the feet as loud as T2M's evaluator has them."""
    mean, std = read_statistics(data)
    std[LOUD] /= LOUDER
    return Statistics(mean, std)


def vocabulary_of(captions: list[Caption]) -> Vocabulary:
    """The words of captions, each with a vector that is a function of the word alone."""
    found = {token.rpartition("/")[0] for caption in captions for token in caption.tokens}
    listed = [START, END, UNKNOWN, *sorted(found - {START, END, UNKNOWN})]
    vectors = [torch.randn(words.WIDTH, generator=generator("cpu", "word", one)) for one in listed]
    return Vocabulary(torch.stack(vectors).numpy(), {one: row for row, one in enumerate(listed)})


def train(
    clips: Clips, held_out: Clips, statistics: Statistics, vocabulary: Vocabulary, flags: Flags
) -> tuple[Matching, int, float]:
    """The networks after the epoch of the lowest loss on `held_out`, that epoch, and the loss."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(flags.seed, "motion evaluator"))
        networks = Matching(SIZES)
        optimizer = torch.optim.Adam(networks.parameters(), lr=LEARNING_RATE)
        best, best_epoch, lowest = None, 0, float("inf")
        for epoch in tqdm(range(1, flags.epochs + 1), desc="epochs"):
            networks.train()
            for batch in real_batches(clips, statistics, flags.seed, "train", epoch):
                optimizer.zero_grad()
                loss_of(networks, vocabulary, batch).backward()
                torch.nn.utils.clip_grad_norm_(networks.parameters(), CLIP)
                optimizer.step()
            loss = held_out_loss(networks, vocabulary, held_out, statistics, flags.seed)
            if loss < lowest:
                best, best_epoch, lowest = copy.deepcopy(networks.state_dict()), epoch, loss
    if best is None:
        raise FloatingPointError("the loss of the evaluator is not finite")
    networks.load_state_dict(best)
    return networks, best_epoch, lowest


def held_out_loss(
    networks: Matching, vocabulary: Vocabulary, clips: Clips, statistics: Statistics, seed: int
) -> float:
    """Over the same captions and crops every time."""
    networks.eval()
    batches = real_batches(clips, statistics, seed, "held out", size=min(BATCH, len(clips)))
    with torch.no_grad():
        return np.mean([loss_of(networks, vocabulary, batch).item() for batch in batches])


def loss_of(networks: Matching, vocabulary: Vocabulary, batch: Batch) -> Tensor:
    """Captions are pulled to their motions, and pushed from all others of the batch that are closer
    than the margin, but not from those with the very same words."""
    read = [caption.tokens for caption in batch.captions]
    texts = networks.texts(vocabulary.words(read))
    distances = torch.cdist(texts, networks.motions(batch.motions, batch.lengths))
    other = torch.tensor([[one != another for another in read] for one in read])
    pushed = (MARGIN - distances).clamp(min=0).square()[other]
    return distances.diagonal().square().mean() + (pushed.mean() if len(pushed) else 0)


def save(
    folder: Path, networks: Matching, statistics: Statistics, vocabulary: Vocabulary, facts: dict
) -> None:
    """finest.tar, GloVe's files, t2m_mean.npy and t2m_std.npy where MDM's folder has them."""
    write_vocabulary((folder / GLOVE[0]).parent, vocabulary)
    for name, values in zip(("mean", "std"), statistics, strict=True):
        with atomic_write(folder / MEAN[0].replace("mean", name)) as file:
            np.save(file, values)
    state = {name: network.state_dict() for name, network in networks.named_children()}
    checkpoint.save(folder / NETWORKS[0], state | {"sizes": SIZES._asdict()} | facts)


if __name__ == "__main__":
    run(main)
