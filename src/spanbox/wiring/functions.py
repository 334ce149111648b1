"""Functions of the user by their import path."""

import importlib
import sys
from collections.abc import Callable
from hashlib import blake2b
from inspect import getsourcefile
from pathlib import Path
from typing import Any

from spanbox.errors import ConfigError


def import_function(path: str, option: str) -> Callable[..., Any]:
    """The function of an import path, `module:function`; modules of the working folder are found first.

    Args:
        path: the import path.
        option: of the command that took it, for messages.

    Raises:
        ConfigError: there is none.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"{option}: {path!r} is no import path; expected module:function")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever the user's module raises
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{option}: the module {module_name!r} cannot be imported ({reason})") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigError(f"{option}: {module_name!r} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def function_key(path: str, function: Callable[..., Any]) -> str:
    """A text that changes with the file of the function."""
    try:
        source = Path(getsourcefile(function) or "").read_bytes()
    except (OSError, TypeError):  # built in, or a callable object
        source = b""
    return f"{path} {blake2b(source, digest_size=12).hexdigest()}"
