"""The service for programs: POST /classify, GET /health, GET /model, and what they are at /docs."""

from __future__ import annotations

import asyncio
import base64
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, Field
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartParser
from starlette.requests import ClientDisconnect

import flowers_pl
from flowers_pl.core.text import printable
from flowers_pl.serving.engine import Answer, Engine
from flowers_pl.serving.guard import RETRY, RequestLimits
from flowers_pl.serving.refusals import Refusal

FILES = {"type": "array", "items": {"type": "string", "format": "binary"}}
FORM = {"type": "object", "required": ["files"], "properties": {"files": FILES}}
BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": FORM}}}}
MAX_NAME = 255  # letters of a file's name that are repeated in the answer


class Result(BaseModel):
    """What is said of one picture."""

    file: str = Field(description="The file's name, as it was sent.")
    label: str | None = Field(description="The likeliest class; null where the picture cannot be read.")
    probabilities: dict[str, float] = Field(description="Of each class, in descending order.")
    unlike: float | None = Field(description="How unlike the training photos; null where that is not known.")
    unknown: bool | None = Field(description="Whether it probably shows none of the classes; null likewise.")
    heatmap: str | None = Field(description="With ?heatmap=true: base64 of a PNG for the predicted class.")
    error: str | None = Field(description="Why the picture cannot be read, else null.")


class Results(BaseModel):
    """The pictures of a request, in the order sent."""

    results: list[Result]


class Error(BaseModel):
    """Why a request is refused, in one sentence."""

    error: str


class Health(BaseModel):
    """Whether pictures can be classified: "ok" or "loading"."""

    status: str


class Model(BaseModel):
    """What is known of the model."""

    name: str = Field(description="Of its run, or of its file.")
    classes: list[str]
    image_size: int = Field(description="Pixels a side that photos are resized to.")
    accuracy: float | None = Field(description="Share of photos classified correctly; null if not measured.")
    judged_on: str | None = Field(description="On which photos that was measured.")
    version: str = Field(description="Of flowers_pl.")


class Loaded:
    """The engine, once the model has been loaded."""

    engine: Engine | None = None

    def get(self) -> Engine:
        """Return the engine.

        Raises:
            Refusal: the model is still being loaded.
        """
        if self.engine is None:
            raise Refusal(503, "The model is being loaded; ask again in a second.", RETRY)
        return self.engine


REFUSALS: dict[int | str, dict[str, Any]] = {
    413: {"model": Error, "description": "Too many bytes"},
    429: {"model": Error, "description": "Too many requests from this address under way"},
    503: {"model": Error, "description": "Too many requests under way, or the model is being loaded"},
}


def make_service(loaded: Loaded, limits: RequestLimits) -> FastAPI:
    """Make the application; its requests must come through a `Guard`.

    Args:
        loaded: gets the engine when the model has been loaded.
        limits: how many files a request may have.
    """
    app = FastAPIOffline(
        redoc_url=None,
        title="flowers_pl",
        version=flowers_pl.__version__,
        description="Classify pictures.",
        swagger_ui_parameters={"validatorUrl": None},
    )

    @app.post(
        "/classify",
        response_model=Results,
        responses=REFUSALS | {422: {"model": Results, "description": "No picture could be read"}},
        openapi_extra=BODY,
    )
    async def classify(
        request: Request, heatmap: Annotated[bool, Query(description="Add heat maps.")] = False
    ) -> Response:
        """Classify one or many pictures, sent as parts of a multipart form that are called `files`."""
        engine = loaded.get()
        try:
            files = await _files_of(request, limits)
        except ClientDisconnect:
            return Response(status_code=499)  # nobody reads it
        waiting = [engine.submit(data, heatmap) for _, data in files]
        names = [name for name, _ in files]
        del files
        answers = [await asyncio.wrap_future(one) for one in waiting]
        results = [_result(name, answer) for name, answer in zip(names, answers, strict=True)]
        read = any(answer.error is None for answer in answers)
        return JSONResponse({"results": results}, 200 if read else 422)

    @app.get("/health", response_model=Health, responses={503: {"model": Health}})
    async def health() -> Response:
        """Say whether pictures can be classified."""
        ready = loaded.engine is not None
        return JSONResponse({"status": "ok" if ready else "loading"}, 200 if ready else 503)

    @app.get("/model", response_model=Model, responses={503: {"model": Error}})
    async def model() -> Response:
        """Say which model it is, how good it is, and on what it was judged."""
        served = loaded.get().model
        return JSONResponse(
            {
                "name": printable(served.name),
                "classes": served.classes,
                "image_size": served.image_size,
                "accuracy": served.judgement.accuracy,
                "judged_on": served.judgement.judged_on,
                "version": flowers_pl.__version__,
            }
        )

    @app.exception_handler(Refusal)
    async def refuse(_: Request, refusal: Refusal) -> Response:
        return JSONResponse({"error": refusal.sentence}, refusal.status, dict(refusal.headers))

    @app.exception_handler(RequestValidationError)
    async def not_valid(_: Request, __: RequestValidationError) -> Response:
        return JSONResponse({"error": "heatmap must be true or false."}, 422)

    @app.exception_handler(HTTPException)
    async def not_there(_: Request, error: HTTPException) -> Response:
        sentence = f"{error.detail}; /docs lists what there is."
        return JSONResponse({"error": sentence}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> Response:
        return JSONResponse({"error": "The server has failed at this; its log says how."}, 500)

    return app


async def _files_of(request: Request, limits: RequestLimits) -> list[tuple[str, bytes]]:
    """Read names and bytes of a form's files, in memory.

    Raises:
        Refusal: the body is no such form, or has too many files.
        ClientDisconnect: the client has gone.
    """
    parser = MultiPartParser(
        request.headers,
        request.stream(),
        max_files=limits.max_files + 1,
        max_fields=limits.max_files,
        max_part_size=2**16,
    )
    parser.spool_max_size = limits.max_bytes + 1  # so that nothing is written to the disk
    try:
        form = await parser.parse()
    except ClientDisconnect:
        raise
    except Exception:  # the parser and its codecs raise almost anything
        raise Refusal(
            422, f"The body is not a multipart form with 1 to {limits.max_files} parts called 'files'."
        ) from None
    files = [one for one in form.getlist("files") if isinstance(one, UploadFile)]
    if not files:
        raise Refusal(422, "The form has no file in a part called 'files'.")
    if len(files) > limits.max_files:
        raise Refusal(422, f"A request may have at most {limits.max_files} files; send fewer.")
    return [(printable(one.filename or "")[:MAX_NAME], await one.read()) for one in files]


def _result(name: str, answer: Answer) -> dict[str, Any]:
    heat = None if answer.heat is None else base64.b64encode(answer.heat).decode()
    return {
        "file": name,
        "label": answer.label,
        "probabilities": answer.probabilities,
        "unlike": answer.unlike,
        "unknown": answer.unknown,
        "heatmap": heat,
        "error": answer.error,
    }
