"""Whole runs with a reader, on a real cluster: what it reads is paid once, and kept, and everything adds up."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import report
from faults import Fault
from made_items import item, write_items
from openai_server import OpenAIServer

pytestmark = pytest.mark.usefixtures("ray_cluster")

OPEN = "The trial leans one way."  # The rules read nothing in it.
PRICE = "price: {input_per_million: 1000000, output_per_million: 0}\n"  # a dollar for a token of a prompt


def conf(folder: Path, **models: str) -> str:
    """A folder with model configs, as the word that names it."""
    (folder / "conf/model").mkdir(parents=True, exist_ok=True)
    for name, text in models.items():
        (folder / f"conf/model/{name}.yaml").write_text(text)
    return f"conf_dir={folder / 'conf'}"


def says(answer: str) -> str:
    return f"name: mock\nparams: {{behaviour: constant, answer: '{answer}'}}\n"


def at(server: OpenAIServer, engine: str) -> str:
    params = f"{{engine: {engine}, temperature: 0, api_type: openai, base_url: '{server.base_url}'}}"
    return f"name: openai_chat\nparams: {params}\n"


def document(done, name: str) -> Any:
    return json.loads(done.read(name))


def entry_of(done, role: str) -> dict[str, Any]:
    (entry,) = [entry for entry in document(done, "calls.json")["models"] if entry["role"] == role]
    return entry


def stored(done) -> list[dict[str, Any]]:
    return [row for path in (done.run / "samples").iterdir() for row in pq.read_table(path).to_pylist()]


def recomputed(done, capsys) -> str:
    """What the report says of a run that must be sound."""
    assert report.main([str(done.run), "--recompute", "--audit"]) == 0
    return capsys.readouterr().out


def test_what_the_rules_cannot_read_is_read_marked_counted_priced_and_kept(bench, tmp_path, capsys):
    models = {"vague": says(OPEN), "paid": says("The answer is no.") + PRICE}
    words = ["model=vague", "task=mcqabaseline,conclusion_generation", "limit=8", conf(tmp_path, **models)]
    words += ["roles.judge=vague", "roles.reader=paid"]
    alone = bench([*words[:-1], f"runs_dir={tmp_path / 'alone'}"])
    assert alone.status == 2
    for cell in document(alone, "metrics.json")["cells"]:
        assert (cell["outcomes"]["scored"], "read_by" in cell) == (0, False)
    read = bench(words)
    assert read.status == 0, read.err
    for cell in document(read, "metrics.json")["cells"]:
        assert (cell["outcomes"]["scored"], cell["read_by"]) == (8, {"rules": 0, "reader": 8})
    assert "8 scored (8 read by the reader)" in read.out
    for row in stored(read):
        *_, answered, mark = row["steps"]
        assert (mark["role"], mark["model"], mark["text"]) == ("reader", "paid", "The answer is no.")
        assert f"\n{answered['text']}\n" in mark["prompt"]
        assert (row["answer"], row["rambla_answer"]) == ("no", "")
    reader = entry_of(read, "reader")
    assert reader["calls"] + reader["reused"] == 16
    assert reader["cost_usd"] == reader["prompt_tokens"] > 0
    before = read.read("metrics.json")
    again = bench(words)
    assert "no calls, every answer came from the ledger" in again.out
    assert again.read("metrics.json") == before
    printed = recomputed(again, capsys)
    assert "metrics.json equals what samples/ give" in printed
    assert "answers: checked 16, of which 0 read otherwise; 16 from what the reader replied" in printed


def test_a_reader_that_has_nothing_to_read_is_neither_asked_nor_loaded(bench, tmp_path):
    done = bench(["model=mock", "limit=4", "roles.reader=idle", conf(tmp_path, idle=says("yes"))])
    (cell,) = document(done, "metrics.json")["cells"]
    assert cell["read_by"] == {"rules": 4, "reader": 0}
    assert list(document(done, "env.json")["models"]) == ["mock"]


REPLIES = {"up": "yes", "down": "The answer is no.", "nowhere": "none of these", "away": "no"}
ANSWERS = ["Yes.", *(f"It leans {lean}." for lean in ("up", "up", "down", "nowhere", "away"))]  # of the target
MANY = [f"It leans {lean} by {number}." for number, lean in enumerate(["up", "down"] * 30)]


def endpoint(answers: list[str]) -> OpenAIServer:
    """The target's answer to the item of each number, and the reader's reply to what that answer says."""

    def reply(prompt: str) -> str:
        number = re.search(r"Is it so (\d+)\?", prompt)
        return (
            answers[int(number[1])] if number else next(REPLIES[lean] for lean in REPLIES if f"leans {lean}" in prompt)
        )

    return OpenAIServer(answer=reply)


def words_of(tmp_path: Path, server: OpenAIServer, items: int) -> list[str]:
    """A run of so many items, by a target and a reader at one endpoint."""
    slow = "pool: {max_concurrency: 2}\n"
    models = {"gpt": at(server, "gpt") + PRICE + slow, "small": at(server, "small") + PRICE + slow}
    return [
        "model=gpt",
        "roles.reader=small",
        write_items(tmp_path, {str(number): item(f"Is it so {number}?") for number in range(items)}),
        conf(tmp_path, **models),
    ]


def asked(server: OpenAIServer, engine: str) -> int:
    return sum(request.model == engine for request in server.requests)


def test_a_reader_is_asked_once_for_each_text_and_again_for_what_failed(bench, tmp_path, capsys):
    with endpoint(ANSWERS) as server:
        server.faults = [Fault("context_length", match="It leans away.", times=-1)]
        words = words_of(tmp_path, server, len(ANSWERS))
        first = bench(words)
        assert (first.status, asked(server, "gpt"), asked(server, "small")) == (0, 6, 4)
        server.faults = []
        server.reset()
        second = bench(words)
        assert (second.status, asked(server, "gpt"), asked(server, "small")) == (0, 0, 1)
    (cell,) = document(second, "metrics.json")["cells"]
    assert cell["read_by"] == {"rules": 1, "reader": 4}
    assert (cell["outcomes"]["scored"], cell["outcomes"]["unparsed"], cell["accuracy"]["value"]) == (5, 1, 0.6)
    reader = entry_of(second, "reader")
    assert (reader["answered"], reader["failed"], reader["reused"]) == (4, 1, 1)
    assert reader["cost_usd"] == reader["prompt_tokens"] > 0
    (lost,) = [json.loads(line) for line in second.read("errors.jsonl").splitlines()]
    assert lost["error"] == "no answer read from: 'It leans nowhere.'"
    assert lost["reader"] == "replied: 'none of these'"
    assert "answers: checked 6, of which 0 read otherwise; 4 from what the reader replied" in recomputed(
        second, capsys
    )


def test_a_reader_that_fails_is_no_failure_of_the_target(bench, tmp_path):
    with endpoint(ANSWERS) as server:
        server.faults = [Fault("content_filter", match="It leans", times=-1)]
        done = bench(words_of(tmp_path, server, len(ANSWERS)))
    (cell,) = document(done, "metrics.json")["cells"]
    assert (cell["outcomes"]["scored"], cell["outcomes"]["unparsed"], cell["outcomes"]["failed"]) == (1, 5, 0)
    assert cell["read_by"] == {"rules": 1, "reader": 0}


def test_a_run_that_stops_while_the_reader_reads_goes_on_to_the_same_bytes(bench, tmp_path):
    with endpoint(MANY) as server:
        words = words_of(tmp_path, server, len(MANY))
        quiet = bench([*words, f"runs_dir={tmp_path / 'quiet'}"])
        paid = sum(entry["cost_usd"] for entry in document(quiet, "calls.json")["models"])
        server.reset()
        stopped = bench([*words, f"budget.usd={0.6 * paid}"])
        assert stopped.status == 4
        assert 0 < asked(server, "small") < len(MANY)
        assert {row["outcome"] for row in stored(stopped)} == {"scored"}  # What waits for the reader has not ended.
        partial = document(stopped, "metrics.json")["partial"]
        assert partial["samples"] < partial["expected"] == len(MANY)
        larger = bench([*words, "budget.usd=1000000"])
        assert max(server.per_prompt.values()) == 1
    assert larger.read("metrics.json") == quiet.read("metrics.json")
