"""A watch on the levels: a level in which no row has both a positive and a negative teaches the towers nothing.

One caption for all images, one group for all pairs or boxes that are all cut away give a loss of 0 from the first step
to the last, which looks like success.
"""

from collections.abc import Iterable

from spanbox.errors import TrainingError


class NegativesWatch:
    """Finds levels without anything to contrast, over windows of steps.

    Attributes:
        levels: names of the levels of the loss.
        steps: steps watched so far.
    """

    WINDOW = 20  # steps: a level is examined until one of them contrasts something

    def __init__(self, levels: Iterable[str]) -> None:
        self.levels = tuple(levels)
        self.steps = 0
        self._contrasted: set[str] = set()  # levels that contrasted something in the current window
        self._ever: set[str] = set()  # or in any
        self._reported: set[str] = set()

    def unseen(self) -> list[str]:
        """The levels to examine in the coming step."""
        return [name for name in self.levels if name not in self._contrasted]

    def add(self, contrasted: Iterable[str]) -> None:
        """Note the examined levels that had something to contrast."""
        self._contrasted |= set(contrasted)
        self._ever |= self._contrasted

    def at_step_end(self, *, last: bool) -> list[str]:
        """Levels to report, each once: with nothing to contrast in a whole window or, after the last step, ever.

        Raises:
            TrainingError: that is so for every level.
        """
        self.steps += 1
        if self.steps % self.WINDOW and not last:
            return []
        silent = [name for name in self.levels if name not in (self._ever if last else self._contrasted)]
        self._contrasted = set()
        if len(silent) == len(self.levels):
            raise TrainingError(
                f"nothing to contrast: no row of {' and '.join(silent)} had both a positive and a negative, so nothing "
                "is learned. Do all pairs share one text, one group or one entity, or are there no boxes? "
                "`spanbox data check` shows what is in the data."
            )
        new = [name for name in silent if name not in self._reported]
        self._reported |= set(new)
        return new
