"""Moved to backend/program.py."""

from intaglio.backend.program import *  # noqa: F403
