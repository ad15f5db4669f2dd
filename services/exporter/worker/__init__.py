"""The exporter's child: export (the whole of an export, in time order), and what it is made of."""
