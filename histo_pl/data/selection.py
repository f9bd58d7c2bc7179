"""Selection of files by their relative paths."""

import re
from collections.abc import Callable, Sequence

from histo_pl.errors import UserError

_PARTS = re.compile(r"\*\*/|\*\*|\*|\?|\[[!^]?\]?[^\]]*\]|[^*?\[]+|\[")


def as_list(value: object) -> list[str]:
    """Take one text, or several, as a configuration gives them; None: none.

    Args:
        value: A text, a number (a class folder may be called 1), a sequence of them, or None.
    """
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, Sequence) and not isinstance(value, str) else [str(value)]


def path_filter(include: object = None, exclude: object = None) -> Callable[[str], bool]:
    """Make the rule of the files that are taken: `data.include` and `data.exclude`.

    Args:
        include: One pattern or several, of which a path must match one; None: every path is taken.
        exclude: One pattern or several, of which a path must match none.

    Returns:
        Tells of a path with forward slashes, relative to the root, if it is taken. `*` and `?` stand for characters
        other than `/`, `**` for any, `[a-c]` for one of some.

    Raises:
        UserError: A pattern is not valid.
    """
    wanted, unwanted = ([_compile(pattern) for pattern in as_list(patterns)] for patterns in (include, exclude))

    def is_taken(path: str) -> bool:
        if wanted and not any(pattern.fullmatch(path) for pattern in wanted):
            return False
        return not any(pattern.fullmatch(path) for pattern in unwanted)

    return is_taken


def unmatched_patterns(patterns: Sequence[str], paths: Sequence[str]) -> list[str]:
    """List the patterns that match no path.

    Args:
        patterns: See `path_filter`.
        paths: With forward slashes, relative to the root.
    """
    return [one for one in patterns if not any(map(_compile(one).fullmatch, paths))]


def _compile(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile("".join(_translate(part) for part in _PARTS.findall(pattern)), re.DOTALL)
    except re.error as error:
        raise UserError(
            f"data.include or data.exclude is no valid pattern ({error}). Expected one such as '**/200X/**'. "
            f"Received: {pattern}"
        ) from error


def _translate(part: str) -> str:
    """Write a part of a pattern as a regular expression."""
    wildcards = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    if part in wildcards:
        return wildcards[part]
    if part.startswith("[") and len(part) > 1:
        inside = part[1:-1].replace("\\", "\\\\")
        return f"[^{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]"
    return re.escape(part)
