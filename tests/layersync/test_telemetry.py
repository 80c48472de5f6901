"""What is logged of the features."""

import pytest
import torch
from regulariser_toys import features

from layersync import alarms, centred, cosine, effective_rank, gradient_ratio, statistics


def test_statistics_are_what_their_names_say():
    student, teacher = features(3, 5, 8, seed=1), features(3, 5, 8, seed=2)
    seen = statistics(student.bfloat16(), teacher)
    assert list(seen) == ["cosine", "centred", "student_norm", "teacher_norm", "teacher_rank"]
    assert all(v.ndim == 0 and v.dtype == torch.float32 for v in seen.values())
    assert not any(v.requires_grad for v in seen.values())
    near = student.bfloat16().float()
    torch.testing.assert_close(seen["cosine"], cosine(near, teacher))
    torch.testing.assert_close(seen["centred"], centred(near, teacher))
    tokens = teacher.double().flatten(0, 1)
    torch.testing.assert_close(seen["teacher_norm"].double(), tokens.square().sum(1).sqrt().mean())
    torch.testing.assert_close(seen["student_norm"], near.norm(dim=-1).mean())


def test_effective_rank_equals_the_participation_ratio_of_the_eigenvalues():
    tokens = torch.randn(50, 8) * torch.linspace(0.1, 3, 8)
    values = torch.linalg.eigvalsh(torch.cov(tokens.double().T))
    expected = values.sum().square() / values.square().sum()
    torch.testing.assert_close(effective_rank(tokens).double(), expected, atol=1e-4, rtol=0)


def test_effective_rank_counts_the_directions_that_are_filled():
    basis = torch.linalg.qr(torch.randn(16, 16))[0]
    for k in (1, 3, 16):
        signs = torch.cat([torch.eye(k), -torch.eye(k)])
        tokens = 5 * signs @ basis[:k] + 100 * torch.randn(16)
        torch.testing.assert_close(effective_rank(tokens).item(), float(k), atol=1e-2, rtol=0)


def test_equal_tokens_fill_none():
    assert effective_rank(torch.ones(10, 4)) == 0


def test_one_image_alone_is_logged_without_an_error():
    one = features(1, 5, 8, seed=1)
    assert statistics(one, one)["centred"] == 0


def test_the_gradient_ratio_is_that_of_the_norms_and_leaves_no_trace():
    frozen, unused = torch.ones(2), torch.ones(2, requires_grad=True)
    a, b = torch.tensor([3.0, 4.0], requires_grad=True), torch.tensor([2.0], requires_grad=True)
    hidden = a * b  # the graph that both share survives
    term, loss = a.detach() @ hidden, 10 * b.sum()
    ratio = gradient_ratio(term, loss, [a, b, frozen, unused])
    expected = torch.tensor([6.0, 8.0, 25.0]).norm() / 10  # a's gradient is b a, b's is a . a
    torch.testing.assert_close(ratio, expected)
    assert all(p.grad is None for p in (a, b, unused)) and not ratio.requires_grad
    (term + loss).backward()
    assert b.grad == 35
    assert gradient_ratio(frozen.sum(), b.sum(), [a, b]) == 0  # adapters in deep blocks alone, say


def test_the_gradient_ratio_of_sharded_parameters_is_refused(tmp_path):
    """Autograd has their gathered copies in its graph: most of the gradients would be nil."""
    from torch.distributed.fsdp import fully_shard

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
        fully_shard(model[0])  # sharded again after its forward pass, as the root is not
        out = fully_shard(model)(torch.ones(2, 4))
        with pytest.raises(ValueError, match="sharded parameters"):
            gradient_ratio(out.sum(), out.square().sum(), model.parameters())
    finally:
        torch.distributed.destroy_process_group()


HEALTHY = {"teacher_rank 2:4": 30.0, "teacher_norm 2:4": 7.0, "grad_ratio": 0.04, "cosine 2:4": 1.0}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, []),  # a cosine of 1 is where training starts, and no alarm
        ({"teacher_rank 2:4": 1.4}, ["teacher_rank 2:4 is 1.40, 30.00 at first"]),
        ({"teacher_rank 2:4": 2.9}, ["the teacher collapses"]),  # below a tenth of its start
        ({"teacher_norm 2:4": 0.05}, ["teacher_norm 2:4 is 5.0e-02, 7.0e+00 at first"]),
        ({"teacher_norm 2:4": 1.0, "teacher_rank 2:4": 4.0}, []),
        ({"grad_ratio": 0.0}, ["grad_ratio is nil"]),
        ({"grad_ratio": float("nan")}, ["not finite: grad_ratio"]),
        ({"grad_ratio": 1e-9, "unit_ratio": 0.2}, []),  # the weight is fading, the term is there
        ({"grad_ratio": 0.04, "unit_ratio": 0.0}, ["unit_ratio is nil"]),
        ({"teacher_rank 2:4": float("nan"), "unit_ratio": float("inf")},
         ["not finite: teacher_rank 2:4, unit_ratio"]),
    ],
)  # fmt: skip
def test_alarms_are_of_a_fall_and_of_a_term_that_moves_nothing(change, said):
    found = alarms(HEALTHY | change, HEALTHY, step=1000)
    assert len(found) == len(said)
    assert all(part in alarm for part, alarm in zip(said, found, strict=True))


def test_a_ratio_of_nil_is_no_alarm_while_blocks_may_still_be_the_identity():
    now = HEALTHY | {"grad_ratio": 0.0}
    assert not alarms(now, now, step=1) and alarms(now, now, step=100)


def test_a_ratio_of_nil_is_no_alarm_at_a_bound_but_one_that_is_not_finite_is():
    nil, broken = HEALTHY | {"grad_ratio": 0.0}, HEALTHY | {"grad_ratio": float("inf")}
    assert not alarms(nil, HEALTHY, step=1000, may_vanish=True)
    assert alarms(broken, HEALTHY, step=1000, may_vanish=True)


def test_padding_is_not_looked_at():
    student, teacher = torch.randn(3, 8, 6), torch.randn(3, 8, 6)
    mask = torch.arange(8)[None] < torch.tensor([8, 5, 3])[:, None]
    clean = statistics(student, teacher, mask)
    student[~mask], teacher[~mask] = 100.0, -100.0
    spoilt = statistics(student, teacher, mask)
    for name, value in clean.items():
        torch.testing.assert_close(spoilt[name], value)
    valid = teacher[mask]
    torch.testing.assert_close(clean["teacher_rank"], effective_rank(valid))
    whole = statistics(student, teacher, torch.ones(3, 8, dtype=torch.bool))
    for name, value in statistics(student, teacher).items():
        torch.testing.assert_close(whole[name], value)
