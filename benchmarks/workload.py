"""What benchmarks ask: made-up questions of PubMedQA's size, and a run of jobs/bench.py over them."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from command import REPOSITORY, Finished, Json, run

SUBJECTS = ("residents", "patients", "infants", "nurses", "volunteers", "surgeons", "families", "athletes")
TREATMENTS = ("vitamin D", "exercise", "early feeding", "screening", "metformin", "counselling", "imaging", "oxygen")
FINDINGS = ("infection", "length of stay", "mortality", "pain", "adherence", "blood pressure", "anxiety", "relapse")
ABSTRACT_CHARACTERS = 1410  # With question and instructions, a prompt has about 1,600 characters.


def made_up_items(count: int) -> list[dict[str, str]]:
    """Questions about abstracts, of the size of PubMedQA's, all distinct, and the same ones every time."""
    return [_made_up_item(number) for number in range(count)]


def _made_up_item(number: int) -> dict[str, str]:
    draw = random.Random(number)
    who, what, outcome = draw.choice(SUBJECTS), draw.choice(TREATMENTS), draw.choice(FINDINGS)
    sentences = [f"In study {number} we asked whether {what} changes {outcome} among {who}."]
    while sum(map(len, sentences)) + len(sentences) < ABSTRACT_CHARACTERS:
        sentences.append(
            f"Of {draw.randint(20, 900)} {draw.choice(SUBJECTS)}, {draw.randint(5, 95)}% had less "
            f"{draw.choice(FINDINGS)} after {draw.choice(TREATMENTS)} (relative risk {draw.uniform(0.5, 2):.2f}, "
            f"95% CI {draw.uniform(0.2, 0.5):.2f} to {draw.uniform(2, 3):.2f})."
        )
    return {
        "id": f"{number:06}",
        "context": " ".join(sentences),
        "question": f"Does {what} change {outcome} among {who}?",
        "final_decision": draw.choice(("yes", "no")),
    }


class Bench:
    """One run of jobs/bench.py, with data and configs of its own in a folder of its own.

    Args:
        folder: where it all is written.
        items: the dataset, see `made_up_items`.
        task: a task config, less its `dataset`.
        models: model configs by name.
    """

    METRICS = Path("runs/benchmark/metrics.json")  # It is in the folder of the run once that is done.

    def __init__(
        self, folder: Path, items: Sequence[Mapping[str, str]], task: Json, models: Mapping[str, Json]
    ) -> None:
        self.folder = folder
        data = folder / "items.jsonl"
        dataset = {"format": "table", "path": str(data), "demo": "none", "fields": [k for k in items[0] if k != "id"]}
        configs = {"dataset/made_up": dataset, "task/benchmark": {"dataset": "made_up", **task}}
        configs |= {f"model/{name}": config for name, config in models.items()}
        for name, config in configs.items():
            path = folder / "conf" / f"{name}.yaml"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(config, indent=1), encoding="utf-8")  # JSON is YAML.
        data.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")

    def run(self, *words: str, timeout_s: float) -> Finished:
        """Run it; `words` choose the models."""
        own = (f"conf_dir={self.folder / 'conf'}", f"runs_dir={self.folder / 'runs'}", "run_id=benchmark")
        command = (sys.executable, REPOSITORY / "jobs/bench.py", "task=benchmark", "data=full", "address=local")
        return run([*command, *own, *words], self.folder / "log.txt", timeout_s, {})
