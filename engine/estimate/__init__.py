"""Estimates of a training's memory, time and cost from a model's configuration alone; no weights, no torch."""
