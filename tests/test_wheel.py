"""What `pip install .` installs: the package layersync, which needs torch and nothing else."""

import re
import subprocess
import sys
import zipfile
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import pytest

import layersync
from tests.commands import ROOT

PIP = [sys.executable, "-m", "pip"]
# What the pages take as given: a model of somebody, and a step of its training.
PREPARED = """
import torch
from torch import nn

class Model(nn.Module):
    def __init__(self):
        super().__init__()
        layer = lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.blocks = self.transformer_blocks = nn.ModuleList(layer() for _ in range(12))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x

model, criterion, step = Model(), nn.MSELoss(), 0
x = y = torch.randn(2, 5, 16)
"""
CHECKED = """
import sys

assert loss.isfinite() and all(p.grad is not None for p in model.parameters())
try:
    import numpy
except ImportError:
    print(sys.modules["layersync"].__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    (source / "layersync").mkdir()
    for path in (ROOT / "layersync").iterdir():
        if path.is_file():
            (source / "layersync" / path.name).write_bytes(path.read_bytes())
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(out), str(source)]
    subprocess.run([*PIP, *build], check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_pip_install_brings_the_method_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA")))
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"layersync"}
    assert "layersync/py.typed" in names
    required = [line for line in metadata.decode().splitlines() if line.startswith("Requires-Dist")]
    assert [line for line in required if "extra ==" not in line] == ["Requires-Dist: torch>=2.11"]


def test_the_five_lines_of_the_readme_run_where_torch_alone_is_installed(wheel, tmp_path):
    site = tmp_path / "site"
    install = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run([*PIP, *install], check=True, capture_output=True)
    for needed in needs_of("torch"):
        for top in {file.parts[0] for file in needed.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(needed.locate_file(top))
    (five,) = re.findall(r"```python\n(.*?record_blocks.*?)```", readme(), re.DOTALL)
    code = f"import sys; sys.path.append({str(site)!r})\n{PREPARED}{five}{CHECKED}"
    alone = [sys.executable, "-I", "-S", "-c", code]  # -S: what else is installed is not seen
    done = subprocess.run(alone, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(site)


def readme() -> str:
    return (ROOT / "README.md").read_text()


def needs_of(name: str) -> list[Distribution]:
    """A distribution that is installed here, and all that it requires."""
    found, left = {}, [name]
    while left:
        name = left.pop()
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        asked = [line for line in found[name].requires or () if "extra ==" not in line]
        left += {re.match(r"[\w.-]+", line)[0] for line in asked} - found.keys()
    return list(found.values())


def test_the_version_is_the_same_everywhere():
    said = {
        "pyproject.toml": r'^version = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## (\S+)",  # the newest
    }
    for name, pattern in said.items():
        found = re.search(pattern, (ROOT / name).read_text(), re.MULTILINE)
        assert found and found[1] == layersync.__version__, name
