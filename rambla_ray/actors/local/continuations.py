"""A prompt and what may stand behind it, as the rows of tokens whose log-probabilities are asked for.

Both are encoded together, as lm-evaluation-harness does it (`_encode_pair`): white space at the prompt's end belongs
to the continuation, and what the encoding of the whole has more than that of the prompt is the continuation's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rambla_ray.actors.local.job import Choices
from rambla_ray.errors import CallError, ErrorKind

PLAIN_DELIMITER = " "  # Between a plain prompt and a continuation, as in lm-evaluation-harness (`target_delimiter`).


@dataclass(frozen=True)
class Context:
    """A prompt as the model reads it.

    Args:
        text: with the chat template, if any, up to where an answer begins.
        encode: a text to tokens, with those that begin a prompt.
        delimiter: what stands between the prompt and each continuation.
    """

    text: str
    encode: Callable[[str], list[int]]
    delimiter: str = ""

    def choices(self, continuations: tuple[str, ...], longest: int | None) -> Choices:
        """The job of a request for continuations.

        Args:
            continuations: what may stand behind the prompt.
            longest: tokens that the model takes; None where it names no limit.

        Raises:
            CallError: `load`: two continuations are the same tokens, or one is none; no other prompt fares better.
                `too_long`: the prompt does not fit with one of them. `bad_request`: the prompt has no token.
        """
        prompt = self.encode(self.text.rstrip())
        if not prompt:
            raise CallError(ErrorKind.BAD_REQUEST, "the prompt has no token, behind which a choice could be likely")
        ends = [self.encode(f"{self.text}{self.delimiter}{text}")[len(prompt) :] for text in continuations]
        _refuse_alike(continuations, ends)
        whole = len(prompt) + max(map(len, ends))
        if longest is not None and whole - 1 > longest:  # Nothing follows a last token, so that it is not computed.
            raise CallError(
                ErrorKind.TOO_LONG, f"prompt and choice of {whole} tokens, the model takes {longest} before the last"
            )
        return Choices(
            [{"input_ids": prompt + end} for end in ends],
            continuations=continuations,
            scored=tuple(map(len, ends)),
        )


def _refuse_alike(continuations: tuple[str, ...], ends: list[list[int]]) -> None:
    first: dict[tuple[int, ...], str] = {}
    for text, end in zip(continuations, ends, strict=True):
        if not end:
            raise CallError(ErrorKind.LOAD, f"choice '{text}' has no token of its own behind the prompt")
        other = first.setdefault(tuple(end), text)
        if other != text:
            raise CallError(
                ErrorKind.LOAD,
                f"choices '{other}' and '{text}' are the same tokens to this model, so that neither is likelier; "
                "write them otherwise, or leave out answer.by",
            )
