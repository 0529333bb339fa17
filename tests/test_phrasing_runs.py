"""Several phrasings of a prompt at the real command: what is asked, stored, scored and shown."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from config_files import TASK
from conftest import Bench
from made_items import item, write_items
from openai_server import OpenAIServer

from rambla_ray.results.audit import audit, recompute
from rambla_ray.results.directory import RunDirectory
from rambla_ray.storage import Folder

pytestmark = pytest.mark.usefixtures("ray_cluster")
PHRASED = """
dataset: pubmedqa_yesno
pair_with: short
stages:
  - generate:
      role: target
      templates: {plain: "Q: {question}", formal: "Formally: {question}", twin: "Q: {question}{context:.0}"}
answer: {choices: ["yes", "no"], target: final_decision}
"""


def test_each_phrasing_is_asked_scored_and_shown_and_the_same_prompt_asked_once(
    bench: Callable[[Sequence[str]], Bench], tmp_path: Path
) -> None:
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "a.yaml").write_text(PHRASED)
    (tmp_path / "task" / "short.yaml").write_text(TASK)
    items = {str(number): item(f"Is it {number}?") for number in range(6)} | {"6": item("Is it so?", context=" ")}
    with OpenAIServer(answer=lambda prompt: "No" if prompt.startswith("Formally") else "Yes") as server:
        words = ["model=openai_chat", "model.params.api_type=openai", f"model.params.base_url={server.base_url}"]
        done = bench([*words, "task=short,a", f"conf_dir={tmp_path}", write_items(tmp_path, items)])
        seen = server.snapshot()
    assert done.status == 0
    asked = 7 + 2 * 7  # The task beside it, and two of three phrasings: the third asks what the first does.
    assert len(seen["requests"]) == len(seen["per_prompt"]) == asked
    metrics = json.loads(done.read("metrics.json"))
    cells = {cell["variant"]: cell for cell in metrics["cells"] if cell["task"] == "a"}
    assert {name: cell["accuracy"]["value"] for name, cell in cells.items()} == {"plain": 1, "formal": 0, "twin": 1}
    assert [cells[name]["outcomes"]["scored"] for name in ("plain", "twin")] == [7, 6], "one item lacks what one reads"
    assert all(cell["paired"]["with"] == "short" for cell in cells.values())
    (effect,) = metrics["effects"]
    assert effect["phrasings"]["n"] == 6
    assert effect["phrasings"]["accuracy"]["value"] == pytest.approx(2 / 3)
    line = "over 3 phrasings, 0.0 (formal) to 100.0 (plain), standard deviation 57.7"
    for text in (done.out, done.read("summary.md"), done.read("report.html")):
        assert line in " ".join(text.split())
    directory = RunDirectory(Folder(str(done.run)))
    assert all(check.holds for check in (recompute(directory), *audit(directory)))
