"""Compares the answers and losses of two models on the same rows: metrics, graders, certainty, and the gate."""
