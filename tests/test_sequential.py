"""Intervals and tests that are valid at any time: by integration, by counting all sequences, by simulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate
from scipy import stats as scipy_stats

from rambla_ray.scoring.sequential import CONCENTRATION, no_difference_p

BENCHMARK = Path(__file__).resolve().parent.parent / "benchmarks" / "early_stop.py"
QUADRATURE = 0.005  # The stake is on 49 bets, not on all: the p's are so near to those of the integral.


def mixture(won: int, lost: int) -> float:
    """The wealth of the bets that the first of two signs is the likelier one, by integration."""
    prior = scipy_stats.beta(CONCENTRATION, CONCENTRATION)
    return integrate.quad(lambda q: 2 * prior.pdf(q) * (2 * q) ** won * (2 - 2 * q) ** lost, 0.5, 1, epsabs=1e-12)[0]


def p_by_integration(signs: Sequence[float]) -> float:
    wealth = [1.0]
    for n in range(1, len(signs) + 1):
        won, lost = (sum(sign == one for sign in signs[:n]) for one in (1, -1))
        wealth += [mixture(won, lost), mixture(lost, won)]
    return min(1.0, 2 / max(wealth))


# --- p ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "signs", [[1] * 6, [1] * 12, [-1] * 12, [1, 1, -1] * 10, [-1] * 9 + [1] * 9, [1, -1] * 5, [1, 0, 0, 1] * 8]
)
def test_p_is_that_of_a_beta_binomial_mixture(signs: list[int]) -> None:
    assert no_difference_p(signs) == pytest.approx(p_by_integration(signs), rel=QUADRATURE)


def test_p_of_one_sided_pairs_by_hand() -> None:
    # The integral over all q from 0 to 1 has the moments of a Beta, half of it nearly nothing when all are alike.
    alike = 20
    moment = math.prod((CONCENTRATION + i) / (2 * CONCENTRATION + i) for i in range(alike))
    assert no_difference_p([1] * alike) == pytest.approx(2 / (2 * 2**alike * moment), rel=QUADRATURE)


@given(st.lists(st.sampled_from([-1, 0, 1]), max_size=40))
def test_pairs_without_a_difference_count_for_nothing(signs: list[int]) -> None:
    assert no_difference_p(signs) == no_difference_p([sign for sign in signs if sign])
