"""The exporter's child: export.py is the whole of an export, in time order."""
