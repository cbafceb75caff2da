"""Errors that are the user's to mend. Entries turn them into one clear line instead of a traceback."""

import difflib
import os
import sys
from collections.abc import Callable, Iterable
from typing import ParamSpec

P = ParamSpec("P")
AGAIN = "the same command goes on from the last checkpoint"


class UsageError(Exception):
    """Wrong use: a typo, a missing folder, an impossible value. Entries print it as one line and exit 2."""


class RunError(Exception):
    """A run that started and could not go on (a NaN loss, an unreadable image). Entries print it and exit 1.

    ``kind`` says of what kind that is; see smog/failures.py.
    """

    def __init__(self, message: str, kind: str = "code") -> None:
        super().__init__(message)
        self.kind = kind


class BusyError(RunError):
    """Another process works on it. ``certain`` where that one is known to be alive, not only not known to be gone."""

    def __init__(self, message: str, certain: bool) -> None:
        super().__init__(message, "busy")
        self.certain = certain


class StoppedError(SystemExit):
    """A signal asked for it. Not for ``except Exception``: whoever goes on with the next run must stop as well."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(128 + number)  # the shell's code for a process that a signal ended
        self.number, self.message = number, message

    def __str__(self) -> str:
        return self.message


def exit_code(function: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int:
    """Call the body of an entry and return the code to exit with, after a line on standard error where one is due."""
    try:
        return function(*args, **kwargs)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (so that closing at exit finds no broken pipe)
        return 0
    except StoppedError as stopped:
        sys.stderr.write(f"{stopped}\n")  # at once, since all processes of a run say it at the same moment
        return 128 + stopped.number
    except KeyboardInterrupt:
        print(f"stopped; {AGAIN}", file=sys.stderr)
        return 130


def nearest(word: str, known: Iterable[str], most: int = 3) -> str:
    """Return ``"; nearest: a, b"`` for a word not among the known ones, or all when none is near and they are few."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=most, cutoff=0.5)
    if close:
        return f"; nearest: {', '.join(close)}"
    return f"; known: {', '.join(known)}" if len(known) <= 20 else ""
