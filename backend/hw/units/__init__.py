"""The units of a chip."""
