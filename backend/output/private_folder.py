"""Folders of the user's own, outside of any output: nobody else reads or writes them.

`$XDG_STATE_HOME/intaglio` (`~/.local/state/intaglio`) holds which files were found unchanged,
`$XDG_CACHE_HOME/intaglio` (`~/.cache/intaglio`) compiled code.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

STATE = ("XDG_STATE_HOME", ".local/state")
CACHE = ("XDG_CACHE_HOME", ".cache")
_OTHERS_WRITE = stat.S_IWGRP | stat.S_IWOTH
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_NAME = "intaglio"


class NotPrivate(Exception):
    """A folder cannot be used; says why, to stand after its path."""


def user_folder(kind: tuple[str, str]) -> Path:
    """Where the user keeps files of a kind, `STATE` or `CACHE`; it may not exist.

    Raises:
        NotPrivate: there is no home.
    """
    variable, default = kind
    base = os.environ.get(variable, "")
    # A relative path is to be ignored, says the XDG specification.
    if not base.startswith("/"):
        try:
            base = str(Path.home() / default)
        except RuntimeError as error:
            raise NotPrivate("has no place: the user has no home") from error
    return Path(base) / _NAME


def private_folder(path: Path) -> Path:
    """Makes a folder that is the user's alone, or finds it to be so.

    Raises:
        NotPrivate: it cannot be made, is another's or a link, or others can write into it.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise NotPrivate(f"cannot be made: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode):
        raise NotPrivate("is a link")
    if found.st_uid != os.geteuid():
        raise NotPrivate("belongs to another user")
    if found.st_mode & _OTHERS_WRITE:
        raise NotPrivate("can be written by other users (chmod 700 mends that)")
    if found.st_mode & _OTHERS:
        path.chmod(0o700)
    if not os.access(path, os.W_OK | os.X_OK):
        raise NotPrivate("cannot be written")
    return path
