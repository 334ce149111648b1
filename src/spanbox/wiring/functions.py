"""Functions of the user by their import path."""

import importlib
import sys
from collections.abc import Callable
from hashlib import blake2b
from inspect import getsourcefile
from pathlib import Path
from typing import Any

from spanbox.errors import ConfigError


class UserFunction:
    """A function of the user by its import path.

    Args:
        name: the import path, `module:function`; modules of the working folder are found first.
        option: of the command that took it, for messages.

    Raises:
        ConfigError: there is none.
    """

    def __init__(self, name: str, option: str) -> None:
        self.name = name
        self.function = _imported(name, option)

    @property
    def key(self) -> str:
        """A key that changes with the file of the function."""
        try:
            source = Path(getsourcefile(self.function) or "").read_bytes()
        except (OSError, TypeError):  # built in, or a callable object
            source = b""
        return f"{self.name} {blake2b(source, digest_size=12).hexdigest()}"


def _imported(path: str, option: str) -> Callable[..., Any]:
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"{option}: {path!r} is not an import path; expected module:function")
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
