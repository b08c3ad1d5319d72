"""Adapters: their files, their slots, their budget."""
