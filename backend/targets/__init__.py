"""Target descriptions: one TOML file a chip."""
