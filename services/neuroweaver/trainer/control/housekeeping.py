"""What the Trainer drops by itself, every hour."""

from __future__ import annotations

import asyncio
import logging
import shutil
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final

from neuroweaver.mesh.handlers import housekeeping
from neuroweaver.mesh.handlers.housekeeping import Chores
from neuroweaver.trainer.storage import retention
from neuroweaver.trainer.storage.store import Store
from neuroweaver.trainer.storage.tables import JOBS

_LOG: Final = logging.getLogger("neuroweaver.trainer")

# Beside the folders of jobs, none of which can begin with a dot.
DROPPED: Final = ".dropped"


async def keep_house(store: Store, jobs_folder: Path, kept: timedelta) -> None:
    """Until cancelled. kept: for how long the traces of a job that has ended are left."""
    await housekeeping.keep_house(
        _LOG,
        store.database,
        lambda now: chores(store, jobs_folder, now - kept),
        times=(JOBS.c.create_time, JOBS.c.end_time),
        clock=store.clock,
    )


def chores(store: Store, jobs_folder: Path, before: datetime) -> Chores:
    """Of jobs that ended before a moment; what they registered is in the Registry, and stays."""
    transact = store.database.transact
    return {
        "events": lambda: transact(partial(retention.drop_events, before=before)),
        "log lines": lambda: transact(partial(retention.drop_lines, before=before)),
        "job folders": lambda: drop_folders(store, jobs_folder, before),
    }


async def drop_folders(store: Store, jobs_folder: Path, before: datetime) -> int:
    """The folders of jobs that ended before a moment. Returns the number dropped.

    Such a job can still be resumed: it begins with its first stage.
    """
    async with store.database.read() as connection:
        names = await retention.old_folders(connection, before)
    present = await asyncio.to_thread(lambda: [name for name in names if (jobs_folder / name).exists()])
    dropped = 0
    for name in present:
        # Moved at once and deleted at leisure: a job that is resumed meanwhile finds all of it or nothing.
        set_aside = partial(asyncio.to_thread, _set_aside, jobs_folder, name)
        drop = partial(retention.while_ended, output_dir=name, before=before, act=set_aside)
        try:
            dropped += await store.database.transact(drop)
        except OSError as error:
            _LOG.warning("not dropped", extra={"what": "job folder", "path": name, "cause": error.strerror})
    await asyncio.to_thread(_empty, jobs_folder / DROPPED)
    return dropped


def _set_aside(jobs_folder: Path, name: str) -> None:
    """Does nothing where it was done before."""
    target = jobs_folder / DROPPED / name.replace("/", "~")
    _empty(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if (jobs_folder / name).exists():
        (jobs_folder / name).rename(target)


def _empty(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)
