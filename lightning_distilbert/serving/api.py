"""What a request may say, and how a worker answers it.

LitServe and FastAPI read the annotations of the requests as they are: this file does without their postponed form.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi.responses import JSONResponse
from litserve import LitAPI
from pydantic import BaseModel, ConfigDict, Field

from lightning_distilbert.deploy.manifest import is_artefact, read_manifest, runs_alone
from lightning_distilbert.errors import DistillationError

REFUSED = 422  # what FastAPI answers to a request of the wrong form


class Body(BaseModel):
    """A request: what to answer, one or many at once."""

    model_config = ConfigDict(extra="forbid")


class Question(Body):
    """A question, and the text to find its answer in."""

    question: str
    context: str


class Candidate(Body):
    """A query, and a document that may answer it."""

    query: str
    document: str


class Texts(Body):
    """Texts, or pairs of texts."""

    inputs: Annotated[list[str | tuple[str, str]], Field(min_length=1)]


class Sentences(Body):
    """Texts, or sentences as lists of words."""

    inputs: Annotated[list[str | list[str]], Field(min_length=1)]


class Questions(Body):
    """Questions with their contexts."""

    inputs: Annotated[list[Question], Field(min_length=1)]


class Candidates(Body):
    """Queries with documents."""

    inputs: Annotated[list[Candidate], Field(min_length=1)]


class StudentAPI(LitAPI):
    """Answers ``{"inputs": [...]}`` with ``{"predictions": [...]}``, as ``predict`` of the same folder does.

    It is LitServe's: it may stand in a ``LitServer`` beside others, and a subclass may change a part of it. The model
    is loaded by each worker.

    Args:
        folder: The folder of a saved student, or of an artefact of any format. ONNX is run without torch.
        batch_size: Texts in a batch, of those in one request and of requests that are answered together.
        threads: Threads of one call; None leaves it to the runtime.
        options: LitServe's own: ``max_batch_size``, how many requests are answered together; ``batch_timeout``, how
            long the first of them waits for others, in seconds; ``api_path``.

    Raises:
        ValueError: If LitServe refuses its options.
    """

    example: Any = "warm up"

    def __init__(self, folder: str | Path, batch_size: int = 32, threads: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.folder, self.batch_size, self.threads = str(folder), batch_size, threads
        self.model: Any = None

    def setup(self, device: str) -> None:
        """Load the model in a worker, and let it answer once, so that the first request does not wait for that.

        Args:
            device: The worker's device.
        """
        self.model = load_model(self.folder, device, self.threads)
        with contextlib.suppress(DistillationError):  # such as a text without a mask token
            self.model([self.example], 1)

    def decode_request(self, request: Texts) -> list[Any]:
        """Return the inputs of a request as ``predict`` takes them."""
        return list(request.inputs)

    def predict(self, x: list[Any], **kwargs: Any) -> list[Any]:
        """Answer one request, or with ``max_batch_size`` above 1 several, all their inputs together.

        Args:
            x: The inputs of a request, or of each request.
            kwargs: LitServe's context, which is not looked at.
        """
        requests = x if self.max_batch_size > 1 else [x]
        try:
            found = iter(self.model([text for inputs in requests for text in inputs], self.batch_size))
            answers = [[next(found) for _ in inputs] for inputs in requests]
        except DistillationError:  # of one request: the others are not to blame
            answers = [self._alone(inputs) for inputs in requests]
        return answers if self.max_batch_size > 1 else answers[0]

    def _alone(self, inputs: Sequence[Any]) -> Any:
        try:
            return self.model(inputs, self.batch_size)
        except DistillationError as error:
            return JSONResponse({"detail": str(error)}, status_code=REFUSED)

    def encode_response(self, output: Any, **kwargs: Any) -> Any:
        """Return what is sent.

        Args:
            output: The answers, or what says why there are none.
            kwargs: LitServe's context, which is not looked at.
        """
        return output if isinstance(output, JSONResponse) else {"predictions": output}


class SentenceAPI(StudentAPI):
    """For entities and slots."""

    def decode_request(self, request: Sentences) -> list[Any]:  # type: ignore[override]
        """Return the inputs of a request as ``predict`` takes them."""
        return list(request.inputs)


class QuestionAPI(StudentAPI):
    """For question answering."""

    example = ("who", "me")

    def decode_request(self, request: Questions) -> list[Any]:  # type: ignore[override]
        """Return the inputs of a request as ``predict`` takes them."""
        return [(item.question, item.context) for item in request.inputs]


class CandidateAPI(StudentAPI):
    """For cross-encoders."""

    example = ("query", "document")

    def decode_request(self, request: Candidates) -> list[Any]:  # type: ignore[override]
        """Return the inputs of a request as ``predict`` takes them."""
        return [(item.query, item.document) for item in request.inputs]


APIS: dict[str, type[StudentAPI]] = {
    "TokenClassification": SentenceAPI,
    "QuestionAnswering": QuestionAPI,
    "Reranking": CandidateAPI,
}


def load_model(folder: str | Path, device: str, threads: int | None = None) -> Any:
    """Return a function of inputs and a batch size that answers as a folder's ``predict`` does.

    Args:
        folder: The folder of a saved student or of an artefact.
        device: Where a student computes; an artefact computes where its runtime does.
        threads: Threads of one call; None leaves it to the runtime.

    Raises:
        DistillationError: If the folder holds neither.
    """
    if is_artefact(Path(folder).expanduser()):
        if runs_alone(read_manifest(folder, verify=False)):
            from lightning_distilbert.deploy import runtime

            return runtime.load(folder, threads).predict
        from lightning_distilbert.deploy import load_artefact

        return load_artefact(folder, threads).predict
    import torch

    from lightning_distilbert.precision import auto_precision
    from lightning_distilbert.saved import load

    if threads is not None:
        torch.set_num_threads(threads)
    module, mixed = load(folder, device), auto_precision() == "bf16-mixed"

    def predict(inputs: Sequence[Any], batch_size: int) -> list[Any]:
        with torch.autocast(module.device.type, torch.bfloat16, enabled=mixed):
            return module.predict(inputs, batch_size)

    return predict
