"""Moved to backend/image_files.py."""

from intaglio.backend.image_files import *  # noqa: F403
