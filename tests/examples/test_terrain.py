"""docs/new-modality.md: its example trains, resumes and samples by the commands that it shows."""

import json
import re
import shlex
import subprocess
import sys

import numpy as np
import torch

from domains.domain import fingerprint_of
from domains.order import Draws
from examples import terrain
from tests.commands import ROOT, launched

PAGE = (ROOT / "docs/new-modality.md").read_text()
SMALL = {
    "train.py": "--max-steps 2 --global-batch-size 8 --depth 4 --hidden-size 24 --num-heads 2 "
    "--sample-every 2 --no-tensorboard --num-workers 0",
    "sample.py": "--num-sampling-steps 3",
    "sample_ddp.py": "--num-sampling-steps 3 --per-proc-batch-size 128 --sample-dir samples",
    "evaluations/similarity.py": "--pictures 16",
}


def test_the_commands_of_the_page_run(tmp_path):
    commands = [shlex.split(line) for line in re.findall(r"^python (.+)$", PAGE, re.MULTILINE)]
    assert [words[1] for words in commands] == list(SMALL)
    for _, script, *words in commands:
        words = [script, *words, *SMALL[script].split(), "--device", "cpu"]
        if script == "sample.py":  # once as it is typed: from another folder, by a fresh Python
            words = [sys.executable, ROOT / "examples/terrain.py", *words]
            done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
            assert done.returncode == 0, done.stderr
        else:
            launched("examples/terrain", *words, folder=tmp_path)
    assert (tmp_path / "sample.png").stat().st_size > 2000
    (preview,) = tmp_path.glob("results/*/samples/*.png")
    assert preview.stat().st_size > 2000
    with np.load(tmp_path / "samples/terrain.npz") as samples:
        assert samples["arr_0"].shape == (256, 64, 1) and samples["arr_0"].dtype == np.int16
    (studied,) = tmp_path.glob("results/*/representation/*/similarity.json")
    assert json.loads(studied.read_text())["blocks"] == [1, 2, 3, 4]


def test_profiles_are_centred_and_come_back_from_the_model_s_units():
    domain = terrain.Terrain.create("terrain")
    batch = domain.train_set().__getitems__(Draws.plain([0, 5]))
    assert batch.raw.shape == (2, 1, 64) and abs(batch.raw.float().mean()) < 1
    x = domain.codec.to_input(domain.codec.encode(batch.raw), None)
    assert torch.equal(domain.codec.decode(x), batch.raw)


def test_held_out_profiles_are_of_another_part_of_the_map():
    domain = terrain.Terrain.create("terrain")
    trained, held_out = domain.train_set(), domain.held_out_set()
    rows, columns = domain.map.shape
    along = columns - terrain.LENGTH + 1  # profiles in a row of the map
    assert (trained.labels == 0).sum() == (rows - terrain.HELD_OUT) * along
    assert (held_out.labels == 0).sum() == terrain.HELD_OUT * along


def test_a_set_without_a_fingerprint_is_told_from_others_by_its_samples():
    domain = terrain.Terrain.create("terrain")
    trained, held_out = domain.train_set(), domain.held_out_set()
    assert fingerprint_of(trained) == fingerprint_of(domain.train_set())
    assert fingerprint_of(trained) != fingerprint_of(held_out)
    higher = terrain.Profiles(3 * domain.map[: -terrain.HELD_OUT])
    assert len(higher) == len(trained) and fingerprint_of(higher) != fingerprint_of(trained)
