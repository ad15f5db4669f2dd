"""Recipes: named presets, one TOML file each, read by `engine.config.recipes`."""
