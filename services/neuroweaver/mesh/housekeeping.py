"""What a service clears away by itself, every hour."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from logging import Logger
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.mesh.errors import Error

PERIOD_S: Final = 3600.0

Chores = Mapping[str, Callable[[], Awaitable[int]]]
"""By the name of what they clear away; each gives how many."""


async def keep_house(log: Logger, chores: Callable[[], Chores], *, period_s: float = PERIOD_S) -> None:
    """Does every chore, again and again. What fails is left for the next time: the database may be back.

    chores: asked anew each time, since what is old enough depends on when that is.
    """
    while True:
        for name, chore in chores().items():
            try:
                if done := await chore():
                    log.info("cleared away", extra={"what": name, "count": done})
            except (SQLAlchemyError, OSError, Error) as error:
                log.warning("not cleared away", extra={"what": name, "cause": type(error).__name__})
        await asyncio.sleep(period_s)
