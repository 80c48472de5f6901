"""Checkpoints as networks to sample from and to look at, and what is drawn from them."""

from .opened import Network, Opened, domain_of, open_checkpoint, precision_of, with_data

__all__ = ["Network", "Opened", "domain_of", "open_checkpoint", "precision_of", "with_data"]
