"""Rows that several tables share; the flags are those of train.py."""

from typing import Any

from .runs import Run


def vanilla(**paper: float) -> Run:
    """Plain SiT, the baseline of every table."""
    return Run("vanilla", {"loss_type": "vanilla"}, paper=paper)


def layer_sync(
    name: str = "layer_sync", *, paper: dict[str, float] | None = None, **flags: Any
) -> Run:
    """LayerSync with the preset's pair and weight where `flags` do not say else."""
    return Run(name, {"loss_type": "layer_sync", **flags}, paper=paper or {})


def pair(student: int, teacher: int, **flags: Any) -> Run:
    """LayerSync between two blocks, counted from 1."""
    name = f"pair-{student}-{teacher}"
    return layer_sync(name, encoder_depth=student, gt_encoder_depth=teacher, **flags)


def dispersive(**paper: float) -> Run:
    return Run("dispersive", {"loss_type": "dispersive"}, paper=paper)


def methods(paper: dict[str, dict[str, float]]) -> list[Run]:
    """The three that the paper compares; its numbers by the rows' names."""
    return [
        vanilla(**paper.get("vanilla", {})),
        dispersive(**paper.get("dispersive", {})),
        layer_sync(paper=paper.get("layer_sync")),
    ]


def method(name: str, **flags: Any) -> Run:
    """Another --loss-type with its authors' settings."""
    return Run(name, {"loss_type": name, **flags})
