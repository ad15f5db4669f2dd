"""The exporter's child: packs the tuned model, verifies that the package loads, and describes its contents."""
