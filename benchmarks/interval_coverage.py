"""How often the 95 % intervals of metrics.json hold the truth, in settings where the truth is known.

    python benchmarks/interval_coverage.py --repetitions 2000

Each repetition simulates the answers to a benchmark of n items, and asks for the interval of one number: ours, and
beside it the percentile bootstrap's over items, by scipy, from the same answers. Where a number exists for p, p is

    accuracy, of one row an item, and of four     the share of right answers
    difference, of one pair an item, and of four  the share of pairs that flip, three of four of them to wrong
    label bias                                    how often yes is answered, where half of the targets are yes
    slope                                         the accuracy of clean texts, of which 50 mutations cost 30 %
    area, of one row an item, and of four         the share of positives; scores are normal, to one digit, area 0.76

Items differ: where one has several rows, they share a part of their chance (intra-class correlation 0.3, scores 0.5).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rambla_ray.scoring.stats import Estimate, mean, roc_auc, slope

Interval = tuple[float, float]
Floats = NDArray[np.float64]
MUTATIONS = np.array([0, 1, 3, 10, 20, 50])
COST = 0.3  # 50 mutations take this share of the clean accuracy.
SHIFT = 1.0  # The scores of positives are so many standard deviations higher.
CORRELATION = 0.3
SIZES = (30, 100, 890)
SHARES = (0.05, 0.5, 0.95)
DRAWS = 500  # The bootstrap draws so often.


@dataclass(frozen=True, slots=True)
class Answers:
    """One simulated benchmark: our estimate, and for the bootstrap the statistic of drawn items.

    `statistic` takes rows of item numbers, shape (draws, items), and returns one number for each draw.
    """

    items: int
    estimate: Estimate | None
    statistic: Callable[[NDArray[np.int64]], Floats]


@dataclass(frozen=True, slots=True)
class Setting:
    """A number, its truth for a p, and how answers of n items with this p are simulated."""

    name: str
    truth: Callable[[float], float]
    simulate: Callable[[np.random.Generator, int, float], Answers]


def chances(generator: np.random.Generator, n: int, p: float) -> Floats:
    """Each item's chance, shape (n, 1), of mean p, for which rows of an item have the intra-class correlation."""
    spread = 1 / CORRELATION - 1
    return generator.beta(p * spread, (1 - p) * spread, size=(n, 1))


def ratio(amounts: Floats, weights: Floats) -> Callable[[NDArray[np.int64]], Floats]:
    """The statistic that is a sum of the items' amounts over a sum of their weights."""
    return lambda drawn: amounts[drawn].sum(axis=-1) / weights[drawn].sum(axis=-1)


def of_rows(values: Floats, lowest: float) -> Answers:
    """The mean over rows, shape (items, rows of an item), of values from `lowest` to 1."""
    items, rows = values.shape
    estimate = mean(values.ravel(), np.repeat(np.arange(items), rows), lowest, 1)
    return Answers(items, estimate, ratio(values.sum(axis=1), np.full(items, float(rows))))


def accuracy(generator: np.random.Generator, n: int, p: float) -> Answers:
    """Each item once."""
    return of_rows((generator.random((n, 1)) < p).astype(float), 0)


def accuracy_of_four(generator: np.random.Generator, n: int, p: float) -> Answers:
    """Each item four times."""
    return of_rows((generator.random((n, 4)) < chances(generator, n, p)).astype(float), 0)


def difference(generator: np.random.Generator, n: int, p: float) -> Answers:
    """Each item as one pair."""
    flips = generator.random((n, 1)) < p
    return of_rows(np.where(flips, np.where(generator.random((n, 1)) < 0.75, -1.0, 1.0), 0.0), -1)


def difference_of_four(generator: np.random.Generator, n: int, p: float) -> Answers:
    """Each item as four pairs, which flip the same way if they do."""
    flips = generator.random((n, 4)) < chances(generator, n, p)
    return of_rows(np.where(flips, np.where(generator.random((n, 1)) < 0.75, -1.0, 1.0), 0.0), -1)


def label_bias(generator: np.random.Generator, n: int, p: float) -> Answers:
    """Answers that do not know the target."""
    target, answer = generator.random((n, 1)) < 0.5, generator.random((n, 1)) < p
    return of_rows(answer.astype(float) - target, -1)


def slope_of_mutations(generator: np.random.Generator, n: int, p: float) -> Answers:
    """Each item with every number of mutations."""
    rows = len(MUTATIONS)
    chance = chances(generator, n, p) * (1 - COST * MUTATIONS / MUTATIONS.max())
    right = (generator.random((n, rows)) < chance).astype(float)
    estimate = slope(np.tile(MUTATIONS, n), right.ravel(), np.repeat(np.arange(n), rows))
    centred = MUTATIONS - MUTATIONS.mean()
    return Answers(n, estimate, ratio(right @ centred, np.full(n, centred @ centred)))


