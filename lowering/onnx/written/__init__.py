"""Operators that exporters write out in small nodes, followed part by part."""
