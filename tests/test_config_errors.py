"""Config: everything a user can get wrong is one line with the way out."""

from __future__ import annotations

from pathlib import Path

import config_files
import pytest
from config_files import HUGGINGFACE, OPENAI, TASK, refusal

from rambla_ray.errors import LISTED_CHARACTERS, listed

conf = config_files.conf
no_endpoint = config_files.no_endpoint  # It runs by itself before each test of this file.


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ("limit", "'limit' is not key=value"),
        ("=3", "'=3' is not key=value"),
        ("modle=mock", "no key 'modle'; did you mean 'model'?"),
        ("pol.max_size=3", "no key 'pol.max_size'; did you mean 'pool'?"),
        ("conf_dir=/does/not/exist", "conf_dir=/does/not/exist: there is no such folder"),
        (
            "model=openai_cat",
            "no model 'openai_cat'; did you mean 'openai_chat'? there are: b",
        ),
        ("task=mcqabasline", "no task 'mcqabasline'; did you mean 'mcqabaseline'?"),
        ("task=all,mcqabasline", "no task 'mcqabasline'; did you mean 'mcqabaseline'?"),
        ("task.dataset=pubmedqa_yes", "no dataset 'pubmedqa_yes'; did you mean 'pubmedqa_yesno'?"),
        (["task=paraphrase", "roles.rephraser=moc"], "no model 'moc'; did you mean 'mock'?"),
        ("roles.jugde=mock", "'rephraser', 'target', 'judge' or 'reader'"),
        ("roles.target=mock", "the target is chosen with model=<name>"),
        ("model.name=mok", "model mock (mock.yaml): name 'mok' is not a kind of model; did you mean 'mock'?"),
        ("model.nme=mock", "no key 'nme'; did you mean 'name'?"),
        ("model.params.flp=0.2", "no key 'params.flp'; did you mean 'flip'?"),
        ("model.params.flip=2", "params.flip: Input should be less than or equal to 1 (got 2)"),
        ("model.params=3", "params: Input should be a valid dictionary (got 3)"),
        ("pool.max_siz=3", "no key 'pool.max_siz'; did you mean 'max_size'?"),
        (
            "model.batch.max_wait=3",
            "no key 'batch.max_wait'; did you mean 'max_wait_s'? there are: max_wait_s, poll_s",
        ),
        ("model.price={input: 3}", "no key 'price.input'; there are: batch_factor, cache_write_per_million"),
        (["pool.min_size=3", "pool.max_size=2"], "max_size 2 is below min_size 3"),
        ("pool.batch_size=0", "batch_size 0 is below 1"),
        ("rate.requests_per_minute=0", "greater than 0 (got 0)"),
        ("fail_if.coverage_bellow=1", "did you mean 'coverage_below'?"),
        ("limit=0", "limit: Input should be greater than 0 (got 0)"),
        ("limit=few", "limit: Input should be a valid integer"),
        ("until={}", "until: it names nothing to wait for; give it ci_width, as in {ci_width: 0.06}, or decided"),
        ("until={decided: 0.05}", "until: `decided` compares targets, and there is one; name two or more"),
        ("until={ci_width: 1}", "until.ci_width: Input should be less than 1 (got 1)"),
        ("until={ci_width: 0}", "until.ci_width: Input should be greater than 0 (got 0)"),
        ("until={decided: 0.6}", "until.decided: Input should be less than or equal to 0.5 (got 0.6)"),
        ("until.equivalent=0.1", "until: `equivalent` needs `decided`: the error at which targets are compared"),
        ("until={ci_widht: 0.1}", "no key 'until.ci_widht'; did you mean 'ci_width'?"),
        ("until=soon", "until: Input should be a valid dictionary (got 'soon')"),
        ("seed=-1", "seed: Input should be greater than or equal to 0 (got -1)"),
        ("data=ful", "data: Input should be 'demo' or 'full' (got 'ful')"),
        ("model=", "model: "),
        ("task=", "task: "),
        ("run_id=ledger", "'ledger' is where answers are kept"),
        ("task.answer.choices=[yes,no]", "put it in quotes"),
        ("task.answer.choices=[a,a]", "choices 'a' and 'a' overlap"),
        ("task.answer.choices=[Yes!,No]", "answer.choices.0"),
        ("task.answer.choices=[Up,down]", "in lower case"),
        ("task.answer.expect=maybe", "expect 'maybe' is not among the labels yes, no"),
        ("task.answer.target=final_decison", "did you mean 'final_decision'?"),
        ("task.answer.reads=question", "the last generate writes 'response'"),
        ("task.answer.reeds=x", "no key 'answer.reeds'; did you mean 'reads'?"),
        ("task.stages=[]", "a task needs a list of stages"),
        ("task.stages=3", "a task needs a list of stages"),
        ("task.stages=[shuffel_context]", "no stage kind 'shuffel_context'; did you mean 'shuffle_context'?"),
        ("task.stages=[generate]", "stage 1: key 'generate.role' is missing"),
        ("task.stages=[shuffle_context]", "nobody is asked"),
        ("task.stages=[{generate: {role: target}}]", "stage 1: generate: it has no prompt: give it a template"),
        ("task.dataset.pth=x", "dataset pubmedqa_yesno (pubmedqa_yesno.yaml): no key 'pth'; did you mean 'path'?"),
        ("task.dataset.format=pubmed", "format: Input should be 'pubmedqa'"),
        ("task.dataset.seed=-1", "seed"),
        ("limit=[", "limit"),
        ("task.stages.a.b=x", "Index 'a' (str) is not an int"),
        ("task.stages.9.b=x", "stages[9]: list index out of range"),
        ("limit\nx", r"'limit\nx' is not key=value"),
        ("limit=true", "limit: Input should be a valid integer"),
        ("limit=" + "[" * 100_000 + "]" * 100_000, "it is nested more than 50 deep"),
        ("task.stages=" + "[" * 100_000 + "]" * 100_000, "it is nested more than 50 deep"),
        ("ledger=" + "${" * 400 + "x" + "}" * 400, "nested too deeply"),
        ("model.params.answer=null", "params.answer: Input should be a valid string"),
        ("runs_dir=", "runs_dir: Input should be a valid string"),
        ("model.params.answer=\udce9", "its bytes are no text in this locale"),
        ("model.params.flip=${oc.env:NO_SUCH_VARIABLE}", "needs the environment variable NO_SUCH_VARIABLE"),
        ("model.params.flip=${nope}", "params.flip"),
        ("model=llama_ft", "needs the environment variable LLAMA_FT_PATH, which is not set"),
    ],
)
def test_what_is_wrong_is_said_in_one_line_with_the_nearest_match(words: str | list[str], fragment: str) -> None:
    assert fragment in refusal(*([words] if isinstance(words, str) else words))


