"""A broken input: a command line, with what it finds in its folder and its environment, that must be refused.

Each differs in one thing from one that runs: `broken_keys.FILES` in the folder conf, and `ITEMS` beside it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import yaml
from broken_keys import DATASET, FILES, MODEL, TASK

WORDS = ("conf_dir=conf",)  # The base: what config.yaml in that folder says.
ITEMS = "id,question,answer,other\n1,Is it so?,yes,a\n2,Is it?,no,b\n3,Was it?,yes,c\n4,Were they?,no,d\n"
FOLDER = "@FOLDER@"  # In a word it stands for the folder in which the command runs.
DEEP = 100_000  # So many brackets inside each other end a parser that follows them by calling itself.
LONG = 1_000_000  # characters
LEFT_BY_TEST = frozenset({"stdout", "stderr"})

Content = str | bytes | Callable[[Path], None]  # of a file; a function makes what stands in its place


@dataclass(frozen=True)
class BrokenInput:
    """A command line that must be refused, and the files and variables that are otherwise than in the base."""

    kind: str
    name: str
    words: Sequence[str] = WORDS
    files: Mapping[str, Content] = field(default_factory=dict)
    command: str = "bench"
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}".encode("unicode_escape").decode()

    def prepare(self, folder: Path) -> list[str]:
        """Make the folder in which the command runs; returns the command's words."""
        for name, content in {**_whole_files(), **self.files}.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(path)
            else:
                path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return [word.replace(FOLDER, str(folder)) for word in self.words]

    def left_behind(self, folder: Path) -> list[str]:
        """What is in the folder, and was not before the command ran."""
        known = {name.partition("/")[0] for name in ("conf", "items.csv", *LEFT_BY_TEST, *self.files)}
        return sorted(path.name for path in folder.iterdir() if path.name not in known)


@cache
def _whole_files() -> dict[str, Content]:
    return {"items.csv": ITEMS, **{f"conf/{name}": yaml.safe_dump(document) for name, document in FILES.items()}}


def with_word(kind: str, word: str, name: str = "") -> BrokenInput:
    """The base with one more word."""
    return BrokenInput(kind, name or word[:60], (*WORDS, word))


def with_file(kind: str, name: str, file: str, content: Content) -> BrokenInput:
    """The base with one file that is another."""
    return BrokenInput(kind, name, files={file: content})


def by_turns(kind: str, contents: Mapping[str, Content]) -> Iterator[BrokenInput]:
    """Each content in the place of a config file, by turns of another one."""
    for (name, content), file in zip(contents.items(), itertools.cycle(FILES), strict=False):
        yield with_file(kind, f"{name} as {file}", f"conf/{file}", content)


def with_params(kind: str, name: str, model: str = "", **params: object) -> BrokenInput:
    """The base with other params of its model, or with another model."""
    document = {"name": model, "params": params} if model else {**MODEL, "params": {**MODEL["params"], **params}}
    return with_file(kind, name, "conf/model/own.yaml", yaml.safe_dump(document))


def with_stage(kind: str, name: str, files: Mapping[str, Content] | None = None, **stage: object) -> BrokenInput:
    """The base with another stage, and more files."""
    task = {**TASK, "stages": [{"generate": {"role": "target", **stage}}]}
    return BrokenInput(kind, name, files={"conf/task/own.yaml": yaml.safe_dump(task), **(files or {})})


def _task_about(question: str, target: str) -> dict[str, object]:
    stage = {"generate": {"role": "target", "template": f"{{{question}}}"}}
    return {"dataset": "own", "stages": [stage], "answer": {"choices": ["yes", "no"], "target": target}}


_TASKS = {
    "table": TASK,
    "pubmedqa": _task_about("question", "final_decision"),
    "bioasq": _task_about("question", "label"),
    "sick": _task_about("text_1", "label"),
    "mrpc": _task_about("text_1", "label"),
}


def with_data(
    kind: str, name: str, file: str, content: Content, formats: Sequence[str] = ("table",)
) -> Iterator[BrokenInput]:
    """The base with another file of items, in each of the formats."""
    for form in formats:
        document = {**DATASET, "path": file, "format": form}
        if form != "table":
            del document["fields"]
        written = {"dataset": document, "task": _TASKS[form]}
        configs = {f"conf/{group}/own.yaml": yaml.safe_dump(value) for group, value in written.items()}
        yield BrokenInput(kind, f"{name} as {form}", files={file: content, **configs})
