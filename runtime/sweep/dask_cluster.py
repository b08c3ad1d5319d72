"""A cluster that evaluates a sweep, and what its workers keep and run; needs the extra `sweep`."""

from __future__ import annotations

import gc
import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from intaglio.backend.stages import Options
from intaglio.dialects.errors import UserError
from intaglio.runtime.sweep.evaluate import evaluate
from intaglio.runtime.sweep.points import Asked
from intaglio.runtime.sweep.rows import Found, Module
from intaglio.runtime.sweep.version import code_digest
from intaglio.runtime.what_if import WhatIf

distributed: Module = import_module("distributed")
"""By its name, so that types of what may not be installed are nobody's concern."""
CONNECT_SECONDS = 10


class Subject(distributed.WorkerPlugin):
    """The model, as it was read in one way; set up again on a worker that takes another's place."""

    idempotent = True

    def __init__(self, name: str, what_if: WhatIf) -> None:
        self.name, self.what_if = f"intaglio-{name}", what_if

    def setup(self, worker: Module) -> None:
        """Keeps the model where `evaluate_there` finds it."""
        _kept(worker)[self.name] = self.what_if
        # What is there by now stays: looking through it for garbage would find none.
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)

    def teardown(self, worker: Module) -> None:
        """Lets go of it."""
        _kept(worker).pop(self.name, None)


def _kept(worker: Module) -> dict[str, WhatIf]:
    if not hasattr(worker, "intaglio"):
        worker.intaglio = dict[str, WhatIf]()
    return worker.intaglio


def evaluate_there(name: str, options: Options, asked: Asked) -> Found:
    """On a worker: the figures of a point, of the model that a `Subject` of this name brought."""
    what_if = _kept(distributed.get_worker())[f"intaglio-{name}"]
    try:
        return evaluate(what_if, options, asked)
    finally:
        # Modules are circles: what a point leaves would wait for many others until it is looked
        # for. Nothing else is looked through, as what stays is frozen.
        _ = gc.collect()


@contextmanager
def cluster(scheduler: str | None, workers: int) -> Iterator[Module]:
    """A client of a user's cluster, or of one on this machine that ends with it.

    Args:
        scheduler: the user's, by its address.
        workers: processes of one on this machine.

    Raises:
        UserError: nobody answers there, or what does is another version.
    """
    # Workers that are ended on purpose are no news.
    logging.getLogger("distributed").setLevel(logging.ERROR)
    if scheduler is not None:
        try:
            client = distributed.Client(scheduler, timeout=CONNECT_SECONDS, set_as_default=False)
        except (OSError, ValueError) as error:
            raise UserError(
                f"--scheduler {scheduler}: no scheduler of Dask answers there",
                hint="`dask scheduler` says its address, for example tcp://host:8786",
            ) from error
        with client:
            _same_code(client, scheduler)
            yield client
        return
    # Stacks that workers note a hundred times a second take time, and memory that grows.
    quiet = import_module("dask").config.set({"distributed.worker.profile.enabled": False})
    with _without_interrupts(), quiet:
        local = distributed.LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            # Any port: the usual one may be taken by another sweep.
            dashboard_address="127.0.0.1:0",
            # It would look at pages that processes share.
            memory_limit=0,
            silence_logs=logging.ERROR,
        )
    with local, distributed.Client(local, set_as_default=False) as client:
        yield client


def _same_code(client: Module, scheduler: str) -> None:
    """Refuses workers of another version, whose figures would be others."""
    if not client.nthreads():
        raise UserError(
            f"--scheduler {scheduler}: it has no workers", hint=f"dask worker {scheduler}"
        )
    try:
        found = client.run(code_digest)
    except Exception as error:
        raise UserError(
            f"--scheduler {scheduler}: its workers cannot run this version of intaglio: {error}",
            hint="they need the same intaglio, with the extra `sweep`",
        ) from error
    others = [worker for worker, digest in found.items() if digest != code_digest()]
    if others:
        raise UserError(
            f"--scheduler {scheduler}: {', '.join(others)} have another version of intaglio",
            hint="install the same one there",
        )


@contextmanager
def _without_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile do not hear Ctrl-C, which is for this one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
