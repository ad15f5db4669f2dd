"""The evaluator's child that generates text: one base model in memory, with the adapters that callers ask for."""
