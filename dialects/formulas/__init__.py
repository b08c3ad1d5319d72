"""Formulas: each operator's arithmetic once, read by numpy, by LLVM and by wires."""
