"""Errors: what a user can cause ends in one sentence on standard error, and exit status 2."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from pyro_tvae.files import NO_ROOM
from pyro_tvae.memory import no_memory
from pyro_tvae.wording import in_words

from ..interruption import NOTHING, goes_on_with, interruption_of

__all__ = [
    "ConfigurationError",
    "LeftOut",
    "failing",
    "first_cause",
    "plain_errors",
    "sentence",
    "stumbled",
    "transient",
]


class ConfigurationError(ValueError):
    """A configuration that cannot be, explained in one sentence."""


class LeftOut(Exception):
    """All is written but for what a cause has kept from being made that may pass; the same command makes it."""


PLAIN = (
    ValueError,
    TypeError,
    LookupError,
    OSError,
    FloatingPointError,  # a fit that is no longer finite
    LeftOut,
    InstantiationException,
    OmegaConfBaseException,
)


OF_WORKERS = ("DataLoader worker", "DataLoader timed out")  # how torch begins to say so


def sentence(error: BaseException) -> str | None:
    """What a user is told of an error that he can cause, in one sentence; None for one that he cannot."""
    cause = first_cause(error)
    if no_memory(cause):
        return (
            "there is not enough memory for this; lower what is made at once, such as data.batch_size, "
            f"fit.num_particles or evaluation.num_particles ({_one_line(cause)})."
        )
    if isinstance(cause, ConnectionResetError) or any(text in str(cause) for text in OF_WORKERS):
        return (
            "a process that reads the data was ended, or hands on nothing, as where the system wants memory; the same "
            f"command goes on, and with a lower data.num_workers needs less ({_one_line(cause)})."
        )
    if not isinstance(error, PLAIN):
        return None
    if isinstance(cause, MissingMandatoryValue):
        name = str(cause.full_key)
        cause = ConfigurationError(f"{name} has no default and was not given; add {name}=… to the command.")
    return _one_line(cause)


def first_cause(error: BaseException) -> BaseException:
    """What Hydra stopped at when it built something."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def stumbled(error: BaseException) -> bool:
    """Whether a library, or a line of this project that expects nothing of the kind, met what it cannot take.

    What a line here raises is a sentence for the user; files and memory have words of their own.
    """
    if isinstance(error, InstantiationException | OmegaConfBaseException | OSError | ImportError) or no_memory(error):
        return False
    frames = [*traceback.walk_tb(error.__traceback__)]
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return not (frames[-1][0].f_globals.get("__name__", "").startswith("pyro_tvae") and line.startswith("raise"))


def transient(error: BaseException) -> bool:
    """Whether what an error came from may pass, so that the same may end well later: memory, disks, and other files."""
    if isinstance(error, OSError):
        return True
    cause: BaseException | None = error
    while cause is not None:  # libraries have words of their own for it
        full = getattr(cause, "errno", None) in NO_ROOM or any(os.strerror(number) in str(cause) for number in NO_ROOM)
        if full or no_memory(cause):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def _one_line(error: BaseException) -> str:
    said = ValueError(error.args[0]) if isinstance(error, KeyError) and error.args else error
    return in_words(said) or type(error).__name__


@contextmanager
def failing(tell: Callable[[str], object]) -> Iterator[None]:
    """Tell in a sentence why one of several works failed, so that the others go on; interruptions pass.

    A traceback is shown of what no user can cause, and of all with HYDRA_FULL_ERROR=1 in the environment.
    """
    try:
        yield
        return
    except Exception as error:
        if (asked := interruption_of(error)) is not None:
            raise asked from None
        said = sentence(error)
        if said is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        said = said or f"{type(error).__name__}: {' '.join(str(error).split())}"
    except SystemExit as error:
        if (asked := interruption_of(error)) is not None:
            raise asked from None
        said = f"it ended itself with status {error.code}."
    tell(said)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what a user can cause into one sentence on standard error and exit status 2.

    HYDRA_FULL_ERROR=1 in the environment shows the traceback instead.
    """
    try:
        with goes_on_with(NOTHING):
            yield
    except Exception as error:
        said = sentence(error)
        if said is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"pyro-tvae: {said}", file=sys.stderr)
        raise SystemExit(2) from None
