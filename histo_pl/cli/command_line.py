"""Command lines: values taken as typed, and errors of one line."""

import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from histo_pl.errors import UserError
from histo_pl.signals import catch_stop_signals

CONF = Path(__file__).parents[2] / "conf"  # of a clone; a wheel has none
LITERAL_KEYS = (
    "ckpt",
    "data.cache_dir",
    "data.cases_file",
    "data.exclude",
    "data.group_regex",
    "data.groups_file",
    "data.ignore_class",
    "data.include",
    "data.inspections",
    "data.name",
    "data.negative_class",
    "data.positive_class",
    "data.root",
    "data.split_file",
    "data.suffix",
    "data.table",
    "embeddings.store.folder",
    "img",
    "model.weights",
    "mpp_file",
    "out",
    "resume",
    "run_dir",
)
SPINS = 3000  # tens of microseconds; OpenMP's own 300,000 suit a program that has all cores to itself
COLUMNS = "data.columns."  # a key below this may be new, which Hydra takes with ++ alone
LISTS = tuple(f"data.{name}" for name in ("exclude", "ignore_class", "include", "negative_class", "positive_class"))


def quote_literals(arguments: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Quote the values of path-like keys for Hydra's grammar, in which `,()[]{}=:` and spaces mean something.

    A value that is quoted already, or is null, is left alone, and so is a list in brackets where one may stand. In a
    multirun a comma separates values to sweep over, unless a path of that very name exists. A leading ~ means the home
    folder, as in a shell.

    Args:
        arguments: The command line without the program's name.
        environment: `os.environ`. Lightning starts the other processes of a distributed run with arguments
            that are quoted already, and sets LOCAL_RANK; torchrun sets it too, but passes arguments as typed.

    Returns:
        The arguments for Hydra.
    """
    if "LOCAL_RANK" in environment and "TORCHELASTIC_RUN_ID" not in environment:
        return list(arguments)
    multirun = bool({"-m", "--multirun"} & set(arguments))
    return [_quote_argument(argument, multirun) for argument in arguments]


def _quote_argument(argument: str, multirun: bool) -> str:
    key, equals, value = argument.partition("=")
    is_column = key.startswith(COLUMNS)
    if not equals or not (is_column or key.lstrip("+") in LITERAL_KEYS) or value == "null":
        return argument
    key = f"++{key}" if is_column else key
    exists = os.path.exists(value)  # noqa: PTH110  (Path.exists fails on a name that is too long)
    ends = value[:1] + value[-1:]
    quoted = len(value) > 1 and (ends in ("''", '""') or (ends == "[]" and key in LISTS))
    sweep = multirun and "," in value and not is_column and not key.endswith("group_regex")
    if not exists and (quoted or sweep):
        return f"{key}={value}"
    return f"{key}={quote(value if exists else str(os.path.expanduser(value)))}"  # noqa: PTH111


def quote(value: str) -> str:
    """Write a text as a quoted string of Hydra's grammar.

    Backslashes count double only before a quote or at the end; `${` would begin an interpolation.

    Args:
        value: Any text.

    Returns:
        The text in single quotes, escaped.
    """
    escaped, backslashes = "", 0
    for character in value:
        if character == "'":
            escaped += "\\" * (backslashes + 1)
        escaped += character
        backslashes = backslashes + 1 if character == "\\" else 0
    escaped += "\\" * backslashes
    return "'" + escaped.replace("${", "\\${") + "'"


def prepare_process() -> None:
    """Let this process print any file's name, which need not be Unicode, end in order on a signal, and share cores.

    Call it before PyTorch is imported. GNU's OpenMP, which PyTorch has on Linux, lets a thread that waits for another
    spin for milliseconds, on a core that a reader of tiles could use: a folder's prediction takes 5% longer by it.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    catch_stop_signals()


@contextmanager
def fast_imports() -> Iterator[None]:
    """Import without the garbage collector, now and at the end of the process: it would find nothing in modules.

    Importing PyTorch and Lightning makes a million objects. To look through them takes a second of five, and another
    when the process ends.
    """
    if gc.get_freeze_count():  # a later job of a sweep: everything is imported, and garbage must not be kept
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with the message alone where a person can fix the error; others keep their traceback.

    Raises:
        SystemExit: With the message, exit status 1.
    """
    try:
        yield
    except Exception as error:
        message = message_of(error)
        if message is None:
            raise
        raise SystemExit(message) from None


def message_of(error: BaseException) -> str | None:
    """Write an error for a person who can fix it.

    Args:
        error: Any exception; what it was raised from counts too, as Hydra wraps what a constructor raises.

    Returns:
        One line; None: a fault of the program.
    """
    cause: BaseException | None = error
    seen: list[BaseException] = []  # causes can go round in a circle
    while cause is not None and cause not in seen:
        seen.append(cause)
        if isinstance(cause, UserError):
            return f"Error: {cause}"
        if isinstance(cause, OSError) and cause.strerror:
            return f"Error: The system refused: {cause.strerror}. Received: {_shown(cause.filename)}"
        cause = cause.__cause__
    return None


def _shown(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else "no file's name"
