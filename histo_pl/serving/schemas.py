"""Bodies of the API's answers, as OpenAPI describes them."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from histo_pl.inference import Prediction

EXAMPLE = {
    "file": "tile.png",
    "probability": 0.9312,
    "label": "Malignant",
    "error": None,
    "trained_on": "BreakHis",
    "spread": None,
    "novelty": 0.61,
    "note": None,
    "evidence_map": None,
}


class Row(BaseModel):
    """The answer for one file."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    file: str = Field(description="The file's name, as it was sent.")
    probability: float | None = Field(description="Calibrated probability of malignancy, in [0, 1]; null: no answer.")
    label: str | None = Field(description="Malignant, Benign, 'Unlike training: refer' or 'Uncertain: refer'.")
    error: str | None = Field(description="The reason why there is no answer.")
    trained_on: str = Field(description="The data that trained the model.")
    spread: float | None = Field(description="Standard deviation of the folds' probabilities, in [0, 0.5].")
    novelty: float | None = Field(description="Distance from the training tiles; above 1 the tile is unlike them.")
    note: str | None = Field(description="A reason to doubt the answer.")
    evidence_map: str | None = Field(None, description="With explain=true: the map over the tile, a PNG as data URI.")

    @classmethod
    def of(cls, prediction: Prediction, evidence_map: str | None = None) -> "Row":
        """Make the answer of a prediction."""
        return cls(**prediction.row(), evidence_map=evidence_map)  # pyright: ignore[reportArgumentType]


class Answers(BaseModel):
    """The answers for all files of a request, in the order in which they were sent."""

    predictions: list[Row]


class Refusal(BaseModel):
    """The reason why a request was refused."""

    code: str = Field(examples=["too_many_files"], description="For programs.")
    message: str = Field(examples=["A request may hold 32 files. Send them in several requests."])


class ErrorBody(BaseModel):
    """The body of a refused request."""

    error: Refusal


class Health(BaseModel):
    """A sign of life."""

    status: str = Field(examples=["ok"])


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": description}
    for status, description in {
        400: "The form cannot be read, or holds no file.",
        401: "The token is missing or wrong.",
        403: "Another site's page asks.",
        408: "The upload and its answer took too long.",
        413: "Too many files or bytes.",
        421: "The server was called by another name than its own.",
        415: "The body is no multipart form.",
        429: "Too many requests wait: try again after the seconds of Retry-After.",
    }.items()
}
OF_EVERY_REQUEST: dict[int | str, dict[str, Any]] = {status: REFUSALS[status] for status in (401, 403, 421)}
NO_ANSWER: dict[int | str, dict[str, Any]] = {422: {"model": Answers, "description": "No file has an answer."}}
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["files"],
                    "properties": {"files": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            }
        },
    }
}
