"""How often the 95 % intervals of judged scores hold the truth: scores corrected for the judge's errors, and alpha.

    python benchmarks/judge_correction.py --repetitions 2000

Each repetition simulates a calibration and a run: a judge of some sensitivity and specificity says of texts whose
truth is known, half of them right, and of the answers to n items, whether they are right. From these come the
corrected share and its interval: ours, and beside it, from the same counts,

    adjusted     Lang & Reiczigel (2014), a Wald interval about adjusted counts
    bootstrap    the 2.5th and 97.5th percentile of the corrected share of counts that are drawn from those found

With `rows` above 1 each item was answered, and judged, as often; its rows share a part of their chance (intra-class
correlation 0.3). The last table has Krippendorff's alpha of three judges, each right with some probability, on items
of which a share has the first of two labels.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rambla_ray.scoring.agreement import Ballots, krippendorff
from rambla_ray.scoring.correction import Tally, rogan_gladen
from rambla_ray.scoring.undefined import Undefined

Interval = tuple[float, float]
NOWHERE: Interval = (1.0, 0.0)  # An interval that is not there holds nothing.
METHODS = ("ours", "adjusted", "bootstrap")
TRUTHS = (0.5, 0.8, 0.95)
JUDGES = ((0.9, 0.9), (0.95, 0.8), (0.8, 0.95), (0.98, 0.98))
CALIBRATIONS = (50, 200)  # Texts of each label.
SIZES = (100, 890)
CORRELATION = 0.3
DRAWS = 500  # The bootstrap draws so often.
LARGE = 200_000  # The true alpha is that of so many items.
Z = float(stats.norm.ppf(0.975))


class Setting(NamedTuple):
    """What is simulated: the true share, the judge, the size of the calibration and of the run, an item's rows."""

    truth: float
    sensitivity: float
    specificity: float
    calibration: int  # Texts of each label.
    n: int
    rows: int = 1


def tally(generator: np.random.Generator, items: int, share: float, rows: int) -> Tally:
    """Items with so many rows each, of which this share are hits on average."""
    chance = np.full((items, 1), share)
    if rows > 1:
        spread = 1 / CORRELATION - 1
        chance = generator.beta(share * spread, (1 - share) * spread, size=(items, 1))
    hits = generator.random((items, rows)) < chance
    return Tally.of(np.repeat(np.arange(items), rows), hits.ravel())


def adjusted(found: Tally, sensitivity: Tally, specificity: Tally) -> Interval:
    """The interval of Lang & Reiczigel (2014, Preventive Veterinary Medicine 113, 13-22)."""
    n = found.n + Z**2
    p = (found.share * found.n + Z**2 / 2) / n
    (se, of_se), (sp, of_sp) = (
        (share, share * (1 - share) / (one.n + 2))
        for one in (sensitivity, specificity)
        for share in [(one.share * one.n + 1) / (one.n + 2)]
    )
    tells = se + sp - 1
    if tells <= 0:
        return NOWHERE
    value = (p + sp - 1) / tells
    shift = 2 * Z**2 * (value * of_se - (1 - value) * of_sp)
    reach = Z * np.sqrt(p * (1 - p) / n + value**2 * of_se + (1 - value) ** 2 * of_sp) / tells
    low, high = np.clip([value + shift - reach, value + shift + reach], 0, 1)
    return float(low), float(high)


def bootstrap(found: Tally, sensitivity: Tally, specificity: Tally, generator: np.random.Generator) -> Interval:
    """Percentiles over drawn counts; where a drawn judge tells nothing, the draw is left out."""
    p, se, sp = (generator.binomial(one.n, one.share, DRAWS) / one.n for one in (found, sensitivity, specificity))
    tells = se + sp > 1
    drawn = np.clip((p + sp - 1)[tells] / (se + sp - 1)[tells], 0, 1)
    low, high = np.percentile(drawn, [2.5, 97.5]) if len(drawn) else NOWHERE
    return float(low), float(high)


