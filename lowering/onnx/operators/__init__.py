"""The table of operators, and the converters of those that stand as one node."""
