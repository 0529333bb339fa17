"""Judges for tests: mocks that err each in their own way, and what they say of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from config_files import loaded

from rambla_ray.config.run import RunConfig
from rambla_ray.schema import Sample, Step

FLIPS = {"ja": 0.3, "jb": 0.25, "jc": 0.2}  # How often each judge is wrong.


def judges(folder: Path, flips: Mapping[str, float] = FLIPS, **texts: str) -> str:
    """A folder with model configs of judges, and others by their YAML, as the word that names it."""
    (folder / "panel/model").mkdir(parents=True, exist_ok=True)
    for seed, (name, flip) in enumerate(flips.items(), start=1):
        texts[name] = f"name: mock\nparams: {{behaviour: flip, flip: {flip}, seed: {seed}}}\n"
    for name, text in texts.items():
        (folder / f"panel/model/{name}.yaml").write_text(text)
    return f"conf_dir={folder / 'panel'}"


def panelled(folder: Path, *words: str, task: str = "conclusion_generation") -> RunConfig:
    """A run of a task with three judges."""
    return loaded(judges(folder), f"task={task}", "roles.judge=ja,jb,jc", *words)


def step(role: str, model: str, text: str | None = "Yes", finish_reason: str = "stop", vote: str = "") -> Step:
    """A step with an answer, or with None for a text one that failed."""
    failed = text is None
    return Step(
        stage="generate:response",
        role=role,
        model=model,
        request_id="0" * 64,
        prompt="?",
        text=text or "",
        finish_reason="" if failed else finish_reason,
        error_kind="server" if failed else "",
        error="it broke" if failed else "",
        vote=vote,
    )


def judged(
    root_id: str,
    texts: Sequence[str | None],
    *,
    task: str = "conclusion_generation",
    target: str = "yes",
    epoch: int = 0,
) -> Sample:
    """A sample of a target that answered, and what each judge said; it has not ended."""
    steps = [step("target", "mock", "A conclusion.")]
    steps += [step("judge", name, text) for name, text in zip(FLIPS, texts, strict=True)]
    return Sample(f"mock/{task}/-/{root_id}", root_id, "mock", task, "", target, target, {}, steps, epoch=epoch)
