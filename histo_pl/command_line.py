"""What a command line needs beside Hydra: names typed as they are, errors of one line, and sweeps that go on."""

import os
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from histo_pl.errors import UserError
from histo_pl.stopping import catch_stop_signals
from histo_pl.storage import new_folder, replacing_text

FAILED = "failed.txt"  # in a job's folder: its overrides, and why it failed

OmegaConf.register_new_resolver("new_folder", new_folder, use_cache=True, replace=True)

LITERAL_KEYS = (
    "ckpt",
    "data.group_regex",
    "data.groups_file",
    "data.name",
    "data.positive_class",
    "data.root",
    "data.split_file",
    "img",
    "model.weights",
    "out",
    "resume",
)
COLUMNS = "data.columns."  # a key below this may be new, which Hydra takes with ++ alone


def quote_literals(arguments: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Quote the values of path-like keys for Hydra's grammar, in which `,()[]{}=:` and spaces mean something.

    A value that is quoted already, or is null, is left alone. In a multirun a comma separates values to sweep
    over, unless a path of that very name exists. A leading ~ means the home folder, as in a shell.

    Args:
        arguments: The command line without the program's name.
        environment: `os.environ`. Lightning starts the other processes of a distributed run with arguments
            that are quoted already, and sets LOCAL_RANK.

    Returns:
        The arguments for Hydra.
    """
    if "LOCAL_RANK" in environment:
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
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
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


def run_program(main: Callable[[], Any]) -> None:
    """Run one of the programs: its arguments as typed, its errors in one line, ended in order by a signal.

    Args:
        main: What `hydra.main` made.

    Raises:
        SystemExit: With the message of an error, exit status 1.
    """
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be Unicode
        stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    catch_stop_signals()
    sys.argv[1:] = quote_literals(sys.argv[1:], dict(os.environ))
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # errors come here instead of being printed by Hydra
    with one_line_errors():
        main()


@contextmanager
def one_line_errors() -> Iterator[None]:
    """End the program with the message alone where a person can mend the error; others keep their traceback.

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
    """Write what a person can do about an error.

    Args:
        error: Any exception; what it was raised from counts too, as Hydra wraps what a constructor raises.

    Returns:
        One line, or as many as Hydra takes for a mistake in the configuration; None: a fault of the program.
    """
    from hydra.errors import CompactHydraException, InstantiationException

    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return f"Error: {cause}"
        if isinstance(cause, OSError) and cause.strerror:
            return f"Error: The system refused: {cause.strerror}. Received: {_shown(cause.filename)}"
        cause = cause.__cause__
    if isinstance(error, CompactHydraException) and not isinstance(error, InstantiationException):
        return "\n".join(str(one) for one in (error, error.__cause__) if one is not None)
    return None


def _shown(name: object) -> str:
    return os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else "no file's name"


@contextmanager
def job() -> Iterator[None]:
    """Run what a program does; in a sweep a job that fails says so, notes it in its folder, and the others go on.

    Raises:
        SystemExit: It failed, outside of a sweep.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        with one_line_errors():
            yield
        return
    note = Path(HydraConfig.get().runtime.output_dir, FAILED)
    note.unlink(missing_ok=True)
    try:
        yield
    except (Exception, SystemExit) as error:
        message = message_of(error)
        if message is None:
            message = f"{type(error).__name__}: {error}"
            traceback.print_exc()
        else:
            print(message, file=sys.stderr, flush=True)
        with replacing_text(note) as stream:
            stream.write(f"{' '.join(HydraConfig.get().overrides.task)}\n{' '.join(message.split())}\n")


def command_line(*changes: str) -> str | None:
    """Write the command line of this run again, with some keys changed.

    Args:
        *changes: Such as `resume=outputs/DAY/TIME/last.ckpt`; the value is taken literally.

    Returns:
        A line for a shell, of a sweep that of this job alone; None where no program runs but Python code.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized():
        return None
    config = HydraConfig.get()
    changed = {change.partition("=")[0] for change in changes}
    kept = [one for one in config.overrides.task if one.lstrip("+").partition("=")[0] not in changed]
    if config.mode == RunMode.MULTIRUN:
        kept.append("hydra.mode=RUN")  # a configuration may ask for a sweep
    else:
        kept += [one for one in config.overrides.hydra if not one.startswith("hydra.mode=")]
    program = os.path.relpath(sys.argv[0])
    return shlex.join(["python", program, *map(_as_typed, kept), *changes])


def _as_typed(override: str) -> str:
    """Undo `quote_literals`, where it was at work."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    key, _, value = override.partition("=")
    if key.lstrip("+") not in LITERAL_KEYS and not key.lstrip("+").startswith(COLUMNS):
        return override
    if not value.startswith("'"):
        return override
    literal = OmegaConf.create({"value": OverridesParser.create().parse_override(override).value()}).value
    return f"{key}={literal}"
