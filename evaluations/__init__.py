"""Evaluations: each takes a checkpoint or samples, and leaves a JSON and a picture."""
