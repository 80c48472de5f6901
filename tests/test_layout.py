"""The shape of the repository: what imports what, what gets installed, what the tables promise."""

import ast
import dataclasses
import re
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import transport
from evaluations import drop_blocks, maps, report, similarity, suggest_pairs
from evaluations.images import __main__ as images
from evaluations.motion import __main__ as motion
from experiments import motion_evaluator, moving
from experiments.sweep import SweepFlags
from methods import features
from models import KINDS
from models.names import NETWORKS
from runtime import config
from runtime.config import foreign_to
from runtime.presets import PRESETS
from tests.commands import ROOT, succeed

# Room -> what it may import of ours. Arrows point one way.
MAY_IMPORT = {
    "layersync": set(),
    "examples": {"layersync", "domains", "runtime"},
    "models": {"layersync", "runtime"},
    "runtime": set(),
    "transport": {"layersync"},
    "domains": {"runtime"},
    "evaluations": {"domains", "models", "transport", "layersync", "runtime", "sampling"},
    "sampling": {"domains", "models", "transport", "runtime"},
    "methods": {"domains", "models", "layersync", "runtime", "evaluations"},
    "training": {"domains", "methods", "models", "transport", "runtime"},
    "benchmarks": {
        "domains", "models", "transport", "layersync", "runtime", "evaluations", "methods",
        "training", "sampling",
    },
    "experiments": {
        "domains", "models", "transport", "layersync", "runtime", "evaluations", "methods",
        "training", "sampling",
    },
}  # fmt: skip
COMMANDS = (
    config.TrainConfig, config.EncodeConfig, config.NpzODE, config.NpzSDE, config.GridODE,
    config.NpzDDPM, config.GridDDPM, config.ExportConfig,
    features.Flags, images.ScoreFlags, images.ReferenceFlags, images.ClassifierFlags,
    images.CompareFlags, report.Flags, similarity.Flags, maps.Flags, drop_blocks.Flags,
    suggest_pairs.Flags, motion.Flags, motion_evaluator.Flags, SweepFlags, moving.Flags,
)  # fmt: skip
TORCH_ONLY = ("layersync", "models")
LAZY = "pretrained.py"  # imports the libraries of its networks where these are asked for
EXTRA = {"hub.py": {"huggingface_hub"}}  # imported by those who want it


def imports_of(path: Path, *, at_start: bool = False) -> set[str]:
    """Top-level names that a file imports, or (`at_start`) imports before anything is called;
    relative imports stay in the room."""
    names = set()
    tree = ast.parse(path.read_text())
    for node in tree.body if at_start else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_flow_one_way(room):
    scripts = {path.stem for path in ROOT.glob("*.py")}
    for path in (ROOT / room).rglob("*.py"):
        ours = imports_of(path) & (MAY_IMPORT.keys() | scripts)
        assert ours <= MAY_IMPORT[room] | {room}, f"{path} imports {ours}"


@pytest.mark.parametrize("room", TORCH_ONLY)
def test_the_method_and_the_models_need_torch_alone(room):
    allowed = {"torch", "layersync", room} | set(sys.stdlib_module_names)
    for path in (ROOT / room).rglob("*.py"):
        needs = imports_of(path, at_start=path.name == LAZY)
        assert needs <= allowed | EXTRA.get(path.name, set()), path


