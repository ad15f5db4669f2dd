"""Stage 4's child: packs the tuned model, checks that the package loads, and says what is in it."""
