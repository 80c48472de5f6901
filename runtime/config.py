"""The flags of every command, as frozen dataclasses: default < preset or protocol < flag."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union

import tyro

from .entry import speaks
from .errors import InputError

Config = TypeVar("Config")
PathType = Literal["Linear", "GVP", "VP", "Cosine-1000", "Cosine-50", "CogVideoX"]
Prediction = Literal["velocity", "score", "noise", "data", "v_prediction"]
# Numbers of blocks as words, `2 3`, or with commas, `2,3`.
BlockNumbers = Annotated[
    tuple[int, ...],
    tyro.constructors.PrimitiveConstructorSpec(
        nargs="*",
        metavar="[INT [INT ...]]",
        instance_from_str=lambda words: tuple(map(int, " ".join(words).replace(",", " ").split())),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda numbers: [*map(str, numbers)],
    ),
]


@dataclass(frozen=True)
class TransportFlags:
    # interpolant between noise and data; discrete diffusions: Cosine-N of N steps, as MDM's, and
    # CogVideoX's own
    path_type: PathType = "Linear"
    prediction: Prediction = "velocity"  # by the network
    loss_weight: Literal["velocity", "likelihood"] | None = None  # for score and noise prediction
    train_eps: float | None = None  # distance kept from the ends of t in training; None: SiT's
    sample_eps: float | None = None  # the same in sampling; None: SiT's
    time_shift: float = 1.0  # more than 1: more times, of training and sampling, are near noise


@dataclass(frozen=True)
class TrainConfig(TransportFlags):
    """Train a SiT or an MDM with LayerSync. The same command runs on a CPU, one GPU, or many nodes.

    $ python train.py --preset digits
    $ torchrun --nproc_per_node=8 train.py --preset t1-xl --dataset_name imagenet-1k
    """

    preset: str | None = None  # a row of runtime/presets.py: digits, fashion-mnist-s, t1-b, ...

    # data
    dataset_name: str = "imagenet-1k"  # digits, folder, latents, synthetic, a hub id, ...
    data_path: str | None = None  # folder of the data, where it is local
    image_size: int | None = None  # pixels, samples of sound, frames; None: the data set's
    num_classes: int | None = None  # 0 trains without condition; None: the data set's
    vae: str | None = None  # ema, mse, a hub id, a folder, or none for pixels; None: the data set's
    text_encoder: str | None = None  # of captions: hub id or folder; None: the data set's
    num_frames: int | None = None  # video: of a clip; None: the data set's (16 of CLEVRER)
    frame_stride: int | None = None  # video: frames from one of a clip to the next; None: as above
    cache_dir: str = "./cache/"  # downloads of data sets and VAEs, and embedded captions
    skip_corrupt: bool = False  # replace unreadable images and videos by the next one, and count
    hflip: bool = True  # mirror images at random, where the data set allows it (digits do not)
    num_workers: int = 4  # processes per rank that read images

    # network

    # SiT-{S,B,L,XL,Ti}/{1,2,4,8,1x2x2,2x4x4}, MDM for motion, Wan2.1 or CogVideoX for video with
    # captions
    model: str = "SiT-XL/2"
    depth: int | None = None  # blocks; None: the model's
    hidden_size: int | None = None  # width; None: the model's
    num_heads: int | None = None  # attention heads; None: the model's
    learn_sigma: bool = True  # SiT: doubled output as in the public files; its half is unused
    dropout: float | None = None  # MDM: of activations; None: 0.1
    mask_frames: bool = False  # MDM: no attention to padding, as in its 50-step model
    pretrained: str | None = None  # Wan2.1, CogVideoX: hub id or folder; None: the paper's
    lora_rank: int | None = None  # Wan2.1, CogVideoX: of adapters; 0: train all; None: 32
    lora_alpha: float | None = None  # Wan2.1, CogVideoX: of adapters; None: as the rank
    activation_checkpointing: bool = False  # recompute blocks in the backward pass: less memory

    # regulariser

    # the term added to the velocity loss
    loss_type: Literal[
        "layer_sync", "multiple_sync", "vanilla", "dispersive", "repa", "external", "sra", "sra2"
    ] = "layer_sync"
    encoder_depth: int | None = None  # the student block, from 1; None: the model's published one
    gt_encoder_depth: int | None = None  # the teacher block; None: the model's published one
    multi_blocks_match: str = "[]"  # pairs of multiple_sync, e.g. '[(2,6),(4,8)]'; their mean
    reg_weight: float | None = None  # lambda; None: the model's published one
    reg_schedule: Literal["constant", "linear", "cosine", "stop"] = "constant"  # of lambda
    # where linear and cosine reach 0, and where stop stops, counted from --reg-start
    reg_schedule_steps: int = 0
    stop_gradient: bool = True  # False lets the teacher follow the student (ablation)
    reverse_sync: bool = False  # pull the deep block towards the shallow one (control)
    reg_start: int = 0  # steps before the term is switched on
    # what is compared; centred: without the mean over a rank's batch, centred_all: over all ranks'
    similarity: Literal[
        "cosine", "centred", "centred_all", "spatial", "smooth_l1", "relation", "trd"
    ] = "cosine"
    trd_margin: float = 0.0  # trd: smaller differences of relations are none (VideoREPA: 0.1)
    trd_pool: tuple[int, ...] = ()  # trd: rows and columns of tokens averaged to one; none: all
    # whose features: the model's own, the EMA model's (an ablation), or of two controls
    teacher: Literal["own", "ema", "other_image", "random"] = "own"
    sync_t_low: float = 0.0  # no term for images at a smaller t (t = 0 noise, t = 1 data)
    sync_t_high: float = 1.0  # no term for images at a larger t
    # where lengths differ: valid frames, padding too, or also the token of MDM's condition
    sync_tokens: Literal["valid", "padded", "all"] = "valid"
    telemetry_every: int = 0  # steps per look at features and gradient ratio; 0: none

    # rivals; --encoder-depth, --gt-encoder-depth and --reg-weight are theirs too
    disp_variant: Literal["jax", "torch"] = "jax"  # dispersive: the paper's or the release's
    disp_tau: float | None = None  # its temperature; None: the variant's
    disp_gather: bool = False  # over the micro-batches of all ranks instead of each rank's own
    repa_variant: Literal["repa", "irepa"] = "repa"  # MLP, or convolution and spatial norm
    repa_encoder: str = "vit_base_patch14_dinov2.lvd142m"  # of timm
    repa_weights: str | None = None  # its file; None: timm's cache, or the hub
    targets: str = "[]"  # external: [(block, folder of methods.features, weight), ...]
    velocity_warmup: int = 0  # repa, external: steps over which the velocity loss grows to 1
    sra_variant: Literal["paper", "cos"] = "paper"  # smooth-L1, or the authors' later cosine
    sra_cos_axis: Literal["channels", "tokens"] = "channels"  # tokens: as their code has it
    sra_epoch_steps: int = 0  # steps per epoch of the paper's decaying weight; 0: constant

    # optimization
    epochs: int = 1400  # length of the run, unless --max-steps is given
    max_steps: int | None = None  # length of the run in steps
    global_batch_size: int = 256  # images per step, over all ranks
    grad_accum: int = 1  # micro-batches per step and rank
    lr: float = 1e-4  # AdamW, constant
    lr_warmup: int = 0  # steps over which the learning rate grows to --lr
    weight_decay: float = 0.0  # of AdamW
    adam_beta1: float = 0.9  # of AdamW: the gradient's running mean
    adam_beta2: float = 0.999  # of AdamW: its square's
    clip_grad_norm: float = 0.0  # largest gradient norm; 0: no clipping
    max_skipped: int = 10  # steps in a row that may be skipped as not finite; more: roll back
    spike_sigma: float = 0.0  # skip a loss this many running deviations above its mean; 0: none
    ema_decay: float = 0.9999  # of the weights that are sampled; short runs want less
    class_dropout_prob: float = 0.1  # share of labels replaced by the null, for guidance
    precision: Literal["fp32", "tf32", "bf16"] | None = None  # None: tf32 on GPU, fp32 on CPU
    compile: Literal["auto", "on", "off"] = "auto"  # block by block; auto: on CUDA only
    attention: Literal["auto", "cudnn", "flash", "efficient", "math"] = "auto"  # its kernel
    deterministic: bool = False  # equal to the bit on one kind of GPU, slower; CPUs always are
    shard: bool = False  # FSDP2: gradients, optimizer and EMA spread over the ranks
    global_seed: int = 0  # of the initial weights, the data order and every random number
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one
    hang_timeout: float = 600.0  # seconds without a step until the job names who is late; 0: none

    # output
    results_dir: str = "results"  # runs lie in results/{index}-{model}-{run name}
    wandb_run_name: str = "SiT-Training"  # the run's name, with or without wandb
    wandb: bool = False  # log to Weights & Biases too (WANDB_MODE=offline works)
    tensorboard: bool = True  # write TensorBoard events where it is installed
    log_every: int = 100  # steps per log line
    ckpt_every: int = 10_000  # steps per checkpoint
    keep_last: int = 5  # checkpoints kept, besides milestones; 0: all
    milestone_every: int = 50_000  # checkpoints at multiples of this are kept for good
    sample_every: int = 10_000  # steps per preview from the EMA model; 0: none
    cfg_scale: float = 4.0  # guidance of the previews
    score_every: int = 0  # steps per score of the EMA model; 0: none
    score_samples: int = 500  # unguided samples per score, of the same seeds every time
    score_extractor: str = "classifier"  # of evaluations.images; this one is trained on the data
    # real images, an .npz say, None: those of the data set; of motions the evaluator's folder
    score_reference: str | None = None

    # start
    resume: Literal["auto"] | None = None  # go on with the newest run of this model and name
    resume_anyway: bool = False  # resume although flags differ from the checkpoint's
    ckpt: str | None = None  # resume this file or run folder; with --fine-tune: start from it
    fine_tune: bool = False  # load the EMA weights of --ckpt only; new classes and sizes are fine
    prune_blocks: BlockNumbers = ()  # with --fine-tune: blocks of --ckpt to leave out, from 1
    dry_run: bool = False  # print the resolved flags, parameters and memory, and stop
    plan: bool = False  # run a few steps, print what the whole run would cost, and stop


# Flags of TrainConfig that may differ when a run is resumed: where the data lie, how long, on what
# and how the run is computed and reported; not what is trained.
MAY_CHANGE = frozenset(
    "preset data_path cache_dir skip_corrupt num_workers activation_checkpointing compile "
    "attention deterministic shard hang_timeout max_skipped epochs max_steps device results_dir "
    "wandb_run_name wandb tensorboard "
    "telemetry_every log_every ckpt_every keep_last milestone_every sample_every cfg_scale "
    "score_every score_samples score_extractor score_reference resume resume_anyway ckpt fine_tune "
    "prune_blocks dry_run plan".split()
)


@dataclass(frozen=True)
class EncodeConfig:
    """Encode images, music or videos to the latents that train.py --data-path reads; run it again
    to go on.

    $ torchrun --nproc_per_node=8 encode.py --dataset_name imagenet-1k --out latents/imagenet256
    """

    dataset_name: str = "imagenet-1k"  # folder, imagenet-1k, a hub id, mtg-jamendo, clevrer, ...
    data_path: str | None = None  # folder of the data, where they are local
    image_size: int | None = None  # pixels; None: the data set's (256 for ImageNet and folders)
    num_classes: int | None = None  # 0: no classes; None: the data set's
    vae: str | None = None  # ema, mse, a hub id or a folder; None: the data set's
    num_frames: int | None = None  # clips with captions; None: the data set's (33 of SSv2)
    frame_stride: int | None = None  # clips with captions: from one frame to the next; None: 1
    pretrained: str | None = None  # Wan2.1, CogVideoX: whose VAE encodes clips with captions
    cache_dir: str = "./cache/"  # downloads of data sets and VAEs
    out: str | None = None  # the folder of the latents
    batch_size: int = 64  # images per batch and process, or a video's frames at once
    shard_size: int | None = None  # per file; None: a 512th of images, 256 to 16,384; 64 of others
    num_workers: int = 4  # processes per rank that read
    skip_corrupt: bool = False  # name what is unreadable: next image instead, others are left out
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one
    verify: str | None = None  # only compare the files of this folder with their checksums


@dataclass(frozen=True)
class ExportConfig:
    """Write a checkpoint for other libraries.

    A SiT becomes a folder of the Hugging Face Hub with a model card, or (--to diffusers) diffusers'
    DiTTransformer2DModel with the same outputs. What Wan2.1 or CogVideoX were taught is written as
    their pipelines load it: the adapters of LoRA as one file, else the folder of a transformer.
    """

    ckpt: str | None = None  # checkpoint file, or a run's folder (its newest checkpoint)
    out: str = "exported"  # the folder to write
    weights: Literal["ema", "model"] = "ema"  # which weights of the checkpoint
    to: Literal["hub", "diffusers"] | None = None  # of a SiT; None: hub
    push: str | None = None  # OWNER/NAME: upload the folder to the Hub as well


@dataclass(frozen=True)
class SampleFlags:
    ckpt: str | None = None  # checkpoint file, or a run's folder (its newest checkpoint)
    weights: Literal["ema", "model"] = "ema"  # which weights of the checkpoint
    protocol: str | None = None  # paper-{ode,ode-250,sde}, repa-sde, mdm, wan or cogvideox
    model: str | None = None  # checked against the checkpoint, which knows its own architecture
    image_size: int | None = None  # checked against the checkpoint
    num_classes: int | None = None  # checked against the checkpoint
    dataset_name: str | None = None  # codec and class names; None: the checkpoint's
    data_path: str | None = None  # folder of the data, where it is needed
    skip_corrupt: bool = False  # where data are read, unreadable ones are replaced by the next
    vae: str | None = None  # ema, mse, a hub id or a folder; None: the checkpoint's
    text_encoder: str | None = None  # a hub id or folder; None: the checkpoint's
    pretrained: str | None = None  # Wan2.1, CogVideoX: hub id or folder; None: the checkpoint's
    cache_dir: str = "./cache/"  # downloads of VAEs, and embedded captions
    path_type: PathType | None = None  # from noise to data; None: the checkpoint's
    prediction: Prediction | None = None  # by the network; None: the checkpoint's
    sample_eps: float | None = None  # distance kept from the ends of t; None: the checkpoint's
    time_shift: float | None = None  # more than 1: more times near noise; None: the checkpoint's
    num_sampling_steps: int = 250  # time points; adaptive solvers choose their own
    cfg_channels: Literal["all", "3"] | None = None  # guided channels; None: 3 for SD latents
    guidance_low: float = 0.0  # guide where t >= this (t = 0 noise, t = 1 data)
    guidance_high: float = 1.0  # guide where t <= this
    skip_blocks: BlockNumbers = ()  # blocks that are left out, counted from 1 (Table 8)
    float64: bool = False  # keep the sampler's state in double precision
    tf32: bool = True  # TF32 matrix products on GPU
    bf16: bool = False  # run the network and the VAE's decoder under bfloat16 autocast
    compile: Literal["auto", "on", "off"] = "auto"  # block by block; auto: on CUDA only
    attention: Literal["auto", "cudnn", "flash", "efficient", "math"] = "auto"  # its kernel
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: CUDA where there is one


@dataclass(frozen=True)
class ODEFlags:
    sampling_method: str = "dopri5"  # euler, heun2 or one of torchdiffeq's
    atol: float = 1e-6  # of adaptive solvers
    rtol: float = 1e-3  # of adaptive solvers


@dataclass(frozen=True)
class SDEFlags:
    sampling_method: Literal["Euler", "Heun"] = "Euler"  # Euler-Maruyama, or Heun
    # the diffusion coefficient over t
    diffusion_form: Literal[
        "constant", "SBDM", "sigma", "linear", "decreasing", "increasing-decreasing"
    ] = "sigma"
    diffusion_norm: float = 1.0  # its size
    last_step: Literal["Mean", "Tweedie", "Euler"] | None = "Mean"  # how the last step is taken
    last_step_size: float = 0.04  # how far before t = 1 it is taken


@dataclass(frozen=True)
class DDPMFlags:
    num_sampling_steps: int | None = None  # network calls; None: all ticks of a clock, else 250
    ddim: bool = False  # no noise between steps, and ticks that trail (as CogVideoX's pipeline)


@dataclass(frozen=True)
class GridFlags(SampleFlags):
    cfg_scale: float = 4.0  # classifier-free guidance; 1: none
    seed: int = 0  # image i is a function of (seed, i)
    class_labels: tuple[int, ...] = ()  # one image each; none: 16 over all classes
    prompts: tuple[str, ...] = ()  # motion, video: one sample each, of these words
    num_frames: int | None = None  # motion: of the samples of --prompts; None: the longest
    out: str = "sample.png"  # the picture


@dataclass(frozen=True)
class NpzFlags(SampleFlags):
    cfg_scale: float = 1.0  # classifier-free guidance; 1: none
    global_seed: int = 0  # sample i is a function of (seed, i), for any number of processes
    num_fid_samples: int = 50_000  # how many
    per_proc_batch_size: int = 4  # samples per batch and process; take what the GPU holds
    sample_dir: str = "samples"  # where {name}.npz and its protocol JSON go
    # classes at random, as SiT's script has them, or as many samples of each, in a random order
    labels: Literal["random", "balanced"] = "random"
    name: str | None = None  # of the files; None: checkpoint, sampler and a hash of the protocol
    pngs: bool = False  # also write {index:06d}.png in a folder
    # SiT's seed * world + rank and batch-wide error norm; no resuming. Its very draws for an ODE on
    # GPUs; for an SDE, or on a CPU, its code draws initial weights from the same stream first
    legacy_seeds: bool = False


@dataclass(frozen=True)
class GridODE(ODEFlags, GridFlags):
    """A grid of samples by the probability-flow ODE."""


@dataclass(frozen=True)
class GridSDE(SDEFlags, GridFlags):
    """A grid of samples by the reverse SDE."""


@dataclass(frozen=True)
class GridDDPM(DDPMFlags, GridFlags):
    """A grid of samples by ancestral sampling."""


@dataclass(frozen=True)
class NpzODE(ODEFlags, NpzFlags):
    """N samples to an .npz by the probability-flow ODE."""

    reverse: bool = False  # the other way: the noise that N real images come from
    likelihood: bool = False  # bits per dimension of N real images under the model


@dataclass(frozen=True)
class NpzSDE(SDEFlags, NpzFlags):
    """N samples to an .npz by the reverse SDE."""


@dataclass(frozen=True)
class NpzDDPM(DDPMFlags, NpzFlags):
    """N samples to an .npz by ancestral sampling."""


TERM = {"reg_weight", "reg_schedule", "reg_schedule_steps", "reg_start", "telemetry_every"}
SYNC = TERM | {
    "similarity", "trd_margin", "trd_pool", "teacher", "stop_gradient", "reverse_sync",
    "sync_t_low", "sync_t_high", "sync_tokens",
}  # fmt: skip
# The flags of train.py's regulariser groups that each method reads.
READS: dict[str, set[str]] = {
    "layer_sync": SYNC | {"encoder_depth", "gt_encoder_depth"},
    "multiple_sync": SYNC | {"multi_blocks_match"},
    "vanilla": set(),
    "dispersive": TERM | {"encoder_depth", "disp_variant", "disp_tau", "disp_gather"},
    "repa": TERM
    | {"encoder_depth", "repa_variant", "repa_encoder", "repa_weights", "velocity_warmup"},
    "external": TERM | {"targets", "velocity_warmup"},
    "sra": TERM
    | {"encoder_depth", "gt_encoder_depth", "sra_variant", "sra_cos_axis", "sra_epoch_steps"},
    "sra2": TERM | {"encoder_depth"},
}
SYNC_METHODS = {"layer_sync", "multiple_sync"}  # they share the published weight
COSINES = {"cosine", "centred", "centred_all", "spatial"}  # so do these --similarity


def foreign_to(loss_type: str) -> set[str]:
    """The flags of other methods, which this one does not read."""
    return set().union(*READS.values()) - READS.get(loss_type, set())


MOST = 2**62  # seeds and counts
SMALLEST = 1e-30  # "more than 0"
# Flag -> the smallest and largest value that makes sense, both included.
RANGES: dict[str, tuple[float, float]] = {
    "image_size": (1, MOST), "num_classes": (0, MOST), "num_workers": (0, 1024),
    "depth": (1, 1000), "hidden_size": (2, 10**6), "num_heads": (1, 10**6),
    "reg_weight": (0, 1e6), "reg_schedule_steps": (0, MOST), "reg_start": (0, MOST),
    "sync_t_low": (0, 1), "sync_t_high": (0, 1),
    "telemetry_every": (0, MOST), "trd_margin": (0, 2), "disp_tau": (SMALLEST, 1e30),
    "velocity_warmup": (0, MOST), "sra_epoch_steps": (0, MOST),
    "epochs": (1, MOST), "max_steps": (1, MOST), "global_batch_size": (1, MOST),
    "grad_accum": (1, MOST), "lr": (0, 1e38), "lr_warmup": (0, MOST), "weight_decay": (0, 1e6),
    "adam_beta1": (0, 0.999999), "adam_beta2": (0, 0.999999),
    "clip_grad_norm": (0, 1e30), "max_skipped": (0, MOST), "spike_sigma": (0, 1e6),
    "hang_timeout": (0, 1e9), "ema_decay": (0, 1), "class_dropout_prob": (0, 1),
    "global_seed": (-MOST, MOST), "seed": (-MOST, MOST), "cfg_scale": (0, 1e6),
    "log_every": (1, MOST), "ckpt_every": (1, MOST), "sample_every": (0, MOST),
    "score_every": (0, MOST), "score_samples": (4, MOST),
    "keep_last": (0, MOST), "milestone_every": (0, MOST),
    "dropout": (0, 0.99), "num_frames": (1, MOST), "frame_stride": (1, MOST),
    "train_eps": (0, 0.49), "sample_eps": (0, 0.49), "time_shift": (0.01, 100),
    "lora_rank": (0, 65_536), "lora_alpha": (SMALLEST, 1e6),
    "num_sampling_steps": (2, 10**9), "guidance_low": (0, 1), "guidance_high": (0, 1),
    "atol": (SMALLEST, 1e6), "rtol": (SMALLEST, 1e6),
    "diffusion_norm": (0, 1e6), "last_step_size": (0, 0.99),
    "num_fid_samples": (1, MOST), "per_proc_batch_size": (1, MOST),
    "batch_size": (1, MOST), "shard_size": (1, MOST), "is_split": (1, MOST), "min_accuracy": (0, 1),
    "grid": (1, 1024),
}  # fmt: skip


def checked(config: Config) -> Config:
    """The same flags.

    Raises:
        InputError: a number outside its range; NaN is outside all of them.
    """
    for name, (low, high) in RANGES.items():
        value = getattr(config, name, None)
        if value is not None and not low <= value <= high:
            most = f"to {high:g}" if high < MOST else "or more"
            raise InputError(f"--{name.replace('_', '-')} {value}: give {low:g} {most}")
    return config


def at_least(flags: Any, **least: int) -> None:
    """
    Raises:
        InputError: a number that is given and smaller than its least.
    """
    for name, smallest in least.items():
        value = getattr(flags, name)
        if value is not None and value < smallest:
            raise InputError(f"--{name.replace('_', '-')} {value}: give {smallest} or more")


def parse(
    config: type[Config],
    presets: Mapping[str, Mapping[str, Any]],
    argv: Sequence[str] | None = None,
) -> Config:
    """Flags of the command line (or of `argv`) over those of `--preset` over the defaults.

    Raises:
        InputError: an unknown preset. Other bad flags end the process in tyro's box, exit code 2.
    """
    argv = sys.argv[1:] if argv is None else argv
    name = peek("--preset", argv)
    row = dict(known(name, presets, "preset")) if name else {}
    dropped = not_meant(row, argv)
    row = {key: value for key, value in row.items() if key not in dropped}
    default = config(**row, preset=name) if name else config()
    return checked(tyro.cli(config, args=argv, default=default, console_outputs=speaks()))


def not_meant(row: Mapping[str, Any], argv: Sequence[str]) -> set[str]:
    """The flags that a preset has for its own method or similarity, where `argv` asks for another:
    those have their authors' own. And its number of steps, where `argv` counts in epochs."""
    published = row.get("loss_type", "layer_sync")
    method = peek("--loss-type", argv) or peek("--loss_type", argv) or published
    alike = row.get("similarity", "cosine")
    similarity = peek("--similarity", argv) or alike
    others = {"max_steps"} if peek("--epochs", argv) else set()
    if method != published:
        both = {method, published}
        others |= foreign_to(method if both <= SYNC_METHODS else "vanilla")
    if similarity != alike and not {similarity, alike} <= COSINES:
        others |= {"reg_weight"}
    return others