@pytest.mark.parametrize("group", ["model", "task"])
@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        (b"name: caf\xe9\n", "byte 0xe9 in line 1 is not UTF-8"),
        (b"# one\n# \x80\n", "byte 0x80 in line 2 is not UTF-8"),
        ("name: mock".encode("utf-16"), "byte 0xff in line 1 is not UTF-8"),
        (b"name: " + b"[" * 100_000 + b"]" * 100_000, "it is nested more than 50 deep"),
    ],
    ids=["latin-1", "a later line", "utf-16", "deep"],
)
def test_a_file_that_is_no_text_or_no_config_is_named(group: str, content: bytes, fragment: str, conf: Path) -> None:
    (conf / group / "broken.yaml").write_bytes(content)
    message = refusal(f"conf_dir={conf}", f"{group}=broken")
    assert f"{conf}/{group}/broken.yaml: " in message
    assert fragment in message


@pytest.mark.parametrize(
    "word",
    [
        "model=../model/mock",
        "model=/etc/passwd",
        "model=a/b",
        "model=.hidden",
        "task=../task/paraphrase",
        "task.dataset=../dataset/pubmedqa",
        "task.pair_with=../x",
        "roles.judge=../model/mock",
        "run_id=../elsewhere",
        "run_id=/tmp",
        "run_id=..",
    ],
)
def test_a_name_does_not_climb_out_of_its_folder(word: str) -> None:
    assert "should match pattern" in refusal(word)


@pytest.mark.parametrize(
    ("group", "text", "fragment"),
    [
        ("model", "name: [", "broken.yaml: not valid YAML"),
        ("model", "- a\n- b\n", "expected keys and values"),
        ("model", "", "key 'name' is missing"),
        ("model", "3.5", "expected keys and values"),
        ("model", 'name: "mo\\nck"', "is not a kind of model"),
        ("model", "name: mock\nname: mock\n", "broken.yaml: not valid YAML"),
        ("model", "name: mock\nparam: {}\n", "did you mean 'params'?"),
        ("model", HUGGINGFACE.replace("torch_dtype: bfloat16", "torch_dtype: bfloat61"), "did you mean 'bfloat16'?"),
        ("model", HUGGINGFACE + "  device: cpu\n", "device and device_map exclude each other"),
        ("model", OPENAI.replace("  engine: gpt-4-32k\n", ""), "key 'params.engine' is missing"),
        ("model", OPENAI.replace("0.0", "cold"), "params.temperature: Input should be a valid number"),
        ("model", OPENAI + "  api_key: x\n", "no key 'params.api_key'; did you mean 'api_key_var'?"),
        ("task", TASK.replace("{question}", "{qestion}"), "stage 1 (generate) reads 'qestion'"),
        ("task", TASK.replace("{question}", "question"), "stage 1: generate.template: a template needs at least one"),
        ("task", TASK.replace("role: target", "role: judge, wrtes: x"), "no key 'generate.wrtes'"),
        ("task", TASK.replace('template: "{question}"', "template_file: none.txt"), "template_file"),
        ("task", TASK.replace("dataset: pubmedqa_yesno", ""), "key 'dataset' is missing"),
        ("task", TASK.replace('["yes", "no"]', "[yes, no]"), "put it in quotes"),
        ("task", TASK + "tries: 3\n", "no key 'tries'"),
    ],
)
def test_a_broken_file_is_named_in_one_line(group: str, text: str, fragment: str, conf: Path) -> None:
    (conf / group / "broken.yaml").write_text(text)
    message = refusal(f"conf_dir={conf}", f"{group}=broken")
    assert fragment in message
    assert "broken" in message


@pytest.mark.parametrize(
    ("names", "line"),
    [
        ([], "none"),
        (["a"], "a"),
        (["a", "b"], "a, b"),
        (["x" * 100] * 5, f"{'x' * 100}, {'x' * 100} and 3 more"),
        (["y" * 1_000, "z"], f"{'y' * LISTED_CHARACTERS} and 1 more"),
        ([f"{n:03}" for n in range(900)], ", ".join(f"{n:03}" for n in range(50)) + " and 850 more"),
    ],
    ids=["none", "one", "two", "long", "too long", "many"],
)
def test_a_list_of_names_is_cut_where_it_takes_a_line(names: list[str], line: str) -> None:
    assert listed(names) == line
