"""The one exception that a user's input may raise; everything else is our own bug and shows its traceback."""


class UserError(ValueError):
    """Bad input: the message says what was given, what is known and what to do. The command line exits with 2."""


def unknown(kind: str, given: str, known) -> UserError:
    """`UserError` for a name that is not known, with the nearest known one first."""
    import difflib

    names = sorted(map(str, known))
    near = difflib.get_close_matches(given, names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return UserError(f"unknown {kind} {given!r}; {hint}known: {', '.join(names) or 'none'}")
