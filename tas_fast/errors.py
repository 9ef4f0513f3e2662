"""Errors whose text is written for the person at the keyboard.

A program prints them as one line and exits with `exit_code`; everything else that escapes is a bug and keeps its
traceback.
"""


class UserError(Exception):
    """Something outside the program is wrong (data, files, numbers). The message names the value and the remedy."""

    exit_code = 1


class UsageError(UserError):
    """The command line or configuration cannot be what the user meant."""

    exit_code = 2
