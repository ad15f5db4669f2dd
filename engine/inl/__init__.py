"""INL language models: causal language models without attention, whose blocks integrate a state."""
