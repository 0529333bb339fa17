"""What a local model cannot be asked: found before it gets into a batch, whose other prompts it would fail."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rambla_ray.actors.local.job import Encoding
from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Request


def check_texts(request: Request) -> None:
    """Raise a CallError (`bad_request`) for a text that no tokenizer takes, as it is no Unicode."""
    for text in (request.text, request.pair or "", *request.continuations):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            reason = f"lone surrogate at character {error.start} of the prompt"
            raise CallError(ErrorKind.BAD_REQUEST, reason) from None


def check_tokens(encodings: Iterable[Encoding], known: int, tokenizer: Any) -> None:
    """Raise a CallError (`bad_request`) for a text with a token that the model has no embedding of.

    On a CPU it would fail the whole batch, on a GPU also all that come later.

    Args:
        encodings: of the text.
        known: how many tokens the model has embeddings of.
        tokenizer: transformers' tokenizer.
    """
    largest = max(max(encoding["input_ids"], default=0) for encoding in encodings)
    if largest >= known:
        word = tokenizer.convert_ids_to_tokens(largest)
        reason = f"it holds token {largest} ('{word}') of its tokenizer, and the model knows only the first {known}"
        raise CallError(ErrorKind.BAD_REQUEST, reason)
