"""Broken files and environments: YAML, JSON and items that no parser should follow, and what is no file at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from broken_input import (
    DEEP,
    FOLDER,
    ITEMS,
    LONG,
    WORDS,
    BrokenInput,
    Content,
    by_turns,
    with_data,
    with_file,
    with_params,
    with_stage,
    with_word,
)
from broken_keys import DATASET, FILES, MODEL, ROOT, broken_files

FORMATS = ("table", "pubmedqa", "bioasq", "sick", "mrpc")


def keys(file: str) -> Iterator[BrokenInput]:
    for label, fault, text in broken_files(file):
        yield with_file(f"keys of {file}", f"{label} {fault}", f"conf/{file}", text)


def nesting() -> Iterator[BrokenInput]:
    kind = "nesting"
    texts: dict[str, Content] = {
        "flow lists": "[" * DEEP,
        "closed flow lists": f"a: {'[' * DEEP}{']' * DEEP}",
        "flow mappings": "{a: " * DEEP,
        "block lists": "- " * 20_000,
        "block mappings": "\n".join(f"{' ' * depth}a:" for depth in range(1_000)),
        "explicit keys": "? " * 20_000,
        "60 lists": f"a: {'[' * 60}{']' * 60}",
    }
    yield from by_turns(kind, texts)
    for opening, closing in (("[", "]"), ("{a: ", "}")):
        for key in ("pool", "limit", "task.dataset.keep", "task.answer.labels", "roles", "model.params.temperature"):
            yield with_word(kind, f"{key}={opening * 10_000}{closing * 10_000}", f"{key}= with {opening} 10,000 times")
    yield with_word(kind, f'roles="a": {"[" * 10_000}{"]" * 10_000}, "b"', "in quotes that are no pair")
    for outer, parts in (("", 10_000), ("model.params.", 2_000), ("pool.", 2_000)):
        yield with_word(kind, f"{outer}{'a.' * parts}b=1", f"a key {outer} of {parts} parts")
    for name, text in {"lists": "[" * DEEP + "]" * DEEP, "objects": '{"a":' * DEEP, "open lists": "[" * DEEP}.items():
        yield from with_data(kind, f"{name} in json", "d.json", text, FORMATS)
        yield from with_data(
            kind, f"{name} in a value of json", "d.json", f'[{{"id": 1, "question": {text}}}]', FORMATS
        )
        yield from with_data(kind, f"{name} in jsonl", "d.jsonl", text, FORMATS)
        yield from with_data(
            kind, f"{name} in a value of jsonl", "d.jsonl", f'{{"id": 1, "question": {text}}}', FORMATS
        )


def aliases() -> Iterator[BrokenInput]:
    kind = "aliases"
    laughs = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    laughs += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    merges = ["a0: &a0 {k: x, l: x}"]
    merges += [f"a{n}: &a{n} {{k: *a{n - 1}, l: *a{n - 1}, m: *a{n - 1}}}" for n in range(1, 25)]
    texts: dict[str, Content] = {
        "billion laughs": "\n".join(laughs),
        "billion merges": "\n".join(merges),
        "nested by aliases": "a0: &a0 []\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}]" for n in range(1, 5_000)),
        "a list in itself": "a: &a [*a]",
        "a mapping in itself": "a: &a {b: *a}",
        "a merge of itself": "a: &a {<<: *a}",
        "an unknown alias": "a: *nothing",
        "a merge of text": "<<: text",
        "a merge of numbers": "<<: [1, 2]",
        "the whole in itself": "&a [*a]",
    }
    yield from by_turns(kind, texts)
    for value in ("[&a [*a]]", "{a: &a {b: *a}}", "[*a]", "{<<: 1}"):
        yield with_word(kind, f"pool={value}")


def nul() -> Iterator[BrokenInput]:
    kind = "NUL"
    keys = (
        "runs_dir",
        "ledger",
        "run_id",
        "model",
        "task",
        "data",
        "roles.judge",
        "task.dataset",
        "task.dataset.path",
    )
    for key in keys:
        yield with_word(kind, f'{key}="a\\0b"')
    yield with_word(kind, 'task.dataset.path="a\\0b.csv"')
    for key in ("runs_dir", "ledger", "model", "task"):
        text = yaml.safe_dump({**ROOT, key: "a\0b"})
        yield with_file(kind, f"{key} in config.yaml", "conf/config.yaml", text)
    for key in ("path", "demo", "format"):
        text = yaml.safe_dump({**DATASET, "path": "owner/name", key: "a\0b"})
        yield with_file(kind, f"{key} in a dataset", "conf/dataset/own.yaml", text)
    yield with_params(kind, "base_url", base_url="http://a\0b")
    yield with_params(kind, "api_key_var", api_key_var="A\0B")
    yield with_params(kind, "model_name", "huggingface_llm", model_name="/tmp/a\0b")
    yield with_params(kind, "name", "a\0b")
    yield with_stage(kind, "template_file", template_file="a\0b")
    yield from by_turns(kind, {"a NUL byte": b"a: b\0c\n", "only NUL bytes": bytes(1000)})


def homes() -> Iterator[BrokenInput]:
    kind = "~nouser"
    for key in ("runs_dir", "ledger", "conf_dir", "task.dataset.path"):
        yield with_word(kind, f"{key}=~nouser/x.csv")
        yield with_word(kind, f"{key}=~nouser")
    text = yaml.safe_dump({**DATASET, "path": "~nouser/x.csv"})
    yield with_file(kind, "path in a dataset", "conf/dataset/own.yaml", text)
    yield with_file(kind, "runs_dir", "conf/config.yaml", yaml.safe_dump({**ROOT, "runs_dir": "~nouser/x"}))
    yield with_params(kind, "model_name", "huggingface_llm", model_name="~nouser/x")
    yield BrokenInput(kind, "a report", ["~nouser/x"], command="report")
    yield BrokenInput(kind, "a served config", ["conf_dir=~nouser/x"], command="serve")


def encodings() -> Iterator[BrokenInput]:
    kind = "encodings"
    for encoding in ("utf-16", "utf-32", "utf-16-le"):
        for file, document in FILES.items():
            yield with_file(kind, f"{file} in {encoding}", f"conf/{file}", yaml.safe_dump(document).encode(encoding))
    texts: dict[str, Content] = {
        "no UTF-8": b"a: \xff\xfe\n",
        "a surrogate": b"a: \xed\xb3\xa9\n",
        "an escaped surrogate": b'a: "\\ud800"',
    }
    yield from by_turns(kind, texts)
    for word in (
        "limit=\udcff",
        "\udcff=1",
        "model=\udcff",
        "runs_dir=\udcff",
        "ledger=a\udcffb",
        "\udcff",
        "task=\ud800",
    ):
        yield with_word(kind, word)
    yield from with_data(kind, "utf-16", "d.csv", ITEMS.encode("utf-16"))
    yield from with_data(kind, "Latin-1", "d.csv", ITEMS.replace("so", "sö").encode("latin-1"))


PLACES = ("nowhere://x", "://", "s3:///", "s3://", "file://nohost/x", "http://localhost/runs", "memory://x y")


def no_files() -> Iterator[BrokenInput]:
    """What stands where a file should: of FIFOs and devices, a reader would wait for the end for ever."""
    kind = "no file"
    for file in FILES:
        contents: dict[str, Content] = {"a scalar": "text", "a list": "[a, b]", "a number": "1"}
        if file != "config.yaml":
            contents |= {"a folder": Path.mkdir, "nothing": "", "null": "null"}
        for name, content in contents.items():
            yield with_file(kind, f"{name} as {file}", f"conf/{file}", content)
    data: dict[str, tuple[str, Content]] = {
        "a folder": ("d.csv", Path.mkdir),
        "an empty folder": ("d", Path.mkdir),
        "a FIFO": ("d.csv", os.mkfifo),
        "a FIFO of json": ("d.json", os.mkfifo),
        "a broken link": ("d.csv", lambda path: path.symlink_to("nowhere")),
        "a link to itself": ("d.csv", lambda path: path.symlink_to(path.name)),
        "a device": ("d.csv", lambda path: path.symlink_to("/dev/zero")),
    }
    for name, (file, content) in data.items():
        yield from with_data(kind, name, file, content)
    for word in ("conf_dir=items.csv", "runs_dir=items.csv", "runs_dir=items.csv/runs", "ledger=items.csv"):
        yield with_word(kind, word)
    for word in ("runs_dir=/proc/runs", "ledger=/dev/null/x", "ledger=items.csv/x"):
        yield with_word(kind, word)
    for place in PLACES:
        yield with_word(kind, f"runs_dir={place}")
        yield with_word(kind, f"task.dataset.path={place}/d.csv")


def odd_yaml() -> Iterator[BrokenInput]:
    texts: dict[str, Content] = {
        "an unknown tag": "a: !!python/object:os.system {}",
        "a tag of functions": "a: !!python/object/apply:os.system [exit]",
        "a local tag": "a: !thing 1",
        "a tab": "a:\n\tb: 1",
        "two documents": "a: 1\n---\nb: 2",
        "a key twice": "a: 1\na: 2",
        "a list as key": "? [a, b]\n: 1",
        "a null key": "null: 1",
        "an open bracket": "a: [1, 2",
        "an open quote": 'a: "b',
        "an unknown escape": 'a: "\\q"',
        "a control character": "a: \x07",
        "an escape": "a: \x1b[2J",
        "a directive": "%YAML 9.9\n---\na: 1",
        "a number of 5,000 digits": f"a: {'9' * 5000}",
        "a number in base 60": f"a: {'59:' * 3000}59",
        "an impossible date": "a: 2024-13-45",
        "a date": "a: 2024-01-01",
        "bad binary": "a: !!binary 'é'",
        "a number that is none": "a: !!int x",
        "a set": "!!set {a, b}",
        "60,000 keys": "\n".join(f"key{n}: 1" for n in range(60_000)),
        "1 MB in one word": f"nonsense: {'x' * LONG}",
        "3 MB in one word": f"nonsense: {'x' * 3 * LONG}",
        "a key of 1 MB": f"? {'x' * LONG}\n: 1",
        "a key with an escape": '"a\\e[2J\\nb": 1',
        "a key that turns the writing": '"a\\u202eb": 1',
    }
    yield from by_turns("YAML", texts)


def interpolations() -> Iterator[BrokenInput]:
    kind = "interpolations"
    values = {
        "open": "${",
        "no name": "${}",
        "nothing there": "${nothing}",
        "no such resolver": "${nothing:x}",
        "a variable that is not set": "${oc.env:NOT_SET}",
        "no variable": "${oc.env:}",
        "a secret": "${oc.env:OPENAI_API_KEY}",
        "itself": "${params.engine}",
        "nested": "${oc.env:${oc.env:${oc.env:NOT_SET}}}",
        "a package that is not there": "${package_dir:no_such_package}",
        "a package with a dot": "${package_dir:os.path}",
        "a list": "${oc.decode:[}",
        "deeply nested": "${oc.env:" * 2000 + "X" + "}" * 2000,
        "nested 60 times": "${oc.env:" * 60 + "X" + "}" * 60,
        "nested 300 times and open": "${" * 300,
        "deeply nested and open": "${" * 50_000,
        "a resolver of objects": "${oc.create:{a: ${nothing}}}",
        "a deep list": f"${{oc.decode:{'[' * 3000}{']' * 3000}}}",
        "a list nested 400 times": f"${{oc.decode:{'[' * 400}{']' * 400}}}",
        "20,000 dots": f"${{{'a.' * 20_000}b}}",
        "20,000 brackets": f"${{a{'[b]' * 20_000}}}",
        "1 MB": "${oc.env:" + "A" * LONG + "}",
    }
    for name, value in values.items():
        yield with_params(kind, f"{name} in a model", engine=value)
        yield with_word(kind, f"model.params.engine={value}", f"{name} in a word")
        yield with_word(kind, f"task.dataset.path={value.replace('params.engine', 'path')}", f"{name} in a path")


def template_files() -> Iterator[BrokenInput]:
    kind = "template files"
    files: dict[str, Content] = {
        "nothing.txt": "",
        "latin.txt": b"{question} \xe9",
        "wide.txt": "{question}".encode("utf-16"),
        "folder.txt": Path.mkdir,
        "fifo.txt": os.mkfifo,
        "braces.txt": "{question",
        "loop.txt": lambda path: path.symlink_to(path.name),
        "broken.txt": lambda path: path.symlink_to("nowhere"),
    }
    for name, content in files.items():
        yield with_stage(kind, name, {f"conf/prompts/{name}": content}, template_file=f"../prompts/{name}")
    for name in (
        "missing.txt",
        "../../items.csv",
        "/etc/passwd",
        "x" * 300,
        "",
        "~nouser/x",
        1,
        None,
        ["a"],
        {"a": "b"},
    ):
        yield with_stage(kind, f"{name}"[:20], template_file=name)


def _parquet(columns: Mapping[str, object]) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


def datasets() -> Iterator[BrokenInput]:
    kind = "datasets"
    deep = pa.array([None], reduce(lambda inner, _: pa.list_(inner), range(300), pa.int64()))
    texts: dict[str, Content] = {
        "nothing.json": "",
        "nothing.jsonl": "",
        "nothing.csv": "",
        "null.json": "null",
        "number.json": "1",
        "text.json": '"text"',
        "empty.json": "[]",
        "object.json": "{}",
        "numbers.json": "[1, 2]",
        "lists.json": "[[1], [2]]",
        "nulls.json": "[null]",
        "cut.json": '[{"id": 1, "question": "',
        "cut.jsonl": '{"id": 1}\n{"id":',
        "values.jsonl": "1\n2\n",
        "twice.json": '[{"id": 1, "id": 2}]',
        "columns.json": '[{"no": "such"}]',
        "escape.json": '[{"\\u001b[2J\\n": 1}]',
        "digits.json": f'[{{"id": {"9" * 5000}}}]',
        "surrogate.json": '[{"\\ud800": "x"}]',
        "binary.json": bytes(range(256)),
        "zeros.csv": bytes(4096),
        "header.csv": "id,question\n",
        "short.csv": "id,question,answer,other\n1,2\n",
        "twice.csv": "id,id\n1,2\n",
        "quote.csv": 'id,question,answer,other\n1,"a\n',
        "long.csv": f"{'x' * LONG}\n1\n",
        "text.parquet": "no parquet",
        "nothing.parquet": "",
        "cut.parquet": b"PAR1" + bytes(100) + b"PAR1",
        "columns.parquet": _parquet({"no": ["such"]}),
        "empty.parquet": _parquet({"id": pa.array([], pa.string())}),
        "deep.parquet": _parquet({"id": ["1"], "question": deep}),
        "unknown.ending": ITEMS,
    }
    for name, content in texts.items():
        yield from with_data(kind, name, name, content, ("table", "pubmedqa", "sick"))
    for number, row in enumerate((",Is it?,yes,a", "1,Is it?,maybe,a", "1,Is it?,yes,a\n1,Is it?,no,b")):
        yield with_file(kind, f"rows {number}", "items.csv", f"id,question,answer,other\n{row}\n")
    for path in ("missing.csv", "/nowhere/x.json", "x" * 300 + ".csv", "./nothing", "a\nb.csv", "a\x1b[2Jb.json"):
        yield with_word(kind, f"task.dataset.path={path}", path[:30])


JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"
NO_JOBS = ("{", "", "[]", "1", "null", '{"runtime_env": 1}', '{"runtime_env": {"env_vars": 1}}', "[" * DEEP)
NO_URLS = ("nonsense", "http://", "ftp://x/v1", "http://a b/v1", "http://x:99999/v1", "http://x/v1#y", "a\x1b[2J")
NO_PROXIES = ("socks5://a:1", "nonsense://", "http://", "http://a b:1", "http://h:99999", "http://h:1/path")
NO_CLUSTERS = (
    "nohost",
    ":",
    "host:port",
    "a b:1",
    "\x1b[2J:1",
    "127.0.0.1:1",
    "127.0.0.1:99999",
    "ray://h:1",
    "a\nb:1",
)


def environments() -> Iterator[BrokenInput]:
    kind = "environment"
    for value in NO_JOBS:
        yield BrokenInput(kind, f"{JOB}={value[:40]}", environment={JOB: value})
    unplaced = yaml.safe_dump({**MODEL, "params": {"temperature": 0.0, "engine": "gpt-test", "api_type": "openai"}})
    for value in NO_URLS:
        environment = {"OPENAI_API_BASE": value}
        files = {"conf/model/own.yaml": unplaced}
        yield BrokenInput(kind, f"OPENAI_API_BASE={value}", files=files, environment=environment)
    for value in NO_PROXIES:
        yield BrokenInput(kind, f"http_proxy={value}", environment={"http_proxy": value, "no_proxy": ""})
    for value in ("", "a\nb", "é", "a\x1bb", "x" * 10 + "\r\ny"):
        yield BrokenInput(kind, f"OPENAI_API_KEY={value}", environment={"OPENAI_API_KEY": value})
    for value in NO_CLUSTERS:
        words = (*WORDS, f"runs_dir={FOLDER}/runs")  # A relative one is refused before.
        yield BrokenInput(kind, f"RAY_ADDRESS={value}", words, environment={"RAY_ADDRESS": value})
        yield BrokenInput(kind, f"address={value}", (*words, f"address={value}"))


def checkpoints() -> Iterator[BrokenInput]:
    kind = "checkpoints"
    local = yaml.safe_dump({"name": "huggingface_llm", "params": {"model_name": "./checkpoint"}})
    tuned = yaml.safe_dump({"name": "huggingface_llm", "params": {"model_name": "./checkpoint", "is_finetuned": True}})
    weights = {"checkpoint/model.safetensors": bytes(16), "conf/model/own.yaml": local}
    config = {"checkpoint/config.json": json.dumps({"model_type": "llama"})}
    broken: dict[str, Content] = {
        "lists": "[" * DEEP,
        "objects": '{"a":' * DEEP,
        "nothing": "",
        "bytes": b"\xff\xfe",
        "a list": "[]",
        "cut": '{"a',
    }
    for name, content in broken.items():
        files = {
            "config.json": weights,
            "adapter_config.json": weights,
            "tokenizer_config.json": {**weights, **config},
        }
        for file, others in files.items():
            model = {"conf/model/own.yaml": tuned} if file.startswith("tok") else {}
            yield BrokenInput(kind, f"{name} in {file}", files={**others, **model, f"checkpoint/{file}": content})
    for name in ("", "a b", "a\x1b[2J", "a:b", "x" * 300, "a/é", "https://huggingface.co/a/b"):
        yield with_params(kind, f"model_name {name[:20]}", "huggingface_llm", model_name=name)
    yield BrokenInput(kind, "no folder", files={"conf/model/own.yaml": local})
    yield BrokenInput(kind, "an empty folder", files={"conf/model/own.yaml": local, "checkpoint": Path.mkdir})
    yield BrokenInput(kind, "a file", files={"conf/model/own.yaml": local, "checkpoint": "text"})
