"""Runs the complete system on one machine, as separate processes."""
