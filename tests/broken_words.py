"""Broken command lines: words that no command takes, too long ones, and ones that would write on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator

import yaml
from broken_input import LONG, WORDS, BrokenInput, with_file, with_stage, with_word
from broken_keys import DATASET, MODEL, ROOT, TASK, sections


def _split(words: str) -> tuple[str, ...]:
    return tuple(words.split())


NO_VALUES = _split("""
nonsense = =1 --limit=1 -x limit modle=own pool.min=1 rates=1 model= task= model=, model=own,,nobody
task=nothing model=null data= data=half limit=0 limit=-1 limit=1.5 limit=ten limit=[1] limit={a:1} seed=-1
seed=nan roles.target=own roles=own roles.nobody=own roles.judge.x=own reader.template=none dry_run=maybe
verbose=[true] run_id=ledger conf_dir=nowhere address=ray://a:1 model.name=nobody model.name=a.b:C
model.name=rambla_ray.errors:UserError model.=1 model.params=1 model.params.x=1 model.params.engine.x=1 pool=1
pool.x=1 rate={x:1} task.stages=x task.stages.0.x=1 task.stages.9=generate task.stages.x=1 task.answer=1
task.dataset=nothing task.dataset.path= task.dataset.x=1 task.dataset.keep=1 .=1 ..=1 limit=[ limit={ pool={a:[}
limit=[1 pool={min_size:} task=../task/own runs_dir="" runs_dir=s3:// runs_dir=s3:/// ledger=gs://
ledger=s3://?region=eu runs_dir=s3://# runs_dir=s3:///# runs_dir=s3://?region=eu runs_dir=gs:///?a=/b ledger=file://#/x
""")
SPACED = ("", " ", "pool={!!python/object:os.x {}}", "limit={a: 1}", "rate={x: 1}", "pool={min_size: }", "model=own x")
PLACES = {"config.yaml": "", "model/own.yaml": "model.", "task/own.yaml": "task.", "dataset/own.yaml": "task.dataset."}


def no_values() -> Iterator[BrokenInput]:
    for word in (*NO_VALUES, *SPACED):
        yield with_word("words", word, word or "an empty one")
    yield BrokenInput("words", "100,000 of them", (*WORDS, *["x"] * 100_000))


def keys_of_the_command_line() -> Iterator[BrokenInput]:
    """The keys that take a number or a truth value, from the models of the configs, each with what neither is."""
    for section in sections():
        if section.document not in (ROOT, MODEL, TASK, DATASET):
            continue
        place = PLACES[section.file] + "".join(f"{part}." for part in section.place)
        for name, key in section.model.model_fields.items():
            if re.search("int|float|bool", str(key.annotation)) and "dict" not in str(key.annotation):
                for value in ("word", "[1, 2]", "{a: 1}"):
                    yield with_word("keys of the command line", f"{place}{key.alias or name}={value}")


def long_words() -> Iterator[BrokenInput]:
    kind = "long words"
    for key in (
        "limit",
        "model",
        "task",
        "run_id",
        "runs_dir",
        "ledger",
        "task.dataset.path",
        "conf_dir",
        "roles.judge",
    ):
        yield with_word(kind, f"{key}={'x' * LONG}", f"{key} of 1 MB")
    yield with_word(kind, "x" * LONG, "no key")
    yield with_word(kind, f"{'x' * LONG}=1", "a key of 1 MB")
    yield with_word(kind, f"model={','.join(f'm{n}' for n in range(10_000))}", "10,000 models")
    yield with_word(kind, f"model.params.engine=${{{'x' * 50_000}}}", "an interpolation")
    yield with_word(kind, f"task.stages.0.generate.template={'{x}' * 20_000}", "20,000 placeholders")
    yield with_word(kind, f"limit={'9' * 5_000}0x", "5,000 digits")
    many = yaml.safe_dump({**DATASET, "fields": [f"field{n}" for n in range(5_000)]})
    yield with_file(kind, "5,000 fields", "conf/dataset/own.yaml", many)
    choices = {**TASK, "answer": {"choices": [f"word{n:05}" for n in range(900)], "target": "answer"}}
    yield with_file(kind, "900 choices", "conf/task/own.yaml", yaml.safe_dump(choices))


ESCAPES = ("\n", "\r", "\x1b[2J", "\x1b]0;title\x07", "\x07", "\x9b31m", "\u202e", "\u2028", "\x85", "\u200b")
ESCAPED = ["{}", "a{}b", "a{}b=1", "limit=a{}b", "model=a{}b", "conf_dir=a{}b", "model.params.x{}=1", "pool=[{}"]
MORE_ESCAPED = [
    "task.dataset.path=a{}.csv",
    "model.params.base_url=http://a{}b",
    "model.name=a{}b",
    "task.pair_with=a{}b",
]


def escapes() -> Iterator[BrokenInput]:
    kind = "escapes"
    for escape in ESCAPES:
        for word in (*ESCAPED, *(MORE_ESCAPED if escape in ESCAPES[1:4] else ())):
            yield with_word(kind, word.replace("{}", escape))
    yield BrokenInput(kind, "a report", ["a\x1b[2J\nb"], command="report")
    yield BrokenInput(kind, "a served name", ["model=a\x1b[2J\nb"], command="serve")


ODD_NAMES = ("..", ".", "a/b", "../own", "/etc/passwd", "a\\b", "-a", "a b", "x" * 300, "a\nb", "a\x1b[31mb", "é", "*")


def names() -> Iterator[BrokenInput]:
    for key in ("model", "task", "run_id", "roles.judge", "task.dataset"):
        for name in (*ODD_NAMES, "own*", "\u202egnp", "CON:", "a\tb", "own.yaml/"):
            yield with_word("names", f"{key}={name}", f"{key}={name[:20]}")


TEMPLATES = _split("""
{ } {} {0} {question {nothing} {question.x} {question[0]} {question:{other}} {question:d}
{question!x} {question:>999999999999} {question}} {{question}}
""")


def templates() -> Iterator[BrokenInput]:
    kind = "templates"
    for template in (*TEMPLATES, "no placeholder", "''"):
        yield with_word(kind, f"task.stages.0.generate.template={template}")
        yield with_stage(kind, f"{template} in a file", template=template.replace("''", ""))
    yield with_stage(kind, "100,000 braces", template="{" * 100_000)


def reports() -> Iterator[BrokenInput]:
    kind = "reports"
    for words in (
        [""],
        ["nowhere"],
        ["items.csv"],
        ["."],
        ["x" * LONG],
        ["s3://"],
        ["s3://?region=eu"],
        ["nowhere://x"],
        ["\udcff"],
        ["a\0b"],
    ):
        yield BrokenInput(kind, words[0][:40] or "an empty word", words, command="report")
    for words in (["a", "b"], ["--nonsense", "a"], ["a", "--audits"], ["-"], ["--"], ["-\n"], ["conf", "--audit"], []):
        yield BrokenInput(kind, " ".join(words) or "no words", words, command="report")
    yield BrokenInput(kind, "conf --recompute", ["conf", "--recompute"], command="report")


SERVED = _split("""
nonsense port=-1 port=65536 port=x port=[1] port=1.5 port={a:1} model= model=nobody task=own limit=1
host=0.0.0.0 host= host=nohost.invalid verbose=maybe model.params.x=1 pool.min_size=x rate=1 conf_dir=nowhere
""")
HOSTS = (
    "x" * 300,
    "a" * 70 + ".b",
    "a..b",
    "a b",
    "é",
    "\udcff",
    '"a\\0b"',
    "[::1",
    "127.0.0.1:80",
    "1.2.3.4.5",
    "a\nb",
)


def serving() -> Iterator[BrokenInput]:
    kind = "serving"
    for word in SERVED:
        yield BrokenInput(kind, word, (*WORDS, word), command="serve")
    key = {"SERVE_API_KEY": "a-key-that-is-long-enough"}
    for host in HOSTS:
        yield BrokenInput(kind, f"host={host[:20]}", (*WORDS, f"host={host}"), command="serve")
        name = f"host={host[:20]} with a key"
        yield BrokenInput(kind, name, (*WORDS, f"host={host}"), command="serve", environment=key)
    for name, text in {"nesting": "[" * 100_000, "text": "x", "a tab": "a:\n\tb"}.items():
        files = {"conf/model/own.yaml": text}
        yield BrokenInput(kind, f"{name} in a model", files=files, command="serve")
    for value in ("", " ", "\n", "a\nb", "\x1b", "é"):
        yield BrokenInput(kind, f"SERVE_API_KEY={value}", command="serve", environment={"SERVE_API_KEY": value})
