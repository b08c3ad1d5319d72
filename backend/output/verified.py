"""Files of an output folder, compared with what the compile wrote before they are used.

A folder may come from somebody else, and any file in it may have been edited. Each is hashed once
and compared with the manifest; then its size, times and inode are kept in a private folder of the
user, and as long as they stay the file is not hashed again. The manifest itself is no witness
against whoever wrote it: what is verified is that the folder is whole and as its compile left it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from intaglio.backend.output.output import MANIFEST, inside, read_manifest, sha256_of, write_json
from intaglio.backend.output.private_folder import STATE, NotPrivate, private_folder, user_folder
from intaglio.backend.output.whole import whole_file
from intaglio.dialects.errors import UserError
from intaglio.dialects.json_file import JSONFile

SCHEMA = 1
_FOLDER = "verified"
_KEPT = 512
"""Records that are kept, a file for each output folder; the oldest go."""

Explain = Callable[[str], str]


class OutputFiles:
    """The files of an output folder.

    Args:
        folder: the output folder.
        trust_edited: go on with files that are not what the compile wrote.
        again: hash all files, whatever is known of them.

    Attributes:
        edited: names of files that are not what the compile wrote, as far as they were asked for.
    """

    def __init__(self, folder: Path, *, trust_edited: bool = False, again: bool = False) -> None:
        self.folder = folder
        self.trust_edited = trust_edited
        self.edited: list[str] = []
        self._sound: set[str] = set()
        self._again = again

    @cached_property
    def manifest(self) -> JSONFile:
        """See `read_manifest`."""
        return read_manifest(self.folder)

    @property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of each file by its name, as the manifest has it."""
        parts = (self.manifest["inputs"], self.manifest["outputs"])
        return {name: one.text() for part in parts for name, one in part.items()}

    def below(self, folder: str) -> list[str]:
        """Names of the files that are in a folder, or should be."""
        there = (path for path in (self.folder / folder).rglob("*") if not path.is_dir())
        found = {path.relative_to(self.folder).as_posix() for path in there}
        return sorted(found | {name for name in self.digests if name.startswith(f"{folder}/")})

    def verify_all(self) -> None:
        """`verify` of every file of the manifest."""
        self.verify(self.digests)

    def verify(self, names: Iterable[str], explain: Explain = lambda name: "") -> None:
        """Whether files are what the compile wrote; those that are not there are none.

        Args:
            names: relative to the folder.
            explain: says more of a file that is not, to stand in the middle of the error.

        Raises:
            UserError: one is not, and edited files are not trusted; or leads out of the folder.
        """
        known = self._record
        changed = False
        for name in dict.fromkeys(names):
            if name in self._sound or name in self.edited:
                continue
            path = inside(self.folder, name, MANIFEST)
            if not path.exists():
                continue
            digest = self.digests.get(name)
            now = _traits(path)
            if digest is not None and known.get(name) == now:
                self._sound.add(name)
            elif digest is not None and sha256_of(path) == digest:
                self._sound.add(name)
                known[name] = now
                changed = True
            else:
                self._refuse(name, path, digest, explain)
        if changed:
            self._keep(known)

    def _refuse(self, name: str, path: Path, digest: str | None, explain: Explain) -> None:
        self.edited.append(name)
        if self.trust_edited:
            return
        if digest is None:
            what = f"is not of this compile: {MANIFEST} does not name it"
        else:
            what = (
                f"has other bytes than the compile wrote{explain(name)}: its SHA-256 is not that "
                f"of {MANIFEST}"
            )
        raise UserError(
            what,
            file=str(path),
            hint="compile the model again, or go on with edited files by --trust-edited",
        )

    def note_all(self) -> None:
        """Keeps that all files are as the manifest says; for whoever has just written them."""
        there = [name for name in self.digests if (self.folder / name).exists()]
        self._keep({name: _traits(self.folder / name) for name in there})

    def add(self, names: Iterable[str]) -> None:
        """Takes files that were written after the compile into the manifest."""
        known = dict(self._record)
        digests = {name: sha256_of(self.folder / name) for name in names}
        outputs = {name: one.text() for name, one in self.manifest["outputs"].items()} | digests
        manifest = {name: one.value for name, one in self.manifest.items()}
        manifest["outputs"] = dict(sorted(outputs.items()))
        write_json(self.folder / MANIFEST, manifest)
        for of_old_manifest in ("manifest", "_identity", "_record"):
            self.__dict__.pop(of_old_manifest, None)
        self._sound |= digests.keys()
        self.edited = [name for name in self.edited if name not in digests]
        self._keep(known | {name: _traits(self.folder / name) for name in digests})

    # Records

    @cached_property
    def _place(self) -> Path | None:
        """The file of what is known of this folder."""
        with suppress(NotPrivate):
            private_folder(user_folder(STATE))
            folder = private_folder(user_folder(STATE) / _FOLDER)
            real = os.path.realpath(self.folder)
            return folder / f"{hashlib.sha256(os.fsencode(real)).hexdigest()[:32]}.json"
        return None

    @cached_property
    def _identity(self) -> str:
        return sha256_of(self.folder / MANIFEST)

    @cached_property
    def _record(self) -> dict[str, list[int]]:
        """For each file its traits when it was last found unchanged."""
        if self._place is None or self._again:
            return {}
        try:
            content = json.loads(self._place.read_text())
            if content["schema"] == SCHEMA and content["manifest"] == self._identity:
                return dict(content["files"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return {}

    def _keep(self, known: Mapping[str, list[int]]) -> None:
        if self._place is None:
            return
        content = {"schema": SCHEMA, "manifest": self._identity, "files": known}
        # What cannot be kept is hashed again.
        with suppress(OSError, UserError):
            is_new = not self._place.exists()
            with whole_file(self._place) as partial:
                partial.write_text(json.dumps(content))
            if is_new:
                _forget_oldest(self._place.parent)


def _traits(path: Path) -> list[int]:
    """What changes when a file does: size, times of its content and of its inode, and the inode."""
    found = path.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev]


def _forget_oldest(folder: Path) -> None:
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    for path in files[:-_KEPT]:
        path.unlink(missing_ok=True)
