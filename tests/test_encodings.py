"""Files in UTF-8, whatever the locale, with or without a byte-order mark; what is not is named with its byte."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import config_files
import pytest
from config_files import TASK, loaded, refusal

from rambla_ray.actors.local import weights
from rambla_ray.config.dataset import DatasetConfig
from rambla_ray.data.source import load_dataset
from rambla_ray.errors import UserError

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.

REPO = Path(__file__).resolve().parent.parent
BOM = b"\xef\xbb\xbf"
QUESTION = "Ist µ größer? 答案：→"
ROWS = {
    "t.json": json.dumps([{"id": "1", "text": QUESTION}], ensure_ascii=False),
    "t.jsonl": json.dumps({"id": "1", "text": QUESTION}, ensure_ascii=False) + "\r\n",
    "t.csv": f"id,text\r\n1,{QUESTION}\r\n",
}
OTHER_ENCODINGS = [
    ("cp1252", "latin letters: größer µ", "byte 0xf6 in line 1"),
    ("iso-8859-1", "one\ntwo\ncafé", "byte 0xe9 in line 3"),
    ("utf-16", "any text", "byte 0xff in line 1"),
    ("gb18030", "答案", "byte 0xb4 in line 1"),
]


@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "marked"])
@pytest.mark.parametrize("name", ROWS)
def test_a_data_set_may_begin_with_a_mark(name: str, mark: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(mark + ROWS[name].encode())
    (item,) = load_dataset(table(tmp_path / name), "t", demo=False).items
    assert (item.root_id, item.fields) == ("1", {"text": QUESTION})


@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "marked"])
def test_configs_and_templates_may_begin_with_a_mark(mark: bytes, conf: Path) -> None:
    (conf / "task" / "ask.txt").write_bytes(mark + f"{QUESTION}\r\n{{question}}".encode())
    text = f"# {QUESTION}\n" + TASK.replace('template: "{question}"', "template_file: ask.txt")
    (conf / "task" / "filed.yaml").write_bytes(mark + text.encode())
    (stage,) = loaded(f"conf_dir={conf}", "task=filed").tasks["filed"].generates
    assert stage.template == f"{QUESTION}\n{{question}}"


@pytest.mark.parametrize("mark", [b"", BOM], ids=["plain", "marked"])
def test_the_json_of_a_checkpoint_may_begin_with_a_mark(mark: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(mark + json.dumps({"name": QUESTION}, ensure_ascii=False).encode())
    assert weights.config_of(tmp_path) == {"name": QUESTION}


@pytest.mark.parametrize(("encoding", "text", "place"), OTHER_ENCODINGS)
@pytest.mark.parametrize("name", ROWS)
def test_a_data_set_in_another_encoding_is_named_with_the_byte(
    name: str, encoding: str, text: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(text.encode(encoding))
    with pytest.raises(UserError) as refused:
        load_dataset(table(tmp_path / name), "t", demo=False)
    assert str(refused.value) == (
        f"dataset t ({tmp_path / name}) cannot be read: {place} is not UTF-8; save the file as UTF-8"
    )


@pytest.mark.parametrize(("encoding", "text", "place"), OTHER_ENCODINGS)
def test_a_template_in_another_encoding_is_named_with_the_byte(
    encoding: str, text: str, place: str, conf: Path
) -> None:
    (conf / "task" / "ask.txt").write_bytes(text.encode(encoding))
    (conf / "task" / "filed.yaml").write_text(TASK.replace('template: "{question}"', "template_file: ask.txt"))
    assert f"ask.txt: {place} is not UTF-8" in refusal(f"conf_dir={conf}", "task=filed")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.json", "[" * 100_000 + "]" * 100_000),
        ("t.json", '[{"id": "1", "text": ' + '{"a": ' * 100_000 + "1" + "}" * 100_000 + "}]"),
        ("t.jsonl", '{"id": "1", "text": ' + "[" * 100_000 + "]" * 100_000 + "}\n"),
    ],
    ids=["a list", "a mapping", "a line"],
)
def test_a_data_set_that_is_nested_too_deeply_is_one_line(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as refused:
        load_dataset(table(tmp_path / name), "t", demo=False)
    assert str(refused.value).startswith(
        f"dataset t ({tmp_path / name}) cannot be read: its values are nested too deep"
    )


@pytest.mark.parametrize("text", ["{" * 100_000, "{question" + "[0]" * 100_000 + "}", "{question:" + "{x:" * 100_000])
def test_a_template_that_is_nested_deeply_is_one_line(text: str, conf: Path) -> None:
    (conf / "task" / "ask.txt").write_text(text)
    (conf / "task" / "filed.yaml").write_text(TASK.replace('template: "{question}"', "template_file: ask.txt"))
    assert len(refusal(f"conf_dir={conf}", "task=filed")) < 1000


@pytest.mark.processes
@pytest.mark.parametrize("shown", ["utf-8", "ascii"])
def test_a_prompt_is_the_same_in_every_locale(shown: str, conf: Path) -> None:
    (conf / "task" / "ask.txt").write_text(f"{QUESTION} {{question}}", encoding="utf-8")
    (conf / "task" / "filed.yaml").write_text(TASK.replace('template: "{question}"', "template_file: ask.txt"))
    words = ["model=mock", "task=filed", f"conf_dir={conf}", "dry_run=true"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": shown}
    done = subprocess.run(
        [sys.executable, REPO / "jobs/bench.py", *words], env=os.environ | locale, capture_output=True, check=True
    )
    assert QUESTION.encode(shown, "backslashreplace") in done.stdout


def table(path: Path) -> DatasetConfig:
    return DatasetConfig(format="table", path=str(path), demo="x", fields=("text",))
