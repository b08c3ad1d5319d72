"""Targets: the schema of their files, their reader, their figures in a module."""
