"""Runs on one ledger, whatever they do one after the other: all see the same, and nothing is asked twice."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ledger_lines import answered, claim, failed, opened, rid, text_of

from rambla_ray.ledger.record import Kind, mark_line
from rambla_ray.ledger.segments import SUFFIX
from rambla_ray.ledger.store import Ledger

RUNS, NAMES = ("one", "other", "third"), "abcd"


class RunsOnOneLedger(RuleBasedStateMachine):
    """Runs start, claim, answer, fail, release and die in any order, beside a plain account of who asks what."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name)
        self.ledgers: dict[str, Ledger] = {}
        self.asked: dict[str, str] = {}  # name → the run that asks it
        self.answered: dict[str, str] = {}  # name → the text of its answer
        self.paid: dict[str, int] = dict.fromkeys(RUNS, 0)
        self.texts = 0

    @rule(run=st.sampled_from(RUNS))
    def a_run_starts_again(self, run: str) -> None:
        self.a_run_dies(run)
        self.ledgers[run] = opened(self.path, run)

    @rule(run=st.sampled_from(RUNS))
    def a_run_dies(self, run: str) -> None:
        self.ledgers.pop(run, None)
        self.asked = {name: who for name, who in self.asked.items() if who != run}

    @precondition(lambda self: self.ledgers)
    @rule(data=st.data(), names=st.lists(st.sampled_from(NAMES), unique=True))
    def a_run_claims(self, data: st.DataObject, names: list[str]) -> None:
        run = data.draw(st.sampled_from(sorted(self.ledgers)))
        free = [name for name in names if name not in self.answered and name not in self.asked]
        granted = claim(self.ledgers[run], *(name for name in names if self.asked.get(name) != run))
        assert granted == "".join(free)
        self.asked |= dict.fromkeys(granted, run)

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def an_answer_comes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        run = self.asked.pop(name)
        self.texts += 1
        self.answered[name] = f"text {self.texts}"
        self.paid[run] += 1
        self.ledgers[run].add([answered(name, run, self.answered[name])])

    @precondition(lambda self: self.asked)
    @rule(data=st.data(), kind=st.sampled_from([Kind.FAILURE, Kind.RELEASE, Kind.DEATH]))
    def a_request_ends_without_one(self, data: st.DataObject, kind: Kind) -> None:
        name = data.draw(st.sampled_from(sorted(self.asked)))
        run = self.asked.pop(name)
        if kind is Kind.FAILURE:
            self.ledgers[run].add([failed(name, run)])
        else:
            self.ledgers[run].mark(kind, [(rid(name), "m", "target")])

    @rule()
    def what_another_version_wrote_without_locks_is_there_for_who_comes_later(self) -> None:
        (self.path / f"older{SUFFIX}").write_bytes(mark_line(Kind.CLAIM, rid("a"), "older", "m", "target"))

    @invariant()
    def every_run_sees_the_same_and_counts_its_own(self) -> None:
        for run, ledger in getattr(self, "ledgers", {}).items():
            assert claim(ledger) == ""
            assert {name: text_of(ledger, name) for name in NAMES if rid(name) in ledger} == self.answered
            assert sum(spent.answered for spent in ledger.spent.values()) == self.paid[run]
            elsewhere = {name for name, who in self.asked.items() if who != run}
            assert {name for name in NAMES if ledger.others.are_asking(rid(name))} == elsewhere
            assert ledger.damaged == 0

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            self.ledgers.clear()
            self.folder.cleanup()


RunsOnOneLedger.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestRunsOnOneLedger = RunsOnOneLedger.TestCase
