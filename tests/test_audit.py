"""The audit of a run: samples lost, duplicate or not in the plan, answers read otherwise, calls that do not add up."""

from __future__ import annotations

from pathlib import Path

import pytest
import report as job
from made_samples import sample, store

from rambla_ray.config.load import load
from rambla_ray.config.run import RunConfig
from rambla_ray.results.audit import audit
from rambla_ray.results.calls import invocation
from rambla_ray.results.directory import RunDirectory, scoring_spec
from rambla_ray.schema import Sample, to_table


@pytest.fixture
def audited(tmp_path: Path) -> tuple[RunConfig, RunDirectory]:
    """A run of mcqabaseline that expects ten samples, with no samples yet."""
    loaded = load(["model=mock", "task=mcqabaseline", f"runs_dir={tmp_path}"])
    directory = RunDirectory.create(loaded)
    directory.begin(loaded, {}, [])
    return loaded, directory


def asked(count: int) -> list[Sample]:
    answers = ["yes", "no"] * count
    return [
        sample(str(number), answers[number], model="mock", task="mcqabaseline", text=answers[number])
        for number in range(count)
    ]


def finish_run(
    audited: tuple[RunConfig, RunDirectory],
    samples: list[Sample],
    *,
    finished: bool = True,
    **counts: int,
) -> list[str]:
    """The audit's lines of a run that has ended with these samples and calls."""
    loaded, directory = audited
    writer = directory.sample_writer("mock", scoring_spec(loaded, {("mcqabaseline", ""): 10}))
    writer.add(to_table(samples))
    writer.close()
    entry = dict.fromkeys(("calls", "answered", "failed", "retried", "hedged", "repeated"), 0) | counts
    spent = [{"model": "mock", "role": "target", "prompt_tokens": 0, "completion_tokens": 0, **entry}]
    directory.write_calls(loaded, spent, writer.answered, invocation(0.0, 0, {}, finished=finished))
    return [str(check) for check in audit(directory)]


def test_a_sound_run_passes_the_audit(
    audited: tuple[RunConfig, RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    assert finish_run(audited, asked(10), calls=16, answered=9, failed=1, retried=4, hedged=2, repeated=3) == [
        "✓ samples: expected 10, stored 10, duplicate 0, lost 0",
        "✓ answers: checked 10, of which 0 read otherwise",
        "✓ calls made 16 = answered 9 + failed 1 + retried 4 + hedged 2 + repeated after a kill at most 3 "
        "(so that up to 19 were paid)",
    ]
    directory = audited[1]
    directory.write_metrics()
    assert job.main([directory.folder.location, "--audit", "--recompute"]) == 0
    assert "✓ samples: expected 10" in capsys.readouterr().out


def test_lost_and_duplicate_samples_fail_the_audit(
    audited: tuple[RunConfig, RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    samples = asked(10)
    lines = finish_run(audited, [*samples[:8], samples[3], samples[3]])
    assert lines[0] == "✗ samples: expected 10, stored 8, duplicate 2, lost 2"
    directory = audited[1]
    directory.write_metrics()
    assert job.main([directory.folder.location, "--audit"]) == 2
    assert lines[0] in capsys.readouterr().out


def test_samples_that_are_not_in_the_plan_fail_the_audit(audited: tuple[RunConfig, RunDirectory]) -> None:
    samples = asked(10)
    samples[0].variant, samples[0].sample_id = "n=7", "mock/mcqabaseline/n=7/0"
    assert finish_run(audited, samples)[0] == (
        "✗ samples: expected 10, stored 10, duplicate 0, lost 1, not in the plan 1"
    )


def test_one_too_many_in_a_variant_does_not_hide_one_lost_in_another(tmp_path: Path) -> None:
    loaded = load(["model=mock", "task=spelling_robustness", f"runs_dir={tmp_path}"])
    directory = RunDirectory.create(loaded)
    directory.begin(loaded, {}, [])
    expected = {("spelling_robustness", "n=0"): 2, ("spelling_robustness", "n=1"): 2}
    samples = [
        sample(root, model="mock", task="spelling_robustness", variant=variant)
        for root, variant in (("1", "n=0"), ("2", "n=0"), ("3", "n=0"), ("1", "n=1"))
    ]
    store(directory.folder.location, scoring_spec(loaded, expected), samples, model="mock")
    directory.write_calls(loaded, [], {}, invocation(0.0, 0, {}, finished=True))
    assert str(audit(directory)[0]) == ("✗ samples: expected 4, stored 4, duplicate 0, lost 1, not in the plan 1")


def test_what_a_stopped_run_has_not_asked_is_not_lost(audited: tuple[RunConfig, RunDirectory]) -> None:
    line = finish_run(audited, asked(4), finished=False)[0]
    assert line == "✓ samples: expected 10, stored 4, duplicate 0, lost 0, still to come 6"


def test_an_answer_that_its_text_does_not_give_fails_the_audit(
    audited: tuple[RunConfig, RunDirectory],
) -> None:
    samples = asked(10)
    samples[2].answer = "no"
    samples[5].outcome = "refused"
    assert finish_run(audited, samples)[1] == "✗ answers: checked 10, of which 2 read otherwise"


def test_calls_that_do_not_add_up_fail_the_audit(audited: tuple[RunConfig, RunDirectory]) -> None:
    line = finish_run(audited, asked(10), calls=11, answered=10)[2]
    assert line == (
        "✗ calls made 11 = answered 10 + failed 0 + retried 0 + hedged 0 + repeated after a kill at most 0; "
        "does not add up for mock as target"
    )