def parse_sampling(
    modes: Mapping[str, type[Config]], protocols: Mapping[str, Mapping[str, Any]]
) -> Config:
    """`ODE ...`, `SDE ...` or `DDPM ...` over the flags of `--protocol` over the defaults; without
    any of them the first mode.

    Raises:
        InputError: an unknown protocol, or one of the other mode.
    """
    argv = sys.argv[1:]
    name = peek("--protocol", argv)
    published = dict(known(name, protocols, "protocol")) if name else {}
    mode = published.pop("mode", None)
    if argv and argv[0] in modes:
        if mode not in (None, argv[0]):
            raise InputError(f"--protocol {name} is an {mode} protocol, not {argv[0]}")
        mode, argv = argv[0], argv[1:]
    elif argv and argv[0] in ("-h", "--help"):
        return help_of(modes)
    chosen = modes[mode or next(iter(modes))]
    default = chosen(**published, protocol=name)
    return checked(tyro.cli(chosen, args=argv, default=default, console_outputs=speaks()))


SAMPLING = """Sample from a checkpoint: --ckpt is all that has to be given.

--protocol sets the mode and its flags as published. The flags of a mode are in its own help.

$ python {program} --ckpt RUN
$ python {program} --ckpt RUN --protocol paper-sde
$ python {program} {mode} --ckpt RUN --num-sampling-steps 50
$ python {program} {mode} --help
"""


def help_of(modes: Mapping[str, type[Config]]) -> NoReturn:
    """Print which modes there are, and end the process."""
    first = next(iter(modes))
    every = Union[  # noqa: UP007  # of a list that is made here
        tuple(Annotated[flags, tyro.conf.subcommand(name)] for name, flags in modes.items())
    ]
    tyro.cli(
        every, args=["--help"], default=modes[first](), console_outputs=speaks(),
        description=SAMPLING.format(program=os.path.basename(sys.argv[0]), mode=first),
    )  # fmt: skip


def peek(flag: str, argv: Sequence[str]) -> str | None:
    """The value of a flag that decides the defaults of the others; the last one counts."""
    value = None
    for position, word in enumerate(argv):
        if word == flag and position + 1 < len(argv):
            value = argv[position + 1]
        elif word.startswith(flag + "="):
            value = word.removeprefix(flag + "=")
    return value


def known(name: str, table: Mapping[str, Any], what: str) -> Any:
    if name not in table:
        raise InputError(f"unknown {what} {name!r}; choose from {', '.join(table)}")
    return table[name]
