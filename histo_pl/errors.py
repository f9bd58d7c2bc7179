"""Exceptions whose message is for the user."""


class UserError(Exception):
    """A mistake that its user can fix.

    Its message says what happened, what was expected, how to fix it, and what was received. The programs
    print it without a traceback.
    """

    def __str__(self) -> str:
        """Return the message alone.

        A DataLoader worker raises it again with the worker's whole traceback in front of the message.
        """
        return super().__str__().rsplit(f"{type(self).__name__}: ", maxsplit=1)[-1].strip()


class ImageError(UserError):
    """A file that cannot be read as one picture."""


class WriteError(UserError):
    """A file that cannot be written: the disk is full, or the folder is gone or not ours."""
