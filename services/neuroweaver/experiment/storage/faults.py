"""What must go on though the database is away for a while, or one experiment is at fault."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from neuroweaver.mesh.wire.errors import Error

_LOG: Final = logging.getLogger("neuroweaver.experiment")


@contextmanager
def tolerated(what: str, **where: str) -> Iterator[None]:
    """Logs a fault, to be tried again: in one line where the database may be back in a second, else whole."""
    try:
        yield
    except (SQLAlchemyError, Error) as error:
        _LOG.warning(what, extra={"cause": type(error).__name__, **where})
    except Exception:  # noqa: BLE001  # whatever it is, everything else goes on
        _LOG.exception(what, extra=where)
