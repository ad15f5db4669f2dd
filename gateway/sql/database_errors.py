"""SQL's errors as answers: the one place where an outage of the database becomes UNAVAILABLE."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from chassis.errors import InvalidArgument, Unavailable

# character_not_in_repertoire, untranslatable_character
_UNSTORABLE_TEXT = frozenset({"22021", "22P05"})
# Classes of PostgreSQL's states: connection, resources, operator's intervention, rolled back for concurrency.
_AWAY_STATES = frozenset({"08", "53", "57", "40"})
_AWAY_CODES = frozenset(
    {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN}
)


class DatabaseUnavailable(Unavailable):
    """The database is away, full, or locked by somebody else. Whether a COMMIT went through may be unknown, so what
    is repeated must be idempotent; everything that decides here is."""


@contextmanager
def translate_errors() -> Iterator[None]:
    """Around a look or a transaction. PostgreSQL stores no NUL characters; SQLite does: ids and names with one come
    from callers."""
    try:
        yield
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") in _UNSTORABLE_TEXT:
            raise InvalidArgument("NUL_CHARACTER", "A text of the request contains a NUL character.") from error
        if error.connection_invalidated or _is_outage(error.orig):
            raise _unavailable(error.orig) from error
        raise
    except sqlite3.OperationalError as error:
        if _is_outage(error):
            raise _unavailable(error) from error
        raise
    except (PoolTimeout, OSError) as error:
        # Names that cannot be resolved, and several addresses of which none answers, are no ConnectionError.
        raise _unavailable(error) from error


def _is_outage(error: BaseException | None) -> bool:
    state = getattr(error, "sqlstate", None) or ""
    # The low byte is the error, the others say more about it.
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    return state[:2] in _AWAY_STATES or code in _AWAY_CODES


def _unavailable(error: BaseException | None) -> DatabaseUnavailable:
    cause = str(error).strip().partition("\n")[0] or type(error).__name__
    return DatabaseUnavailable("DATABASE_UNAVAILABLE", f"The database is unavailable ({cause}); try again.")
