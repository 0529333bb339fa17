"""Conversations for APIs that take the system's turns apart from the others."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rambla_ray.errors import CallError, ErrorKind
from rambla_ray.schema import Message

_BETWEEN = "\n\n"  # Between turns that become one.


def system_of(messages: Sequence[Message]) -> str:
    """What the system says, in one text; empty where it says nothing."""
    return _BETWEEN.join(turn.content for turn in messages if turn.role == "system" and turn.content)


def turns_of(messages: Sequence[Message]) -> list[Message]:
    """The turns of the user and the assistant. Raises CallError (`bad_request`): there are none."""
    turns = [turn for turn in messages if turn.role != "system"]
    if not turns:
        raise CallError(ErrorKind.BAD_REQUEST, "a conversation needs a turn of the user's")
    return turns


def alternating(messages: Sequence[Message]) -> list[Message]:
    """The turns of the user and the assistant, in which the user begins and nobody speaks twice in a row.

    Raises:
        CallError: `bad_request`: the user does not begin.
    """
    turns = turns_of(messages)
    if turns[0].role != "user":
        raise CallError(ErrorKind.BAD_REQUEST, "this model's API takes conversations that begin with the user's turn")
    return [
        Message(role, _BETWEEN.join(turn.content for turn in one_sided))
        for role, one_sided in groupby(turns, key=lambda turn: turn.role)
    ]
