"""The keys of a data set on the command line of python -m histo_pl, as the scripts take them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf

from histo_pl.cli.command_line import CONF, quote_literals
from histo_pl.cli.mistakes import reason_of, similar_key
from histo_pl.data.source import TileSource
from histo_pl.errors import UserError

OF_MODULE = ("name", "batch_size", "on_error", "blank", "inspections", "mpp", "num_workers")  # beside the source's


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Tell folders from keys of the data.

    Args:
        arguments: Such as `tiles`, `data=breakhis` and `data.magnification=200`.

    Returns:
        The folders and the keys; what exists under that very name is a folder.
    """
    keys = [one for one in arguments if one.startswith(("data.", "data=")) and "=" in one and not Path(one).exists()]
    return [one for one in arguments if one not in keys], keys


def folder_and_options(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """Return the one folder of a command line, and the options of its data module.

    Args:
        arguments: A folder, and keys such as `data.name=Lyon`, as typed.

    Raises:
        UserError: There is no folder or several, or a key is not as expected.
    """
    folders, keys = split_arguments(arguments)
    if len(folders) != 1:
        raise UserError(f"The tiles are in one folder. Expected one, and keys data.KEY=VALUE. Received: {arguments}")
    return folders[0], source_options(keys, OF_MODULE)


def source_options(keys: Sequence[str], also: Sequence[str] = ()) -> dict[str, Any]:
    r"""Compose `conf/data` with the keys of a command line.

    Args:
        keys: Such as `data=breakhis` and `data.group_regex=patient\d+`, as typed.
        also: Further arguments of the data module to return.

    Returns:
        The attributes of `TileSource` that are set, beside the root.

    Raises:
        UserError: A key is unknown, or there is no `conf/`.
    """
    if not keys:
        return {}
    if not CONF.is_dir():
        raise UserError(
            f"Keys of the data are those of conf/, which a clone has and a wheel has not. Received: {keys[0]}"
        )
    with initialize_config_dir(str(CONF), version_base="1.3"):
        try:
            config = compose("evaluate", quote_literals(keys, {}))
        except HydraException as error:
            known = [f"data.{name}" for name in (*TileSource.__dataclass_fields__, *OF_MODULE)]
            unknown = [key for key in keys if key.partition("=")[0] not in (*known, "data") and "columns" not in key]
            near = similar_key(unknown[0].partition("=")[0], known) if unknown else None
            reason = f"did you mean {near}?" if near else reason_of(error)
            raise UserError(f"A key of the data is not as expected ({reason}). Received: {' '.join(keys)}") from error
    data: Any = OmegaConf.to_container(config.data, resolve=True)
    names = [*(name for name in TileSource.__dataclass_fields__ if name != "root"), *also]
    return {name: data[name] for name in names if data.get(name) is not None}
