"""The levels of a result: tiles, and cases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Levels:
    """The results that a reader looks at: of the test or, where there is none, of the validation.

    Attributes:
        name: Test or Validation.
        tiles: As `Predictions.summary` returns it.
        cases: The same by case; None where there is no such result.
    """

    name: str
    tiles: Mapping[str, Any]
    cases: Mapping[str, Any] | None

    @classmethod
    def of(cls, results: Mapping[str, Any]) -> "Levels":
        """Choose them from the contents of results.json."""
        if results["test"] is not None:
            return cls("Test", results["test"], results.get("test_by_case"))
        return cls("Validation", results["validation_only"], results["validation_only_by_case"])
