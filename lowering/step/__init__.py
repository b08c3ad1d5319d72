"""The step of a token, from float operators to integers: passes on the rom dialect."""
