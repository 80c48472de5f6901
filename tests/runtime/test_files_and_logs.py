"""Files that appear whole, logs that survive a kill, checkpoints that are kept or pruned."""

import errno
import fcntl
import json
import os

import numpy as np
import pytest
import torch

from domains import store
from runtime import checkpoint, files
from runtime.distributed import Ranks
from runtime.ema import EMA
from runtime.errors import InputError, sentence_of
from runtime.files import atomic_write, locked, retried
from runtime.log import Log, Wandb, cut_after, readable
from runtime.npz import Blocks
from runtime.random import generator, seed_of
from runtime.resume import Start, opened_folder


def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as file:
        file.write(b"half of the new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "said",
    [
        OSError("Input/output error (os error 5)"),  # safetensors
        FileNotFoundError("No such file or directory: f"),  # and where it is there
        RuntimeError("unable to mmap 9 bytes from file <f>: Input/output error (5)"),  # torch
    ],
)
def test_what_libraries_make_of_a_failing_read_is_retried_and_then_named(
    said, monkeypatch, tmp_path
):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    tries = []

    def fail_until(last):
        tries.append(1)
        if len(tries) < last:
            raise said
        return "read"

    monkeypatch.chdir(tmp_path)
    (tmp_path / "f").touch()
    assert retried(lambda: fail_until(3), "f") == "read"
    with pytest.raises(OSError) as caught:
        retried(lambda: fail_until(99), "f")
    assert sentence_of(caught.value) == "f: Input/output error"


@pytest.mark.parametrize("path", ["/", "."])
def test_a_folder_without_a_name_is_no_file_to_write(path):
    with pytest.raises(IsADirectoryError) as error, atomic_write(path):
        pass
    assert sentence_of(error.value) == f"{path}: Is a directory"


