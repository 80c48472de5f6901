"""Which steps are refused, what they leave alone, and what is tried again."""

import errno
import math

import pytest
import torch
from torch import nn

from runtime import files
from runtime.ema import EMA
from runtime.files import retried
from runtime.stability import MOST_RETURNS, WINDOW, Guard
from runtime.state import TrainState

CPU = torch.device("cpu")


def fed(guard, *norms, losses=None):
    for i, norm in enumerate(norms):
        loss = None if losses is None else torch.tensor(losses[i])
        guard.refuses(torch.tensor(norm), loss)
    return guard


@pytest.mark.parametrize("clip", [0.0, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_refused_step_leaves_weights_moments_and_average_alone(clip, value):
    model = nn.Linear(3, 2)
    state = TrainState(
        model, EMA(model, 0.9), nn.Identity(), lr=0.1, weight_decay=0.1, clip=clip
    )  # fmt: skip

    def step(value):
        for p in model.parameters():
            p.grad = torch.full_like(p, value)
        _, refused = state.update()
        moments = [m[name] for m in state.opt.state.values() for name in sorted(m)]
        kept = [*model.parameters(), *state.ema.model.parameters(), *moments]
        return [t.detach().clone() for t in kept], bool(refused)

    before, refused = step(0.5)
    assert not refused
    after, refused = step(value)
    assert refused and all(map(torch.equal, before, after)) and state.step == 2
    later, refused = step(0.5)
    assert not refused and not any(map(torch.equal, after, later))


def test_refused_steps_are_counted_in_all_and_in_a_row():
    nan = math.nan
    guard = fed(Guard(CPU), 1.0, nan, nan, 1.0, math.inf)
    assert guard.look(15) == dict.fromkeys([12, 13, 15], "its gradient is not finite")
    assert (guard.skipped, guard.in_row, guard.longest) == (3, 1, 2)
    assert list(fed(guard, nan, nan, 1.0).look(18)) == [16, 17]
    assert (guard.skipped, guard.in_row, guard.longest) == (5, 0, 3), "a row goes on over a look"
    assert guard.look(18) == {}


def test_a_spike_is_refused_once_there_are_enough_losses_to_judge_by():
    losses = (torch.randn(WINDOW + 20, generator=torch.Generator().manual_seed(0)) + 5).tolist()
    losses[50] = losses[WINDOW + 10] = 50.0
    guard = fed(Guard(CPU, spike_sigma=6.0), *[1.0] * len(losses), losses=losses)
    assert guard.look(len(losses)) == {WINDOW + 11: "its loss is a spike"}


def test_the_running_mean_and_variance_of_few_losses_are_the_plain_ones():
    losses = [1.0, 4.0, 2.5, 7.0]
    guard = fed(Guard(CPU, spike_sigma=3.0), *[1.0] * 4, losses=losses)
    count, mean, variance = guard.running.tolist()
    values = torch.tensor(losses, dtype=torch.float64)
    assert count == 4 and mean == pytest.approx(values.mean().item())
    assert variance == pytest.approx(values.var(correction=0).item())


def test_a_refused_loss_is_no_part_of_the_running_mean():
    guard = fed(Guard(CPU, spike_sigma=3.0), 1.0, math.nan, losses=[2.0, math.nan])
    assert guard.running.tolist() == [1.0, 2.0, 0.0]


def test_a_guard_goes_on_from_what_it_has_stored():
    losses = torch.rand(WINDOW + 30, generator=torch.Generator().manual_seed(0)).tolist()
    losses[WINDOW + 5] = losses[WINDOW + 20] = 9.0
    norms = [1.0] * len(losses)
    one = fed(Guard(CPU, spike_sigma=8.0), *norms, losses=losses)
    half = fed(Guard(CPU, spike_sigma=8.0), *norms[:70], losses=losses[:70])
    half.look(70)
    other = Guard(CPU, spike_sigma=8.0)
    other.resume(half.content())
    fed(other, *norms[70:], losses=losses[70:])
    assert list(one.look(len(losses))) == list(other.look(len(losses))) == [WINDOW + 6, WINDOW + 21]
    assert torch.equal(one.running, other.running)
    assert one.content().keys() == other.content().keys()


@pytest.mark.parametrize("content", [{"skipped": "many"}, {"shift": []}, {"shift": -1}])
def test_damaged_counts_are_refused(content):
    with pytest.raises(ValueError, match="counts of skipped steps"):
        Guard(CPU).resume(content)


def test_whether_training_broke_down_is_asked_of_all_steps_since_it_was_asked_last():
    """Also where a signal made the run look, and go on in another process, in between."""
    one = fed(Guard(CPU), math.nan, math.nan, 1.0)
    one.look(3)
    other = Guard(CPU)
    other.resume(one.content())
    fed(other, 1.0, math.nan).look(5)
    assert other.broke_down(1) and not other.broke_down(1)
    fed(other, math.nan, 1.0).look(7)
    assert other.broke_down(1), "a row goes on over a look"


def test_how_often_a_run_went_back_to_a_checkpoint_outlives_a_restart():
    guard = Guard(CPU)
    for _ in range(MOST_RETURNS):
        guard.went_back(100, lost=7, before=guard.content())
        again = Guard(CPU)
        again.resume(guard.content())
        guard = again
    with pytest.raises(FloatingPointError, match="4 times after step 100"):
        guard.went_back(100, lost=7, before=guard.content())


def test_going_back_passes_over_what_was_read_and_ends_after_a_few_times():
    guard = Guard(CPU)
    for returns in range(1, MOST_RETURNS + 1):
        guard.went_back(100, lost=7, before=guard.content())
        assert (guard.shift, guard.rollbacks) == (7 * returns, returns)
    guard.went_back(200, lost=1, before=guard.content())  # it came further: counted anew
    for _ in range(MOST_RETURNS - 1):
        guard.went_back(200, lost=1, before=guard.content())
    with pytest.raises(FloatingPointError, match="4 times after step 200"):
        guard.went_back(200, lost=1, before=guard.content())


def failing(times: int, number: int):
    left = iter(range(times))

    def action():
        if next(left, None) is not None:
            raise OSError(number, "refused")
        return "done"

    return action


def test_what_fails_in_passing_is_tried_again(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "PAUSES", (0.0, 0.0))
    assert retried(failing(2, errno.EIO), tmp_path) == "done"
    with pytest.raises(OSError, match="refused") as error:
        retried(failing(3, errno.ESTALE), tmp_path / "file")
    assert error.value.filename == str(tmp_path / "file"), "whoever ends knows which file it was"
    for number in (errno.ENOENT, errno.ENOSPC, errno.EROFS, errno.EACCES):
        with pytest.raises(OSError, match="refused"):
            retried(failing(1, number), tmp_path)


def test_a_patient_file_is_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content := bytes(range(256)) * 9000)
    with files.open_patiently(path) as file:
        assert file.read(5) == content[:5] and file.seek(7) == 7
        assert file.read() == content[7:] and file.read() == b""
    with pytest.raises(FileNotFoundError):
        files.open_patiently(tmp_path / "none")
