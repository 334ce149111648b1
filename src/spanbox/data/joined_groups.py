"""Union of groups of pairs that share an image: for parts of a manifest, its folds and its repair."""

from typing import Generic, TypeVar

Group = TypeVar("Group", int, str)


class JoinedGroups(Generic[Group]):
    """Disjoint sets of groups; the first group of each set represents it (union-find)."""

    def __init__(self) -> None:
        self._earlier: dict[Group, Group] = {}  # of each group but the first ones

    def first(self, group: Group) -> Group:
        """The representative of a group's set; the group itself if it was never joined."""
        passed = []
        while group in self._earlier:
            passed.append(group)
            group = self._earlier[group]
        self._earlier.update(dict.fromkeys(passed, group))  # path compression
        return group

    def join(self, one: Group, other: Group) -> None:
        """Join the sets of two groups; the representative is that of `one`."""
        first, second = self.first(one), self.first(other)
        if first != second:
            self._earlier[second] = first

    def others(self) -> list[Group]:
        """The groups that are joined to another one and do not represent their set."""
        return list(self._earlier)
