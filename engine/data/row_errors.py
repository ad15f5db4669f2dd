"""The error that a value of a row raises."""

from engine.data.rows import Effect


class BadValue(Exception):
    """A value of a row that cannot be used: its column, the reason (UPPER_SNAKE), and a message that says how to fix
    it."""

    def __init__(self, column: str, reason: str, message: str, effect: Effect = "refuses") -> None:
        super().__init__(message)
        self.column, self.reason, self.message, self.effect = column, reason, message, effect
