"""What is odd in a data set but no mistake: counted, never silent."""

from __future__ import annotations


class CountedWarnings:
    """How often each oddity was met, and where first; one object goes through all steps of a run."""

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}
        self._first: dict[str, str] = {}

    def add(self, what: str, where: object, count: int = 1) -> None:
        """Count an oddity.

        Args:
            what: plural noun with what became of it, such as "sentences without words, skipped".
            where: file with line.
            count: times it was met, at least 0.
        """
        if count:
            self._counts[what] = self._counts.get(what, 0) + count
            self._first.setdefault(what, str(where))

    @property
    def counts(self) -> dict[str, int]:
        """{what: times}, in the order of first sight."""
        return dict(self._counts)

    def lines(self) -> list[str]:
        """One line for each oddity, to be printed."""
        return [f"{count} x {what} (first: {self._first[what]})" for what, count in self._counts.items()]
