"""Named presets, one TOML file each; `engine.config.recipes` reads them."""
