"""The one exception for mistakes that a user can mend."""

from __future__ import annotations

from functools import partial
from typing import Any


class UserError(ValueError):
    """A mistake in a user's input, said in one line: what was got, what was expected, how to mend it.

    Command-line entry points print the message without a traceback and exit with status 2 (see `kebiolm.console`).

    Args:
        where: the thing that is wrong, such as a file path with its line, or a setting's name.
        got: what was found there.
        expected: what should have been there.
        mend: what the user can do, as an imperative ("run `kebiolm kb build` again").
    """

    def __init__(self, where: object, *, got: object, expected: object, mend: str) -> None:
        self.where, self.got, self.expected, self.mend = str(where), str(got), str(expected), mend
        self.was_said = False
        """Whether the user was told already, because more had to be done before the command could end."""
        text = f"{self.where}: got {self.got}; expected {self.expected}; {self.mend}"
        super().__init__(" ".join(text.split()))

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception's own way to be pickled knows no keyword-only arguments; workers must be able to raise this too.
        return partial(UserError, got=self.got, expected=self.expected, mend=self.mend), (self.where,)
