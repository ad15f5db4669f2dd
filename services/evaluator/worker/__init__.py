"""The evaluator's child: evaluate (losses of base and tuned model), compare (their answers side by side)."""
