"""The process that pushes a package to the hub."""
