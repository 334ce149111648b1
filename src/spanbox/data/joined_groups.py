"""Groups of pairs that are one, since they share an image: for parts of a manifest, its folds and its repair."""

from typing import Generic, TypeVar

Group = TypeVar("Group", int, str)


class JoinedGroups(Generic[Group]):
    """Which groups are one: each set of them is known by its first."""

    def __init__(self) -> None:
        self._earlier: dict[Group, Group] = {}  # of each group but the first ones

    def first(self, group: Group) -> Group:
        """The first of the groups that a group is joined to; itself where there are none."""
        passed = []
        while group in self._earlier:
            passed.append(group)
            group = self._earlier[group]
        self._earlier.update(dict.fromkeys(passed, group))  # so that no way gets long
        return group

    def join(self, one: Group, other: Group) -> None:
        """Make two groups one, known by the first of `one`."""
        first, second = self.first(one), self.first(other)
        if first != second:
            self._earlier[second] = first

    def others(self) -> list[Group]:
        """The groups that are joined to an earlier one."""
        return list(self._earlier)
