"""Keys of the config that earlier versions had under other names, so that their runs still load."""

from typing import Any, NamedTuple


class Renamed(NamedTuple):
    """A key of an earlier version.

    Attributes:
        key: dotted.
        now: dotted, in the same section.
        values: today's value for each of then; others stay, and are refused with the other unknown keys.
    """

    key: str
    now: str
    values: dict[bool, str]


RENAMED = (
    *(
        Renamed(f"loss.{level}.learnable", f"loss.{level}.temperature_schedule", {True: "learnable", False: "fixed"})
        for level in ("coarse", "fine")
    ),
    Renamed("data.augment.image.keep_box", "data.augment.image.keep_boxes", {True: "one", False: "none"}),
)


def rename_earlier_keys(tree: dict[str, Any]) -> None:
    """Give the keys of earlier versions their names of today, in place. A key that is there under both names stays."""
    for key, now, values in RENAMED:
        *sections, name = key.split(".")
        node: Any = tree
        for section in sections:
            node = node.get(section) if isinstance(node, dict) else None
        if not isinstance(node, dict) or name not in node:
            continue
        new, old = now.split(".")[-1], node[name]
        if isinstance(old, bool) and old in values and new not in node:
            del node[name]
            node[new] = values[old]