def areas(labels: NDArray[np.bool_], scores: Floats) -> Callable[[NDArray[np.int64]], Floats]:
    """The statistic that is the area under the ROC curve of the drawn items, shapes (items,), (items, rows each)."""

    def statistic(drawn: NDArray[np.int64]) -> Floats:
        rows = scores[drawn].reshape(len(drawn), -1)
        positive = np.repeat(labels[drawn], scores.shape[1], axis=-1)
        count = positive.sum(axis=-1)
        pairs = count * (rows.shape[1] - count)
        beaten = (stats.rankdata(rows, axis=-1) * positive).sum(axis=-1) - count * (count + 1) / 2
        shares: Floats = np.divide(beaten, pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)
        return shares

    return statistic


def area_of(generator: np.random.Generator, n: int, p: float, rows: int) -> Answers:
    """Labels of items and their scores; once more where all labels are alike."""
    labels = generator.random(n) < p
    if labels.all() or not labels.any():
        return area_of(generator, n, p, rows)
    shared = np.sqrt(0.5) if rows > 1 else 0.0
    noise = np.sqrt(1 - shared**2) * generator.normal(size=(n, rows)) + shared * generator.normal(size=(n, 1))
    scores = np.round(noise + SHIFT * labels[:, None], 1)
    estimate = roc_auc(np.repeat(labels, rows), scores.ravel(), np.repeat(np.arange(n), rows))
    return Answers(n, estimate, areas(labels, scores))


SETTINGS: Sequence[Setting] = (
    Setting("accuracy", lambda p: p, accuracy),
    Setting("accuracy, 4 rows an item", lambda p: p, accuracy_of_four),
    Setting("paired difference", lambda p: -p / 2, difference),
    Setting("paired difference, 4 pairs an item", lambda p: -p / 2, difference_of_four),
    Setting("label bias", lambda p: p - 0.5, label_bias),
    Setting("slope, 6 rows an item", lambda p: -COST * p / float(MUTATIONS.max()), slope_of_mutations),
    Setting("area", lambda p: float(ndtr(SHIFT / np.sqrt(2))), lambda generator, n, p: area_of(generator, n, p, 1)),
    Setting(
        "area, 4 rows an item",
        lambda p: float(ndtr(SHIFT / np.sqrt(2))),
        lambda generator, n, p: area_of(generator, n, p, 4),
    ),
)


def percentile_bootstrap(answers: Answers, generator: np.random.Generator) -> Interval:
    """The 2.5th and 97.5th percentile of the statistic over drawn items, those aside where it is undefined."""
    drawn = generator.integers(answers.items, size=(DRAWS, answers.items))
    low, high = np.nanpercentile(answers.statistic(drawn), [2.5, 97.5])
    return float(low), float(high)


def intervals(
    setting: Setting, n: int, p: float, repetitions: int, *, peer: bool, seed: int = 20
) -> Iterator[Sequence[Interval]]:
    """For each repetition our interval, and with `peer` the bootstrap's."""
    place = [seed, SETTINGS.index(setting), n, int(100 * p)]
    for repetition in range(repetitions):
        generator = np.random.default_rng([*place, repetition])
        answers = setting.simulate(generator, n, p)
        if answers.estimate is not None:
            ours = answers.estimate.ci95
            yield [ours, percentile_bootstrap(answers, generator)] if peer else [ours]


def coverage(name: str, n: int, p: float, repetitions: int, *, peer: bool = False) -> list[tuple[float, float]]:
    """How often the interval holds the truth, as a share, and its mean width: ours, with `peer` the bootstrap's."""
    (setting,) = [one for one in SETTINGS if one.name == name]
    truth = setting.truth(p)
    ends = np.array(list(intervals(setting, n, p, repetitions, peer=peer)))
    held = (ends[..., 0] <= truth + 1e-12) & (truth - 1e-12 <= ends[..., 1])
    widths = ends[..., 1] - ends[..., 0]
    return list(zip(held.mean(axis=0).tolist(), widths.mean(axis=0).tolist(), strict=True))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=2000)
    parser.add_argument("--only", default="", help="only numbers whose name begins so")
    options = parser.parse_args()
    noise = 196 * (0.95 * 0.05 / options.repetitions) ** 0.5
    print(f"{options.repetitions} repetitions; a true 95 % shows as 95.0 % ± {noise:.1f}; after it the mean width")
    print(f"{'number':36} {'n':>4} {'p':>5} {'ours':>15} {'percentile':>15}")
    for setting in SETTINGS:
        for n, p in ((n, p) for n in SIZES for p in SHARES if setting.name.startswith(options.only)):
            shown = [
                f"{100 * share:6.1f} % {width:6.4f}"
                for share, width in coverage(setting.name, n, p, options.repetitions, peer=True)
            ]
            print(f"{setting.name:36} {n:4} {p:5} {' '.join(shown)}", flush=True)


if __name__ == "__main__":
    main()
