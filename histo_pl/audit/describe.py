"""Findings of an audit in words."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def describe(findings: Mapping[str, Any]) -> list[str]:
    """Write the findings for a person.

    Args:
        findings: The contents of audit.json.

    Returns:
        Lines of text.
    """
    exact, copies = findings["exact_copies"], findings["copies"]
    altered = "not looked for (--exact-only)"
    if copies is not None:
        altered = _counted_groups(copies)
    parts, cases = findings["parts"], findings["cases"]
    known = f"{cases}, {findings['mixed_cases']} of them with tiles of several classes"
    divided = "unknown" if cases is None else _some(list(findings["cases_across_parts"]))
    unsplit = "not checked: no train and test, no --split-file" if len(parts) < 2 else ""  # noqa: PLR2004
    lines = [
        f"{findings['tiles']} tiles: {_counted(findings['classes'])}",
        f"  cases                 {'unknown (--group-regex)' if cases is None else known}",
        f"  unreadable            {_some(findings['unreadable'])}",
        f"  hardly any tissue     {_some(findings['blank'])}",
        f"  grey                  {_some(findings['grey'])}",
        f"  exact copies          {_counted_groups(exact)}",
        f"  copies, altered too   {altered}",
        f"  conflicting labels    {_some(_pairs(findings['conflicting_labels']))}",
        f"  copies across parts   {unsplit or _some(_pairs(findings['copies_across_parts']))}",
        f"  cases across parts    {unsplit or divided}",
    ]
    for name, counts in findings["storage"].items():
        by_class = "; ".join(f"{class_name}: {_counted(count)}" for class_name, count in counts.items())
        lines.append(f"  classes differ in {name}: {by_class}")
    colour = findings["colour_only"]
    if colour is None:
        lines.append("  class from colour     not measurable: it takes two classes of at least two cases each")
    else:
        low, high = colour["interval"]
        interval = "" if low is None else f" (95% interval {low:.3f} to {high:.3f})"
        lines.append(f"  class from colour     AUROC {colour['auroc']:.3f}{interval}; .5 would be chance")
    return lines


def _counted_groups(copies: Mapping[str, int]) -> str:
    if not copies["groups"]:
        return "none"
    return f"{copies['tiles']} tiles in {copies['groups']} groups: {copies['surplus']} are surplus"


def _pairs(groups: Sequence[Sequence[str]]) -> list[str]:
    return [" and ".join(paths[:2]) for paths in groups]


def _some(names: Sequence[str]) -> str:
    return "none" if not names else f"{len(names)}, such as {names[0]}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} of {value}" for value, count in counts.items())


def advice(findings: Mapping[str, Any], out: Path) -> list[str]:
    """Name the written files, and what to do next.

    Args:
        findings: The contents of audit.json.
        out: The folder of the files.

    Returns:
        Lines of text.
    """
    lines = [f"Written: {out / 'audit.json'}, groups.csv and flagged.csv."]
    if (findings["copies"] or findings["exact_copies"])["groups"]:
        lines.append(f"To keep copies on one side of the split add data.groups_file={out / 'groups.csv'} to train.py.")
    if findings["copies_across_parts"]:
        lines.append("Copies on both sides of a split must go first: take one of each out, or give data.split_file=.")
        lines.append(
            "train and test share images: results on this test set are optimistically biased, whatever the model."
        )
    return lines