def test_commands_start_without_the_heavy_extras():
    """Training on digits must not need what only VAEs, hubs and dashboards need."""
    code = (
        "import sys; sys.argv = ['train.py', '--preset', 'digits', '--dry-run']; "
        "import train, sample_ddp, evaluations.images.__main__; train.main(); "
        "heavy = {'diffusers', 'transformers', 'peft', 'wandb', 'av', 'datasets', 'timm', "
        "'tensorboard'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds(name, tmp_path):
    """Those of methods that need files of others are built as plain SiT."""
    own = []
    if PRESETS[name].get("loss_type") in ("repa", "external"):
        own = ["--loss-type", "vanilla"]
    if PRESETS[name].get("dataset_name") == "mtg-jamendo":
        own = ["--num-classes", 127]
    if PRESETS[name].get("dataset_name") == "instruments":
        from tests.domains.music import save_oobleck

        own = ["--num-classes", 8, "--vae", save_oobleck(tmp_path / "vae", rate=16_000)]
    if PRESETS[name].get("model") in KINDS:
        own = ["--pretrained", pipeline_of(PRESETS[name]["model"], tmp_path)]
    result = succeed("train", "--preset", name, "--dry-run", *own)
    lines = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    dropped = foreign_to("vanilla") | {"loss_type"} if "--loss-type" in own else set()
    for flag, value in PRESETS[name].items():
        assert lines[flag] == str(value) or flag in dropped
    assert lines["model"] in NETWORKS


def pipeline_of(model: str, folder: Path) -> Path:
    """As deep as the published one, and small."""
    pytest.importorskip("peft")
    from tests.pipelines import SAVES

    return SAVES[model](folder / "pipeline", layers=30)


def choices(holder: type, name: str) -> set:
    """The values that a flag's Literal allows."""
    hint = typing.get_type_hints(holder)[name]
    parts = typing.get_args(hint) if type(None) in typing.get_args(hint) else (hint,)
    return {value for part in parts for value in (typing.get_args(part) or (None,))}


def test_flags_take_their_choices_from_the_tables():
    from layersync import SCHEDULES, SIMILARITIES
    from methods import METHODS
    from methods.rivals import DISPERSIVE, REPA, SRA_SETTINGS

    flags = config.TrainConfig
    assert choices(flags, "path_type") == set(transport.PATHS)
    assert choices(flags, "prediction") == set(transport.PREDICTIONS)
    assert choices(flags, "loss_weight") == set(transport.LOSS_WEIGHTS)
    assert choices(flags, "loss_type") == set(METHODS)
    assert choices(flags, "reg_schedule") == set(SCHEDULES)
    assert choices(flags, "similarity") == set(SIMILARITIES)
    assert choices(flags, "disp_variant") == set(DISPERSIVE)
    assert choices(flags, "repa_variant") == set(REPA)
    assert choices(flags, "sra_variant") == set(SRA_SETTINGS)
    assert choices(config.SDEFlags, "sampling_method") == set(transport.SDE_METHODS)
    assert choices(config.SDEFlags, "diffusion_form") == set(transport.DIFFUSION_FORMS)
    assert choices(config.SDEFlags, "last_step") == set(transport.LAST_STEPS)


def test_the_public_flags_and_defaults_are_kept():
    """vita-epfl/LayerSync's train.py and SiT's sample_ddp.py."""
    ours = {f.name: f.default for f in dataclasses.fields(config.TrainConfig)}
    public = dict(
        dataset_name="imagenet-1k", results_dir="results", model="SiT-XL/2", epochs=1400,
        global_batch_size=256, global_seed=0, num_workers=4, ckpt_every=10_000,
        sample_every=10_000, cfg_scale=4.0, loss_type="layer_sync", cache_dir="./cache/",
        wandb=False, wandb_run_name="SiT-Training", fine_tune=False, path_type="Linear",
        prediction="velocity", loss_weight=None, sample_eps=None, train_eps=None,
        # What its train.py and models.py have in place of flags.
        lr=1e-4, adam_beta1=0.9, adam_beta2=0.999, weight_decay=0.0, clip_grad_norm=0.0,
        lr_warmup=0, ema_decay=0.9999, class_dropout_prob=0.1, learn_sigma=True, hflip=True,
    )  # fmt: skip
    assert public.items() <= ours.items()
    # Decided by the data set or the model, and by a deliberate difference.
    assert {"image_size", "num_classes", "vae", "encoder_depth", "gt_encoder_depth"} <= ours.keys()
    published = dict.fromkeys(("encoder_depth", "gt_encoder_depth", "reg_weight"))
    assert published.items() <= ours.items()
    assert ours["log_every"] == 100 and ours["multi_blocks_match"] == "[]"
    npz = dict(
        sample_dir="samples", per_proc_batch_size=4, num_fid_samples=50_000, cfg_scale=1.0,
        global_seed=0,
    )  # fmt: skip
    ode = dict(sampling_method="dopri5", atol=1e-6, rtol=1e-3)
    sde = dict(
        sampling_method="Euler", diffusion_form="sigma", diffusion_norm=1.0, last_step="Mean",
        last_step_size=0.04,
    )  # fmt: skip
    for holder, own in (
        (config.NpzODE, npz | ode | dict(reverse=False, likelihood=False)),
        (config.NpzSDE, npz | sde),
        (config.GridODE, dict(cfg_scale=4.0, seed=0) | ode),
        (config.GridSDE, dict(cfg_scale=4.0, seed=0) | sde),
    ):
        flags = {f.name: f.default for f in dataclasses.fields(holder)}
        shared = dict(num_sampling_steps=250, tf32=True, ckpt=None, weights="ema", float64=False)
        assert (shared | own).items() <= flags.items()


def test_every_flag_that_the_readme_uses_exists():
    readme = (ROOT / "README.md").read_text()
    known = {f.name for holder in COMMANDS for f in dataclasses.fields(holder)}
    known |= {"nproc_per_node", "nnodes", "rdzv_backend", "rdzv_endpoint", "max_restarts", "help"}
    import re

    words = re.findall(r"--(?:no-)?([a-z][a-z0-9_-]*)", readme)
    used = {word.replace("-", "_") for word in words}
    assert used <= known, used - known


def test_conda_installs_what_make_does():
    files = ((ROOT / name).read_text() for name in ("Makefile", "environment.yml"))
    made, conda = (re.findall(r"--editable '?\.\[([\w,]+)\]", text) for text in files)
    assert made == conda and len(made) == 1


def test_demo_samples_the_run_that_was_trained_where_an_earlier_one_was_killed(tmp_path):
    """Before its first checkpoint, so that --resume auto began a new run, or went on with another:
    it goes on with the newest that has a checkpoint."""
    for name in ("000-SiT-Ti-2-digits", "001-SiT-Ti-2-digits", "002-SiT-Ti-2-digits"):
        (tmp_path / "results/demo" / name / "checkpoints").mkdir(parents=True)
    newest = "results/demo/001-SiT-Ti-2-digits/checkpoints/0001500.pt"
    (tmp_path / newest).touch()
    (tmp_path / newest).with_name("0001000.pt").touch()
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/installed").touch()
    words = ["make", "-f", ROOT / "Makefile", "demo", "RUN=echo"]
    said = subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert f"sample_ddp.py ODE --ckpt {newest} --sampling" in said


def test_make_clean_leaves_the_runs(tmp_path):
    """results is train.py's default folder, samples that of sample_ddp.py."""
    for name in (".venv", "results/demo", "results/000-SiT-XL-2-mine", "samples"):
        (tmp_path / name).mkdir(parents=True)
    subprocess.run(["make", "-f", ROOT / "Makefile", "clean"], cwd=tmp_path, check=True)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    assert left == ["results", "results/000-SiT-XL-2-mine", "samples"]
