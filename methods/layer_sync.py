"""LayerSync and its ablations, and plain SiT."""

from functools import partial

import torch

from domains import Domain
from layersync import (
    SIMILARITIES,
    LayerSync,
    check_pairs,
    check_pool,
    default_pair,
    default_weight,
    trd,
)
from layersync.layersync import ALWAYS, OUTSIDE
from layersync.similarity import Similarity
from models import Denoiser
from runtime.config import TrainConfig
from runtime.errors import InputError
from runtime.random import seed_of

from .method import Method, literal, schedule_of, settled


def vanilla(config: TrainConfig, model: Denoiser, domain: Domain) -> tuple[TrainConfig, Method]:
    return config, Method()


def layer_sync(config: TrainConfig, model: Denoiser, domain: Domain) -> tuple[TrainConfig, Method]:
    student, teacher = default_pair(model.depth)
    config = settled(config, encoder_depth=student, gt_encoder_depth=teacher)
    return synced([(config.encoder_depth, config.gt_encoder_depth)], config, model, domain)


def multiple_sync(
    config: TrainConfig, model: Denoiser, domain: Domain
) -> tuple[TrainConfig, Method]:
    try:
        pairs = [(student, teacher) for student, teacher in literal(config.multi_blocks_match)]
    except (ValueError, TypeError):
        pairs = []
    if not pairs or not all(type(block) is int for pair in pairs for block in pair):
        raise InputError(
            f"--multi-blocks-match {config.multi_blocks_match!r} names no pairs: "
            "write it like '[(2,6),(4,8)]'"
        )
    return synced(pairs, config, model, domain)


PAPERS = ("cosine", "own", ALWAYS)  # --similarity, --teacher, and the t at which there is a term
NOTE = (
    "note: reg is minus the cosine of student and teacher. Blocks begin alike, so it is near -1 "
    "from the first steps on, which is no success: docs/how-it-works.md says what to read"
)
# --similarity -> weight, where it is not the cosine's; None: of another scale, and none published.
# The paper states none for TRD, which of images is the relation; this is VideoREPA's. The public
# fine-tuning code has 0.002, for the cosine.
WEIGHTS = {"trd": 0.5, "relation": 0.5, "smooth_l1": None}


def published_weight(similarity: str, depth: int) -> float | None:
    """None: there is none."""
    return WEIGHTS.get(similarity, default_weight(depth))


def synced(
    pairs: list[tuple[int, int]], config: TrainConfig, model: Denoiser, domain: Domain
) -> tuple[TrainConfig, Method]:
    check_pairs(pairs, model.depth)
    if config.sync_tokens != "valid" and not domain.pads:
        raise InputError(
            f"--sync-tokens {config.sync_tokens} has no meaning for --dataset_name {domain.name}, "
            "whose samples are not padded: leave it out"
        )
    config = settled(config, reg_weight=published_weight(config.similarity, model.depth))
    if config.reg_weight is None:
        raise InputError(
            f"--similarity {config.similarity} depends on the scale of the features, and has no "
            "published weight: give --reg-weight"
        )
    if config.teacher in OUTSIDE and not config.stop_gradient:
        raise InputError(
            f"--no-stop-gradient has no meaning for --teacher {config.teacher}, another network, "
            "which gets no gradient: leave it out"
        )
    sync = LayerSync(
        pairs,
        config.reg_weight,
        schedule=schedule_of(config),
        similarity=similarity_of(config, model, domain),
        stop_gradient=config.stop_gradient,
        reverse=config.reverse_sync,
        teacher=config.teacher,
        times=times_of(config),
    )
    teacher = random_teacher(model, config.global_seed) if config.teacher == "random" else None
    near_one = (config.similarity, config.teacher, sync.times) == PAPERS
    note = NOTE if config.reg_weight and near_one else None
    return config, Method(sync, teacher=teacher, note=note)


def similarity_of(config: TrainConfig, model: Denoiser, domain: Domain) -> Similarity:
    """--similarity and its flags, for the model's tokens: of 3 axes the first one counts frames.

    Raises:
        InputError: flags of TRD for another one, or a pool that does not fit.
    """
    name = config.similarity
    if name != "trd":
        for flag, value in (("margin", config.trd_margin), ("pool", config.trd_pool)):
            if value:
                raise InputError(
                    f"--trd-{flag} has no meaning for --similarity {name}: leave it out"
                )
        return SIMILARITIES[name]
    frames, *grid = model.grid if len(model.grid) == 3 else (1, *model.grid)
    if config.trd_pool:
        if domain.pads and config.sync_tokens != "padded":
            raise InputError(
                f"--trd-pool: samples of {domain.name} are padded; give --sync-tokens padded"
            )
        try:
            check_pool(config.trd_pool, grid)
        except ValueError as error:
            raise InputError(f"--trd-pool: {error}") from error
    return partial(trd, frames=frames, margin=config.trd_margin, grid=grid, pool=config.trd_pool)


def times_of(config: TrainConfig) -> tuple[float, float]:
    """
    Raises:
        InputError: no time at all, or what compares images with each other, or takes all tokens.
    """
    low, high = config.sync_t_low, config.sync_t_high
    if not low < high:
        raise InputError(f"--sync-t-low {low} leaves no time below --sync-t-high {high}")
    if (low, high) != ALWAYS:
        if config.similarity in ("centred", "centred_all"):
            raise InputError(
                f"--similarity {config.similarity} compares the images of a batch: leave out "
                "--sync-t-low and --sync-t-high"
            )
        if config.trd_pool:
            raise InputError("--trd-pool takes all tokens: leave out --sync-t-low, --sync-t-high")
    return low, high


def random_teacher(model: Denoiser, seed: int) -> Denoiser:
    """A frozen model of random weights, whose blocks do something: as SiT begins they do not."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "random teacher"))
        teacher = model.like()
        teacher.randomize_gates()
    return teacher.eval().requires_grad_(False)
