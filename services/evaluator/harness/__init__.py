"""The process that runs lm-evaluation-harness on both models of an evaluation."""
