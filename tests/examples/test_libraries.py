"""The table of docs/plug-in.md, row by row: what its columns say is what works."""

import re
from typing import NamedTuple

import pytest
import torch
from diffusers import DiTTransformer2DModel
from libraries import BATCH, CASES, Case

from layersync import LayerSync, find_blocks, record_blocks
from tests.commands import ROOT


class Row(NamedTuple):
    name: str
    blocks: list[str]
    returns: str
    tokens: str  # the code of `tokens=`, or nothing


def table() -> list[Row]:
    page = (ROOT / "docs/plug-in.md").read_text()
    cells = [line.strip("|").split("|") for line in page.splitlines() if "`" in line]
    rows = [cell for cell in cells if len(cell) == 4 and cell[1].strip() != "blocks"]
    return [
        Row(code(name)[0], code(blocks), returns.strip(), "".join(code(tokens)))
        for name, blocks, returns, tokens in rows
    ]


def code(cell: str) -> list[str]:
    return re.findall("`([^`]+)`", cell)


@pytest.fixture(params=table(), ids=lambda row: row.name)
def row(request) -> Row:
    return request.param


@pytest.fixture
def case(row, perturb) -> Case:
    torch.manual_seed(0)
    found = CASES[row.name]()
    perturb(found.model).train()
    return found


SYNC = LayerSync(pairs=[(2, 5)])


def record(row: Row, case: Case):
    tokens = eval(row.tokens, {"n": case.tokens, "model": case.model}) if row.tokens else None
    return record_blocks(find_blocks(case.model, *row.blocks), SYNC.blocks, tokens)


def forward(case: Case) -> torch.Tensor:
    torch.manual_seed(1)
    output = case.model(**case.inputs)
    return output if isinstance(output, torch.Tensor) else output.sample


def test_the_table_is_what_is_tested():
    assert {row.name for row in table()} == set(CASES)


def test_the_tokens_are_those_of_the_image(row, case):
    with record(row, case) as blocks:
        forward(case)
    shapes = {tuple(features.shape[:2]) for features in blocks.values()}
    assert set(blocks) == {2, 5} and shapes == {(BATCH, case.tokens)}


def test_what_a_block_returns_is_never_guessed(row, case):
    """Where `tokens=` chooses from a tuple, leaving it out is an error and not the text."""
    plain = row._replace(tokens="")
    if "output[0]" in row.tokens or "output[1]" in row.tokens:
        with pytest.raises(ValueError, match="block 2 returns 2 .*tokens="), record(plain, case):
            forward(case)
    else:
        with record(plain, case) as blocks:
            forward(case)
        assert blocks.keys() == {2, 5}


def test_the_term_moves_the_student_and_nothing_above_it(row, case):
    with record(row, case) as blocks:
        forward(case)
    SYNC(blocks).backward()
    moved = [
        any(p.grad is not None and p.grad.any() for p in block.parameters())
        for block in find_blocks(case.model, *row.blocks)
    ]
    assert moved == [True, True] + [False] * (len(moved) - 2)


CHECKPOINTING = ("enable_gradient_checkpointing", "set_grad_checkpointing")


def test_checkpointing_changes_no_gradient_and_records_nothing_more(row, case):
    switches = [name for name in CHECKPOINTING if hasattr(case.model, name)]
    if not switches:
        pytest.skip(f"{row.name} has no checkpointing of its own")
    runs = []
    first = find_blocks(case.model, *row.blocks)[0]
    first.register_forward_pre_hook(lambda *_: runs.append(1))

    def gradients() -> dict[str, torch.Tensor]:
        case.model.zero_grad()
        with record(row, case) as blocks:
            output = forward(case)
        before = dict(blocks)
        (output.square().mean() + SYNC(blocks)).backward()
        assert all(blocks[number] is before[number] for number in before)
        return {name: p.grad for name, p in case.model.named_parameters() if p.grad is not None}

    plain = gradients()
    assert len(runs) == 1
    getattr(case.model, switches[0])()
    checkpointed = gradients()
    assert len(runs) == 3  # forward, and again in backward: it is on
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        assert torch.equal(checkpointed[name], gradient), name


def test_blocks_that_diffusers_compiles_are_recorded_again_and_again(perturb):
    model, inputs, _ = CASES["WanTransformer3DModel"]()
    perturb(model)
    with record_blocks(model.blocks, SYNC.blocks) as eager:
        model(**inputs)
    model.compile_repeated_blocks(backend="aot_eager", fullgraph=True)
    for _ in range(2):
        with record_blocks(model.blocks, SYNC.blocks) as compiled:
            model(**inputs)
        for number in SYNC.blocks:
            torch.testing.assert_close(compiled[number], eager[number])
        before = dict(compiled)
        model(**inputs)  # outside: nothing more is recorded
        assert all(compiled[number] is before[number] for number in before)


def test_the_code_of_the_page_runs():
    class Denoiser(DiTTransformer2DModel):
        def forward(self, x):
            return super().forward(**x).sample

    dit = CASES["DiTTransformer2DModel"]()
    names = dict(
        model=Denoiser.from_config(dit.model.config), criterion=torch.nn.functional.mse_loss,
        step=0, x=dit.inputs, y=torch.zeros(BATCH, 1, 8, 8),
    )  # fmt: skip
    page = (ROOT / "docs/plug-in.md").read_text()
    for part in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(part, names)
    names["total"].backward()
    assert -1 <= names["seen"]["centred"] <= 1 and 0 < names["ratio"] < 10
