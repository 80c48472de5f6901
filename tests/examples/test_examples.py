"""The scripts of examples/, as a person runs them: tiny, whole, with what they print."""

import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
import torch

from layersync import LayerSync, record_blocks
from tests.commands import ROOT

NEEDS = {
    "accelerate_sd3": ("diffusers", "accelerate"),
    "diffusers_dit": ("diffusers",),
    "timm_vit": ("timm",),
    "transformer_encoder": (),
    "wan_lora": ("diffusers", "peft"),
}
LINE = re.compile(r"step +(\d+)  loss (\S+)  cosine (\S+)  centred cosine (\S+)")


def example(name: str):
    for package in (*NEEDS[name], "sklearn"):
        pytest.importorskip(package, reason=f"pip install '.[examples]': {package} is missing")
    return import_module(f"examples.{name}")


def printed(capsys) -> list[tuple[float, ...]]:
    """(step, loss, cosine, centred cosine) per line."""
    return [tuple(map(float, found)) for found in LINE.findall(capsys.readouterr().out)]


def options(name: str, tmp_path) -> dict:
    return {"folder": tmp_path / "adapter"} if name == "wan_lora" else {}


def test_every_example_is_tested():
    modality = {"terrain"}  # test_terrain.py
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(NEEDS) | modality


@pytest.mark.parametrize("name", NEEDS)
def test_layersync_is_five_marked_lines_of_an_example(name):
    code = (ROOT / f"examples/{name}.py").read_text().splitlines()
    marks = [line.split("# LayerSync ")[1] for line in code if "# LayerSync " in line]
    assert marks == ["1", "2", "3", "4", "5"]
    bare = "\n".join(line for line in code if "# LayerSync " not in line)
    for word in ("record_blocks", "sync", "statistics"):
        assert not re.search(rf"\b{word}\b", bare), f"{word} is in a line that is not marked"


@pytest.mark.parametrize("name", NEEDS)
def test_an_example_trains_and_the_term_takes_part(name, capsys, tmp_path):
    run = example(name)
    run.main(steps=9, weight=0.0, **options(name, tmp_path))
    vanilla = printed(capsys)
    run.main(steps=9, weight=20.0, **options(name, tmp_path))
    pulled = printed(capsys)
    assert torch.tensor(vanilla + pulled).isfinite().all()
    assert [line[0] for line in pulled] == [0, 8]
    assert pulled[0] == vanilla[0]  # same seed, same first step: only then does the term act
    assert abs(pulled[-1][1] - vanilla[-1][1]) > 1e-3


def test_a_schedule_counts_steps_of_the_optimizer_where_gradients_are_accumulated(monkeypatch):
    run, asked = example("accelerate_sd3"), []
    monkeypatch.setattr(LayerSync, "weight", lambda self, step: asked.append(step) or 0.2)
    run.main(steps=5)
    assert asked == [0, 0, 1, 1, 2]


def test_an_example_runs_from_the_command_line():
    words = [sys.executable, "examples/transformer_encoder.py"]
    here = os.environ | {"PYTHONPATH": str(ROOT)}  # the package of this folder, installed or not
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, timeout=120, env=here)
    assert done.returncode == 0, done.stderr
    assert len(LINE.findall(done.stdout)) == 11


@pytest.mark.slow
def test_accelerate_runs_it_in_two_processes():
    example("accelerate_sd3")
    starter = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    here = os.environ | {"PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "1"}
    done = subprocess.run(
        [sys.executable, *starter, "examples/accelerate_sd3.py"],
        capture_output=True, text=True, cwd=ROOT, timeout=300, env=here,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [int(line[0]) for line in LINE.findall(done.stdout)] == [0, 10, 20, 30, 40, 49]


def test_the_adapter_of_wan_reloads_to_the_same_outputs(tmp_path):
    wan = example("wan_lora")
    from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline

    trained = wan.main(steps=2, folder=tmp_path)
    torch.manual_seed(0)
    base = wan.build()
    rest = dict(tokenizer=None, text_encoder=None, vae=None)
    pipeline = WanPipeline(
        transformer=base, scheduler=FlowMatchEulerDiscreteScheduler(shift=wan.SHIFT), **rest
    )
    inputs = torch.randn(2, 1, 5, 16, 16), torch.tensor([100, 700]), wan.captions()[:2]

    def outputs(transformer) -> torch.Tensor:
        with torch.no_grad():
            return transformer.eval()(*inputs).sample

    expected, before = outputs(trained), outputs(base)
    pipeline.load_lora_weights(tmp_path)
    assert not torch.equal(before, expected)
    assert torch.equal(outputs(pipeline.transformer), expected)


def test_the_term_reaches_adapters_up_to_the_student_alone():
    wan = example("wan_lora")
    transformer = wan.build()
    transformer.requires_grad_(False)
    transformer.add_adapter(wan.LORA)
    transformer.enable_gradient_checkpointing()
    sync = LayerSync(pairs=[(2, 5)])
    with record_blocks(transformer.blocks, sync.blocks) as blocks:
        transformer(torch.randn(2, 1, 5, 16, 16), torch.tensor([100, 700]), wan.captions()[:2])
    sync(blocks).backward()
    moved = [
        any(p.grad is not None and p.grad.any() for p in block.parameters())
        for block in transformer.blocks
    ]
    assert moved == [True, True] + [False] * 6