def intervals(setting: Setting, repetitions: int, seed: int = 18) -> Iterator[Sequence[Interval]]:
    """For each repetition the interval of each method."""
    truth, se, sp, calibration, n, rows = setting
    for repetition in range(repetitions):
        generator = np.random.default_rng([seed, *(int(1000 * part) for part in setting), repetition])
        found = tally(generator, n, truth * se + (1 - truth) * (1 - sp), rows)
        known = tally(generator, calibration, se, rows), tally(generator, calibration, sp, rows)
        numbers = rogan_gladen(found, *known)
        ours = NOWHERE
        if not isinstance(numbers, Undefined) and not isinstance(numbers["ci95"], Undefined):
            ours = numbers["ci95"][0], numbers["ci95"][1]
        yield ours, adjusted(found, *known), bootstrap(found, *known, generator)


def coverage(setting: Setting, repetitions: int) -> list[tuple[float, float]]:
    """How often the interval of each method holds the truth, as a share, and its mean width."""
    return _held(np.array(list(intervals(setting, repetitions))), setting.truth)


def _held(ends: NDArray[np.float64], truth: float) -> list[tuple[float, float]]:
    held = (ends[..., 0] <= truth + 1e-9) & (truth - 1e-9 <= ends[..., 1])
    widths = np.maximum(0, ends[..., 1] - ends[..., 0])
    return list(zip(held.mean(axis=0).tolist(), widths.mean(axis=0).tolist(), strict=True))


def ballots(generator: np.random.Generator, items: int, right: float, share: float) -> Ballots:
    """The votes of three judges, each right with a probability."""
    first = generator.random((items, 1)) < share
    says_first = np.where(generator.random((items, 3)) < right, first, ~first).sum(axis=1)
    return Ballots(np.column_stack([says_first, 3 - says_first]), np.arange(items).astype(object))


@cache
def true_alpha(right: float, share: float) -> float:
    """Alpha of very many items."""
    value = krippendorff([ballots(np.random.default_rng(0), LARGE, right, share)]).value
    assert isinstance(value, float)  # noqa: S101 - so many votes are not for one label
    return value


def coverage_of_alpha(items: int, right: float, share: float, repetitions: int) -> tuple[float, float]:
    """How often the interval holds alpha, of those that are there, and its mean width."""
    ends = []
    for repetition in range(repetitions):
        generator = np.random.default_rng([18, items, int(100 * right), int(100 * share), repetition])
        found = krippendorff([ballots(generator, items, right, share)]).ci95
        if not isinstance(found, Undefined):
            ends.append(found)
    ((held, width),) = _held(np.array(ends)[:, None, :], true_alpha(right, share))
    return held, width


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    noise = 196 * (0.95 * 0.05 / repetitions) ** 0.5
    print(f"{repetitions} repetitions; a true 95 % shows as 95.0 % ± {noise:.1f}; after it the mean width")
    heads = ("truth", "sens.", "spec.", "calib.", "n", "rows")
    print(*(f"{head:>6}" for head in heads), *(f"{method:>15}" for method in METHODS))
    once = [Setting(truth, *judge, each, n) for truth, judge, each, n in product(TRUTHS, JUDGES, CALIBRATIONS, SIZES)]
    several = [Setting(truth, *judge, 100, 300, 4) for truth, judge in product(TRUTHS, JUDGES)]
    shares = []
    for setting in (*once, *several):
        found = coverage(setting, repetitions)
        shares.append([share for share, _ in found])
        shown = [f"{100 * share:6.1f} % {width:6.4f}" for share, width in found]
        print(*(f"{part:>6g}" for part in setting), *shown, flush=True)
    for method, of_method in zip(METHODS, np.array(shares[: len(once)]).T, strict=True):
        inside = ((of_method >= 0.93) & (of_method <= 0.97)).mean()
        print(
            f"{method}, one row an item: mean {100 * of_method.mean():.1f} %, {100 * of_method.min():.1f} to "
            f"{100 * of_method.max():.1f}; {100 * inside:.0f} % of the settings within 93 to 97"
        )
    print(f"\n{'items':>6} {'right':>6} {'share':>6} {'alpha':>6} {'ours':>15}")
    for items, right, share in product((30, 100, 500), (0.7, 0.9, 0.98), (0.5, 0.9)):
        held, width = coverage_of_alpha(items, right, share, repetitions)
        alpha = true_alpha(right, share)
        print(f"{items:>6} {right:>6} {share:>6} {alpha:>6.3f} {100 * held:6.1f} % {width:6.4f}", flush=True)


if __name__ == "__main__":
    main()