def test_a_file_system_without_locks_is_named(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for lock in (tmp_path, tmp_path / "x.lock"):
        with pytest.raises(InputError, match="--out x: its file system has no locks"):
            with locked(lock, "--out x", waits=False):
                pass
    with pytest.raises(InputError, match=f"--out {tmp_path}/s: its file system has no locks"):
        with store.locked(tmp_path / "s"):
            pass


def test_other_errors_are_left_as_they_are():
    for error in (RuntimeError("shapes differ"), OSError("no such model on the hub")):
        with pytest.raises(type(error)) as caught:
            retried(lambda error=error: (_ for _ in ()).throw(error), "f")
        assert caught.value is error and str(error) in ("shapes differ", "no such model on the hub")


@pytest.fixture
def wandb_was_told(monkeypatch):
    """What every opening of a run tells wandb, which answers nothing."""
    wandb, told = pytest.importorskip("wandb"), []
    monkeypatch.setattr(wandb, "init", lambda **asked: told.append(asked))
    return told


def test_every_run_folder_is_a_run_of_its_own_in_wandb(tmp_path, wandb_was_told):
    one, other = tmp_path / "000-SiT-same-name", tmp_path / "001-SiT-same-name"
    for folder in (one, other):
        folder.mkdir()
    for folder in (one, other, one):  # which is resumed
        Wandb(folder, {})
    first, second, resumed = (asked["id"] for asked in wandb_was_told)
    assert first == resumed != second
    assert {asked["resume"] for asked in wandb_was_told} == {"allow"}


def test_the_project_in_wandb_is_the_users(tmp_path, wandb_was_told, monkeypatch):
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    Wandb(tmp_path, {})
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    Wandb(tmp_path, {})
    assert [asked["project"] for asked in wandb_was_told] == ["LayerSync", "mine"]


def test_seeds_of_near_keys_are_unrelated():
    seeds = {seed_of(0, "step", step) for step in range(1000)}
    assert len(seeds) == 1000
    draws = torch.stack([torch.randn(50, generator=generator("cpu", 0, i)) for i in range(50)])
    assert torch.corrcoef(draws).fill_diagonal_(0).abs().max() < 0.7
    assert seed_of(1, 23) != seed_of(12, 3)


def run_folder(tmp_path, steps):
    for step in steps:
        path = tmp_path / "checkpoints" / f"{step:07d}.pt"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    return tmp_path


def kept(folder):
    return [int(path.stem) for path in checkpoint.files_of(folder)]


def test_pruning_keeps_the_last_and_the_milestones(tmp_path):
    folder = run_folder(tmp_path, range(10, 130, 10))
    checkpoint.prune(folder, keep_last=3, milestone_every=50)
    assert kept(folder) == [50, 100, 110, 120]
    checkpoint.prune(folder, keep_last=0, milestone_every=0)
    assert kept(folder) == [50, 100, 110, 120], "0 keeps all"


def test_runs_are_numbered_and_the_highest_is_last(tmp_path):
    for name in ("000-SiT-B-2-x", "002-SiT-B-2-x", "010-SiT-B-2-y", "notes", "1000-SiT-B-2-x"):
        (tmp_path / name).mkdir()
    assert [p.name for p in checkpoint.runs(tmp_path, "SiT-B-2-x")][-1] == "1000-SiT-B-2-x"
    assert checkpoint.new_run(tmp_path, "SiT-B-2-x").name == "1001-SiT-B-2-x"
    assert checkpoint.new_run(tmp_path / "empty", "a").name == "000-a"


def test_a_run_that_goes_on_in_a_new_folder_enters_no_others(tmp_path):
    """Another job may take the number between the look at the folder and its making."""
    checkpoints = tmp_path / "003-SiT-x" / "checkpoints"
    checkpoints.mkdir(parents=True)
    half = checkpoints / ".0000100.pt.abcd1234.tmp"
    half.touch()
    start = Start(str(checkpoints.parent), "elsewhere/0000001.pt", resumes=True)
    assert opened_folder(start) == str(tmp_path / "004-SiT-x") and half.exists()
    assert opened_folder(start._replace(own=True)) == start.folder and not half.exists()


def test_any_name_and_folder_of_a_checkpoint_is_fine(tmp_path):
    """Dots in folders and names once broke resuming: the step is in the file."""
    folder = tmp_path / "user.name" / "v1.5"
    folder.mkdir(parents=True)
    for content, step in (({"train_steps": 7}, 7), ({"steps": 8}, 8), ({}, None)):
        torch.save({"model": {"w": torch.zeros(1)}, **content}, folder / "last.pt")
        assert checkpoint.read(folder / "last.pt").step == step
    torch.save({"model": {"w": torch.zeros(1)}}, folder / "0050000.pt")
    assert checkpoint.read(folder / "0050000.pt").step == 50_000


@pytest.mark.parametrize("name", ["Screenshot 9.41\u202fPM", "a\xa0b", "\u3000", "v\udcffae"])
def test_a_flag_may_be_a_folder_of_any_name_that_training_takes(tmp_path, name):
    torch.save({"ema": {}, "args": {"vae": f"/data/{name}"}}, tmp_path / "a.pt")
    assert checkpoint.read(tmp_path / "a.pt").args["vae"] == f"/data/{name}"


@pytest.mark.parametrize("name", ["a\nb", "\x1b[2J", "\u202egpj", "a\u2028b"])
def test_a_flag_that_commands_a_terminal_is_refused(tmp_path, name):
    torch.save({"ema": {}, "args": {"vae": f"/data/{name}"}}, tmp_path / "a.pt")
    with pytest.raises(InputError, match="its vae is"):
        checkpoint.read(tmp_path / "a.pt")


@pytest.mark.parametrize("part", ["opt", "args", "guard", "architecture", "ema", "model"])
def test_a_part_that_is_a_tensor_is_refused(tmp_path, part):
    torch.save({"model": {}, "ema": {}, part: torch.zeros(3)}, tmp_path / "a.pt")
    with pytest.raises(InputError, match=f"its {part} is a Tensor|holds no state dict"):
        checkpoint.read(tmp_path / "a.pt")


def test_a_rollback_goes_to_where_an_uninterrupted_run_would_go(tmp_path):
    """Not to what a signal had saved since, unless there is nothing else."""
    for step in (10, 13, 20, 27):
        content = {"ema": {}, "guard": {"in_row": int(step == 20)}}
        checkpoint.save(tmp_path / f"checkpoints/{step:07d}.pt", content)
    names = [checkpoint.last_good(tmp_path, every)[-10:] for every in (10, 100)]
    assert names == ["0000010.pt", "0000027.pt"]
    assert checkpoint.last_good(tmp_path / "none", 10) is None


def test_numbers_of_other_scripts_are_no_steps(tmp_path):
    """`int` takes some digits, and not others."""
    for name in ("0000003.pt", "\u00b2.pt"):
        (tmp_path / name).touch()
    assert [path.name for path in checkpoint.files_of(tmp_path)] == ["0000003.pt"]


def test_an_empty_run_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="no checkpoint in"):
        checkpoint.read(tmp_path)


def test_of_a_folder_of_runs_the_newest_is_named(tmp_path):
    for run in ("1000-SiT-Ti-2-b", "999-SiT-Ti-2-a", "1001-SiT-Ti-2-c"):
        (tmp_path / run / "checkpoints").mkdir(parents=True)
    for run in ("1000-SiT-Ti-2-b", "999-SiT-Ti-2-a"):  # the last one has none yet
        (tmp_path / run / "checkpoints/0000001.pt").touch()
    with pytest.raises(InputError, match="the newest run in it is .*/1000-SiT-Ti-2-b$"):
        checkpoint.read(tmp_path)


def test_prefixes_of_ddp_and_compile_are_removed(tmp_path):
    names = ["module.blocks.0.w", "_orig_mod.blocks.1.w", "blocks.2._orig_mod.w"]
    torch.save({"model": {name: torch.zeros(1) for name in names}}, tmp_path / "0000001.pt")
    read = checkpoint.read(tmp_path / "0000001.pt").model
    assert list(read) == ["blocks.0.w", "blocks.1.w", "blocks.2.w"]


