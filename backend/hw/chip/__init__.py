"""The chip as a whole: its sequencers, its memories, its ports."""
