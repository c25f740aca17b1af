"""The one exception that stands for a mistake of the user's: command lines print it as a single line."""


class UserError(ValueError):
    """A wrong input (file, key, value, path), said in one sentence that names it and what is allowed."""
