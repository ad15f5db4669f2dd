"""What a training will need: memory, time and money, from a model's configuration alone. No weights, no torch."""
