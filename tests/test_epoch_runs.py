"""Several draws of each item at the real command: what is asked, stored, scored and shown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import Bench

from rambla_ray.results.audit import audit
from rambla_ray.results.directory import RunDirectory
from rambla_ray.storage import Folder

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_each_item_has_so_many_samples_of_which_an_earlier_run_gave_the_first(
    bench: Callable[[Sequence[str]], Bench], tmp_path: Path
) -> None:
    words = ["model=mock", "model.params.flip=0.5", "limit=6", f"ledger={tmp_path / 'ledger'}"]
    once = bench([*words, "epochs=1", f"runs_dir={tmp_path / 'once'}"])
    thrice = bench([*words, "epochs=3", f"runs_dir={tmp_path / 'thrice'}"])
    metrics = thrice.read("metrics.json")
    assert (once.status, thrice.status) == (0, 0)
    (spent,) = json.loads(thrice.read("calls.json"))["models"]
    assert (spent["calls"], spent["reused"]) == (12, 6)
    rows = pq.read_table(thrice.run / "samples" / "mock--mcqabaseline.parquet").to_pylist()
    assert set(Counter(row["root_id"] for row in rows).values()) == {3}
    assert Counter(row["epoch"] for row in rows) == {0: 6, 1: 6, 2: 6}
    assert len({row["sample_id"] for row in rows}) == len({row["steps"][0]["request_id"] for row in rows}) == 18
    assert len({row["answer"] for row in rows}) == 2
    first = pq.read_table(once.run / "samples" / "mock--mcqabaseline.parquet").to_pylist()
    assert {row["sample_id"]: row["steps"][0]["request_id"] for row in first}.items() <= {
        row["sample_id"]: row["steps"][0]["request_id"] for row in rows
    }.items()
    (cell,) = json.loads(metrics)["cells"]
    assert cell["repeats"]["epochs"] == 3
    assert "mcqabaseline × 3" in thrice.out
    assert "3 draws of each item: consistency " in " ".join(thrice.out.split())
    assert all(check.holds for check in audit(RunDirectory(Folder(str(thrice.run)))))
    again = bench([*words, "epochs=3", f"runs_dir={tmp_path / 'thrice'}"])
    assert "no calls, every answer came from the ledger" in again.out
    assert again.read("metrics.json") == metrics
