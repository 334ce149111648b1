"""Hides a torchvision that cannot be imported, such as a CUDA build beside a CPU build of PyTorch, from transformers.

Installing timm often installs such a build. Transformers finds the package and fails at half of its models ("Could not
import module ..."); without torchvision it uses Pillow, which is enough for spanbox.
"""

import importlib
import sys
from importlib.util import find_spec


def hide_broken_torchvision() -> None:
    """Block the import of torchvision in this process if it fails. Call before the first import of transformers."""
    if sys.modules.get("torchvision", ...) is not ... or find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except Exception:  # whatever a broken build raises: RuntimeError, ImportError, OSError, AttributeError
        sys.modules["torchvision"] = None  # type: ignore[assignment]  # Python's mark of a module that is not installed
        utils = sys.modules.get("transformers.utils.import_utils")
        for name in ("_is_package_available", "is_torchvision_available"):  # they cache their answers
            getattr(getattr(utils, name, None), "cache_clear", lambda: None)()
