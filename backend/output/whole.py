"""Files and folders that appear whole or not at all, however the process ends.

What is being written lies beside its place, as `.NAME.PID.partial`, and is locked as long as its
process lives. A folder takes the place of an earlier one by an exchange, where the file system has
that, so that there is no moment without either; elsewhere by two renames. What a killed process
left is found by its name and by the missing lock: the next command puts an earlier folder back
(`old`), finishes a move that had begun (`new`), and removes the rest.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path

from intaglio.dialects.errors import UserError

_LEFT = re.compile(
    r"\.(?P<name>.+)\.(?P<process>\d+)(?P<number>-\d+)?\.(?P<role>partial|old|new)(?:\.hier)?",
    re.DOTALL,
)
"""`.hier` is a scratch file of Verilator's writer of waveforms."""
_EXCHANGE = 2
"""RENAME_EXCHANGE of renameat2(2)."""
_HERE = -100
"""AT_FDCWD: paths are as for rename(2)."""


@contextmanager
def whole_folder(
    place: Path,
    shown: Path,
    ready: Callable[[], None] = lambda: None,
    hint: str | None = None,
) -> Generator[Path]:
    """A folder to write into, which becomes `place` when nothing is raised.

    Args:
        place: an absolute path without links; a folder there is replaced.
        shown: how errors name it.
        ready: called before the folder is moved to its place; may raise.
        hint: what helps where the folder cannot be made.

    Raises:
        UserError: the folder cannot be made or written.
    """
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial, lock = _claimed(place, Path.mkdir)
    except OSError as error:
        raise UserError(
            f"no folder can be made here: {_reason(place, error)}",
            file=str(shown),
            hint=hint,
        ) from error
    try:
        with _speaking_of(shown, partial):
            yield partial
        ready()
        with _speaking_of(shown, partial):
            _replace(partial, place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        os.close(lock)


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A file to write, which becomes `path` when nothing is raised; a device is written as it is.

    Raises:
        UserError: `path` cannot be written.
    """
    if path.is_dir():
        raise UserError("is a folder, not a file", file=str(path))
    if path.exists() and not path.is_file():
        yield path
        return
    try:
        tidy(path)
        partial, lock = _claimed(path, lambda one: one.touch(exist_ok=False))
    except OSError as error:
        raise UserError(f"cannot be written: {_reason(path, error)}", file=str(path)) from error
    try:
        with _speaking_of(path, partial):
            yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
        os.close(lock)


def check_writable(path: Path) -> None:
    """Whether `whole_file` can write a file; one that is there stays.

    Raises:
        UserError: it cannot.
    """

    class Enough(Exception):
        pass

    with suppress(Enough), whole_file(path):
        raise Enough


@contextmanager
def naming(path: Path) -> Generator[None]:
    """Gives errors of writing a file its name, which those of `write` and `close` have not."""
    try:
        yield
    except OSError as error:
        # A copy that fails names its source first.
        if error.filename is None or error.filename2 is not None:
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: Path, text: str) -> None:
    """Writes a text; errors name the file."""
    with naming(path):
        path.write_text(text, encoding="utf-8")


def remove_folder(folder: Path) -> None:
    """Removes a folder such that no half of it is ever found under its name."""
    places = (_beside(folder, "partial", number) for number in count())
    gone = next(one for one in places if not one.exists())
    folder.rename(gone)
    shutil.rmtree(gone)


# --- what is left behind ------------------------------------------------------------------------


def tidy(path: Path) -> list[str]:
    """Clears away what killed processes left beside a file or folder, and puts back what was there.

    Returns:
        For each thing that was found, what was done with it.
    """
    return _tidied(path.parent, path.name)


def tidy_inside(folder: Path) -> list[str]:
    """`tidy` for everything that lies in a folder."""
    return _tidied(folder, None)


def _tidied(folder: Path, wanted: str | None) -> list[str]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError:
        return []
    groups: dict[tuple[str, str], dict[str, list[Path]]] = {}
    for name in names:
        match = _LEFT.fullmatch(name)
        if match is not None and wanted in (None, match["name"]):
            key = match["name"], match["process"] + (match["number"] or "")
            groups.setdefault(key, {}).setdefault(match["role"], []).append(folder / name)
    said: list[str] = []
    for (name, process), found in groups.items():
        number = int(process.partition("-")[0])
        if not any(_is_held(one, number) for every in found.values() for one in every):
            with suppress(OSError):
                said += _recovered(folder / name, found)
    return said


def _recovered(place: Path, found: dict[str, list[Path]]) -> Iterator[str]:
    """Finishes or undoes one replacement, and removes what is left of it."""
    old, new = found.get("old", []), found.get("new", [])
    if new:
        _move_entries(new[0], place)
        yield f"{place}: its new content was in {new[0].name} and has been put here"
    elif old and not os.path.lexists(place):
        old[0].rename(place)
        yield f"{place}: the earlier one was in {old[0].name} and has been put back"
    elif old and "partial" in found:
        _move_entries(old[0], place)
        yield f"{place}: the earlier content was in {old[0].name} and has been put back"
    for one in (path for every in found.values() for path in every):
        if not os.path.lexists(one):
            continue
        if one.is_dir():
            shutil.rmtree(one, ignore_errors=True)
        else:
            one.unlink(missing_ok=True)
        if one not in (*new, *old):
            yield f"{one}: left by a command that was killed, and removed"


def _is_held(path: Path, process: int) -> bool:
    """Whether someone still works on a file or folder, or it is none of ours."""
    try:
        if os.lstat(path).st_uid != os.geteuid():
            return True
        # A pipe of this name would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        # A file system without locks.
        return _is_alive(process)
    finally:
        os.close(descriptor)
    return False


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        pass
    return True


# --- places -------------------------------------------------------------------------------------


def _beside(path: Path, role: str, number: int = 0) -> Path:
    more = f"-{number}" if number else ""
    return path.with_name(f".{path.name}.{os.getpid()}{more}.{role}")


def _claimed(path: Path, make: Callable[[Path], object]) -> tuple[Path, int]:
    """A new file or folder beside a path, and the descriptor that holds its lock."""
    for number in count():
        partial = _beside(path, "partial", number)
        try:
            make(partial)
        except FileExistsError:
            continue
        descriptor = os.open(partial, os.O_RDONLY)
        try:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            # Until it is locked it looks like something left behind.
            if os.path.samestat(os.fstat(descriptor), partial.stat()):
                return partial, descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise AssertionError


def _reason(path: Path, error: OSError) -> str:
    """Why nothing can be made at a path."""
    nearest = next(parent for parent in path.parents if parent.exists())
    return f"{nearest} is no folder" if not nearest.is_dir() else str(error.strerror or error)


@contextmanager
def _speaking_of(path: Path, partial: Path) -> Generator[None]:
    """Errors of writing `partial` name what it was to become."""
    try:
        yield
    except OSError as error:
        name = error.filename or (partial if error.errno == errno.ENOSPC else "")
        inside = Path(os.fsdecode(name))
        if not inside.is_relative_to(partial):
            raise
        file = path / inside.relative_to(partial)
        raise UserError(f"cannot be written: {error.strerror}", file=str(file)) from error


def _replace(new: Path, place: Path) -> None:
    """Moves a folder to its place; what was there lies at `new` then, or is gone."""
    if not os.path.lexists(place):
        new.rename(place)
    elif _is_stood_in(place):
        _replace_content(new, place)
    elif not _exchange(new, place):
        old = _named_as(new, "old")
        try:
            place.rename(old)
            new.rename(place)
        except BaseException:
            if not place.exists() and old.exists():
                old.rename(place)
            raise
        finally:
            if place.exists():
                shutil.rmtree(old, ignore_errors=True)


def _is_stood_in(place: Path) -> bool:
    """Whether this process works inside a folder, and so does the shell that it came from."""
    try:
        return Path.cwd().is_relative_to(place)
    except OSError:
        return False


def _replace_content(new: Path, place: Path) -> None:
    """Exchanges what is in two folders; the folder at `place` stays the same one.

    Entries of the earlier content go first, and until all are gone the next command brings them
    back. Then `new` is renamed, and from there on the next command finishes the move.
    """
    old, coming = _named_as(new, "old"), _named_as(new, "new")
    try:
        old.mkdir()
        _move_entries(place, old)
        new.rename(coming)
    except BaseException:
        if coming.exists():
            coming.rename(new)
        if old.exists():
            _move_entries(old, place)
            old.rmdir()
        raise
    _move_entries(coming, place)
    coming.rmdir()
    shutil.rmtree(old, ignore_errors=True)


def _named_as(partial: Path, role: str) -> Path:
    return partial.with_name(partial.name.removesuffix("partial") + role)


def _move_entries(source: Path, target: Path) -> None:
    for entry in sorted(source.iterdir()):
        entry.rename(target / entry.name)


def _exchange(one: Path, other: Path) -> bool:
    """Exchanges two paths at once; False where the system cannot."""
    function = _renameat2()
    if function is None:
        return False
    paths = os.fsencode(one), os.fsencode(other)
    return function(_HERE, paths[0], _HERE, paths[1], _EXCHANGE) == 0


@cache
def _renameat2() -> Callable[..., int] | None:
    """The function of the C library, where it has one."""
    try:
        function = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    function.argtypes = [ctypes.c_int, ctypes.c_char_p] * 2 + [ctypes.c_uint]
    return function
