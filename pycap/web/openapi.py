"""The service for programs: its OpenAPI 3.1 document."""

from __future__ import annotations

from typing import Any

from pycap import __version__
from pycap.web.decoding import FORMATS
from pycap.web.uploads import FRAME_BYTES

#: Why a request for captions may be refused.
REFUSALS = {
    400: "Malformed: the form, or an image that is corrupt or cut short.",
    408: "The request's body came too slowly.",
    411: "The request has no body, or does not say how long it is.",
    413: "The request or the file has too many bytes, or the image too many pixels.",
    415: "The request is no multipart form, or the file no image of a known format.",
    422: "The form lacks the image or has a field too many, or beam_size is out of range.",
    500: "The model failed; the service's log says why.",
    503: "As many requests as can be taken are in hand, or the service is shutting down, or its model has stopped.",
    504: "There was no caption in time.",
}
_COMES_AGAIN = {
    "Retry-After": {
        "description": "Seconds after which to try again, from the rate at which requests are answered; missing where the "
        "model has stopped.",
        "schema": {"type": "integer", "minimum": 1},
    }
}


def document(beam_size: int, max_beam_size: int, max_bytes: int, max_pixels: int) -> dict[str, Any]:
    """The document of a service with these limits."""
    beams = {
        "type": "integer",
        "minimum": 1,
        "maximum": max_beam_size,
        "default": beam_size,
        "description": "How many captions are followed word by word, and at most found; 1 is greedy. In the form or in the "
        "address, not in both.",
    }
    form = {
        "type": "object",
        "required": ["image"],
        "additionalProperties": False,
        "properties": {
            "image": {
                "type": "string",
                "contentMediaType": "application/octet-stream",
                "description": f"An image file of at most {max_bytes} bytes and {max_pixels} pixels: {', '.join(FORMATS)}. "
                f"The rest of the form may take {FRAME_BYTES} bytes.",
            },
            "beam_size": beams,
        },
    }
    predict = {
        "summary": "Captions of an image, the most probable first",
        "operationId": "predict",
        "parameters": [{"name": "beam_size", "in": "query", "schema": beams}],
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": form,
                    "encoding": {"image": {"contentType": ", ".join(FORMATS.values())}},
                }
            },
        },
        "responses": {
            "200": _answer("The captions.", "Captions"),
            **{
                str(status): _answer(why, "Error") | ({"headers": _COMES_AGAIN} if status in (503, 504) else {})
                for status, why in REFUSALS.items()
            },
        },
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "pycap serve", "description": "Captions of images.", "version": __version__},
        "paths": {
            "/model/predict": {"post": predict},
            "/model/metadata": _get(
                "metadata", "Which model this is, and what it takes", _answer("The model.", "Model")
            ),
            "/health": _get(
                "health",
                "Whether requests for captions are taken",
                _answer("They are.", "Health"),
                {"503": _answer("The service is shutting down, or its model has stopped.", "Error")},
            ),
            "/metrics": _get("metrics", "Counters, for Prometheus", _content("Prometheus' text.", "text/plain")),
            "/examples": _get("examples", "Pictures to try it with", _answer("Their names and paths.", "Examples")),
            "/examples/{number}": _get(
                "example",
                "One of the pictures",
                _content("The picture.", "image/*"),
                {"404": _answer("There is none of this number.", "Error")},
                [{"name": "number", "in": "path", "required": True, "schema": {"type": "integer", "minimum": 0}}],
            ),
        },
        "components": {"schemas": _SCHEMAS},
    }


def _get(
    name: str, summary: str, answer: dict[str, Any], refusals: dict[str, Any] | None = None, parameters: Any = None
) -> dict[str, Any]:
    told = {"summary": summary, "operationId": name, "responses": {"200": answer, **(refusals or {})}}
    return {"get": told | ({"parameters": parameters} if parameters else {})}


def _answer(description: str, schema: str) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content}


def _content(description: str, media_type: str) -> dict[str, Any]:
    return {"description": description, "content": {media_type: {"schema": {"type": "string"}}}}


def _object(required: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(required), "properties": required, "additionalProperties": False}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT: dict[str, Any] = {"type": "string"}
_COUNT: dict[str, Any] = {"type": "integer", "minimum": 1}
_MILLISECONDS: dict[str, Any] = {"type": "number", "minimum": 0}

_SCHEMAS = {
    "Captions": _object(
        {
            "status": {"const": "ok"},
            "predictions": _list(
                _object(
                    {
                        "index": {"type": "string", "pattern": "^[0-9]+$", "description": "0 is the most probable."},
                        "caption": _TEXT,
                        "probability": {
                            "type": "number",
                            "minimum": 0,
                            "maximum": 1,
                            "description": "Of the caption, its end included.",
                        },
                    }
                )
            ),
            "model": _TEXT,
            "batch": _COUNT | {"description": "How many images the model was given at once, this one among them."},
            "time": _object(
                {
                    "received_ms": _MILLISECONDS | {"description": "Until the request's body had come."},
                    "decoded_ms": _MILLISECONDS | {"description": "Waiting for a decoder, and decoding."},
                    "queued_ms": _MILLISECONDS | {"description": "Waiting for the model."},
                    "model_ms": _MILLISECONDS | {"description": "The model, for the whole batch."},
                    "total_ms": _MILLISECONDS,
                }
            ),
        }
    ),
    "Error": _object(
        {"status": {"const": "error"}, "message": _TEXT | {"description": "Why, with the value and the limit."}}
    ),
    "Health": _object({"status": {"const": "ok"}}),
    "Model": _object(
        {
            "name": _TEXT,
            "checkpoints": _list(_TEXT | {"description": "SHA-256 of weights, vocabulary and preparation of images."}),
            "version": _TEXT | {"description": "Of pycap."},
            "architectures": _list(_TEXT),
            "vocabulary": _COUNT | {"description": "Words that it knows."},
            "image_size": _COUNT | {"description": "Pixels a side that the network sees."},
            "precision": {"enum": ["fp32", "tf32", "bf16"]},
            "device": {"enum": ["cpu", "cuda"]},
            "max_length": _COUNT | {"description": "Words of a caption."},
            "limits": _object(
                {
                    "beam_size": _COUNT | {"description": "Of a request that names none."},
                    "max_beam_size": _COUNT,
                    "max_batch": _COUNT | {"description": "Images that the model is given at once."},
                    "queue": _COUNT | {"description": "Requests in hand."},
                    "max_bytes": _COUNT,
                    "max_pixels": _COUNT,
                    "timeout_s": {"type": "number", "exclusiveMinimum": 0},
                }
            ),
            "formats": _list({"enum": list(FORMATS.values())}),
        }
    ),
    "Examples": _list(_object({"name": _TEXT, "image": _TEXT})),
}
