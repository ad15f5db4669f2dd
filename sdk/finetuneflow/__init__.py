"""Client of FineTuneFlow."""
