"""The errors that people see: what is wrong, where, and what to do about it."""

from pathlib import Path


class MegatronSynthError(Exception):
    """Base of every error that is shown as one message, without a traceback.

    Args:
        what: What is wrong, in one sentence, with the numbers that matter.
        where: The file, key or step that it was found in.
        fix: What the reader can do now.
    """

    exit_status = 1

    def __init__(
        self, what: str, *, where: str | Path | None = None, fix: str | None = None
    ) -> None:
        self.what = what
        self.where = None if where is None else str(where)
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        advice = f"\n  {self.fix}" if self.fix else ""
        return f"{place}{self.what}{advice}"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle by fields, so that the error survives a process boundary."""
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(
    kind: type[MegatronSynthError], what: str, where: str | None, fix: str | None
) -> MegatronSynthError:
    return kind(what, where=where, fix=fix)


class UserError(MegatronSynthError):
    """The input was wrong: exit status 2."""

    exit_status = 2


class ConfigError(UserError):
    """A config is wrong: an unknown key, a wrong type, values that contradict each other."""


class DataError(UserError):
    """Data is wrong: a file is missing, empty, unreadable, or too small for what is asked."""


class RunError(MegatronSynthError):
    """The input was right, but the work failed: a full disk, a dead engine. Exit status 1."""
