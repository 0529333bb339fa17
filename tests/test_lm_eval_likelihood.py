"""A real model's log-probabilities, at the real command, are those of lm-evaluation-harness's `multiple_choice`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Bench

THEIRS = json.loads((Path(__file__).parent / "data/likelihood_smollm2.json").read_text())


@pytest.mark.real
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(("prompts", "is_finetuned"), [("chat", "true"), ("plain", "false")])
def test_log_probabilities_are_those_of_lm_eval(
    bench: Callable[[Sequence[str]], Bench], test_data: Path, prompts: str, is_finetuned: str
) -> None:
    run = bench(
        [
            *("model=smollm2", "task=mcqabaseline", "task.answer.by=likelihood", "limit=100", "address=local"),
            *(
                f"task.dataset.path={test_data / 'pubmedqa/ori_pqal.json'}",
                f"model.params.is_finetuned={is_finetuned}",
            ),
            "model.params.loading_params.dtype=float32",
        ]
    )
    assert run.status == 0, run.err
    samples = pq.read_table(run.run / "samples").to_pylist()
    assert {sample["root_id"] for sample in samples} == THEIRS[prompts].keys()
    for sample in samples:
        theirs = THEIRS[prompts][sample["root_id"]]
        assert sample["steps"][-1]["choice_logprobs"] == pytest.approx(theirs, abs=1e-3)
        assert sample["answer"] == THEIRS["choices"][theirs.index(max(theirs))]