def test_ema_is_the_recursion_in_float32_and_starts_as_the_model():
    model = torch.nn.Linear(3, 2)
    ema = EMA(model, 0.9)
    expected = model.weight.detach().clone()
    assert torch.equal(ema.model.weight, expected)
    for _ in range(5):
        torch.nn.init.normal_(model.weight)
        ema.update(model)
        expected = 0.9 * expected + 0.1 * model.weight.detach()
    torch.testing.assert_close(ema.model.weight, expected)
    assert not ema.model.weight.requires_grad and not ema.model.training


ALONE = Ranks(0, 1, torch.device("cpu"))


def test_the_log_writes_means_since_the_last_line(tmp_path, capsys):
    log = Log(tmp_path, ALONE, start=0, stop=4, images_per_step=8)
    for value in (1.0, 3.0):
        log.add(loss=torch.tensor(value))
    log.write(2, reg_weight=0.2)
    log.add(loss=torch.tensor(7.0))
    log.write(4)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [2.0, 7.0]
    assert lines[0]["reg_weight"] == 0.2 and lines[1]["seconds_left"] == 0
    assert "step 2/4  loss 2.0000" in capsys.readouterr().out


def test_means_are_of_the_steps_that_were_taken(tmp_path):
    log = Log(tmp_path, ALONE, start=10, stop=30, images_per_step=8)
    for value in (1.0, float("nan"), 4.0):
        log.add(loss=torch.tensor(value))
    log.write(13)
    log.add(loss=torch.tensor(float("nan")))
    log.write(14)
    log.close()
    first, second = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert first["loss"] == 2.5 and "loss" not in second


def test_values_that_are_not_finite_are_said_and_in_no_file(tmp_path, capsys):
    """JSON has none, and a sweep takes the mean of a run's telemetry."""
    log = Log(tmp_path, ALONE, start=0, stop=4, images_per_step=8)
    log.row(2, "telemetry", {"cosine": 0.5, "grad_ratio": float("inf")})
    log.close()
    (row,) = map(json.loads, (tmp_path / "log.jsonl").read_text().splitlines())
    assert row == {"step": 2, "telemetry": {"cosine": 0.5}}
    assert "cosine 0.5, grad_ratio inf" in capsys.readouterr().out


def test_a_full_disk_names_the_log(tmp_path):
    (tmp_path / "log.txt").symlink_to("/dev/full")
    log = Log(tmp_path, ALONE, start=0, stop=9, images_per_step=8)
    log.add(loss=torch.tensor(1.0))
    with pytest.raises(OSError, match="No space left") as error:
        log.write(2)
    assert error.value.filename == str(tmp_path / "log.txt")


def test_a_log_that_goes_back_forgets_what_is_done_again(tmp_path):
    log = Log(tmp_path, ALONE, start=0, stop=9, images_per_step=8)
    for step in (2, 4, 6):
        log.add(loss=torch.tensor(1.0))
        log.write(step)
    log.rewind(4, rollback={"from": 6})
    log.add(loss=torch.tensor(2.0))
    log.write(6)
    log.close()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4, 5, 6]
    assert rows[2] == {"step": 5, "rollback": {"from": 6}} and rows[3]["loss"] == 2.0


def test_a_resumed_log_forgets_the_steps_that_are_done_again(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [json.dumps({"step": step}) for step in (10, 20, 30)]
    path.write_text("\n".join([*lines, '{"step": 4']))
    cut_after(path, 20)
    assert path.read_text() == "\n".join(lines[:2]) + "\n"


def test_the_readable_line_has_what_people_watch():
    row = dict(step=5, loss=1, velocity=2, reg=-1, grad_norm=0.5, images_per_second=99.6)
    assert readable(row | {"seconds_left": 3725}, 10) == (
        "step  5/10  loss 1.0000  velocity 2.0000  reg -1.0000  grad 0.500  100 images/s  "
        "1:02:05 left"
    )


def test_blocks_of_any_order_pack_in_the_order_of_their_index(tmp_path):
    blocks = Blocks(tmp_path / "b")
    blocks.write(4, index=np.arange(4, 8), arr_0=np.arange(40, 80, dtype=np.uint8).reshape(4, 10))
    for part in (1, 0):  # two ranks dealt out in turn
        index = np.arange(part, 4, 2)
        values = np.repeat(index[:, None] * 10, 10, axis=1) + np.arange(10)
        blocks.write(0, part, index=index, arr_0=values.astype(np.uint8))
    blocks.pack(tmp_path / "all.npz", ["arr_0"], 6)
    packed = np.load(tmp_path / "all.npz")["arr_0"]
    assert np.array_equal(packed, np.arange(60, dtype=np.uint8).reshape(6, 10))


def test_packing_is_bounded_by_a_block_not_by_the_whole(tmp_path):
    import tracemalloc

    blocks = Blocks(tmp_path / "b")
    for first in range(0, 40):
        blocks.write(first, index=np.array([first]), arr_0=np.zeros((1, 1 << 20), np.uint8))
    tracemalloc.start()
    blocks.pack(tmp_path / "all.npz", ["arr_0"], 40)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()
