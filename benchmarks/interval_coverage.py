"""How often the 95 % intervals of rambla_ray.scoring.stats hold the truth, in settings where the truth is known.

    python benchmarks/interval_coverage.py --repetitions 4000

Each repetition simulates the answers to a benchmark, and asks for the interval of one number. The two rows marked with
a star are there for contrast: what a method does where it should not be used.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.special import ndtr

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rambla_ray.scoring.stats import Estimate, bootstrap_mean, roc_auc, slope, wilson

Interval = tuple[float, float]
MUTATIONS = np.array([0, 1, 3, 10, 20, 50])


def ids(count: int, rows_each: int = 1) -> list[str]:
    """root_ids of `count` items with so many rows each."""
    return [f"item-{number:05}" for number in range(count) for _ in range(rows_each)]


def ci95(estimate: Estimate | None) -> Interval:
    """The interval of an estimate that has one."""
    assert estimate is not None  # noqa: S101
    assert estimate.ci95 is not None  # noqa: S101
    return estimate.ci95


def accuracy_wilson(p: float, n: int) -> Callable[[np.random.Generator, int], Interval]:
    """n independent items, each right with probability p."""
    return lambda generator, draws: wilson(int(generator.binomial(n, p)), n)


def accuracy_bootstrap(p: float, n: int) -> Callable[[np.random.Generator, int], Interval]:
    """The same, by the bootstrap."""
    return lambda generator, draws: ci95(
        bootstrap_mean(generator.random(n) < p, ids(n), int(generator.integers(2**32)), draws)
    )


def accuracy_of_variants(items: int, rows_are_items: bool) -> Callable[[np.random.Generator, int], Interval]:
    """Items of different difficulty, p ~ Beta(4, 1) with mean 0.8, each asked in four variants."""

    def interval(generator: np.random.Generator, draws: int) -> Interval:
        right = generator.random((items, 4)) < generator.beta(4, 1, size=(items, 1))
        groups = ids(4 * items) if rows_are_items else ids(items, 4)
        return ci95(bootstrap_mean(right.ravel(), groups, int(generator.integers(2**32)), draws))

    return interval


def paired_difference(items: int) -> Callable[[np.random.Generator, int], Interval]:
    """Right with 0.85 when clean; perturbed, right becomes wrong with 0.12 and wrong right with 0.2: -0.072."""

    def interval(generator: np.random.Generator, draws: int) -> Interval:
        clean = generator.random(items) < 0.85
        perturbed = np.where(clean, generator.random(items) >= 0.12, generator.random(items) < 0.2)
        change = perturbed.astype(int) - clean.astype(int)
        return ci95(bootstrap_mean(change, ids(items), int(generator.integers(2**32)), draws))

    return interval


def flip_rate(q: float, items: int) -> Callable[[np.random.Generator, int], Interval]:
    """Every answer changes with probability q."""

    def interval(generator: np.random.Generator, draws: int) -> Interval:
        clean = generator.random(items) < 0.7
        perturbed = clean ^ (generator.random(items) < q)
        return wilson(int((clean != perturbed).sum()), items)

    return interval


def label_bias(items: int) -> Callable[[np.random.Generator, int], Interval]:
    """Half of the targets are yes, each asked under four orders; yes is answered with 0.9 and 0.3: +0.1."""

    def interval(generator: np.random.Generator, draws: int) -> Interval:
        target = np.repeat(generator.random(items) < 0.5, 4)
        answer = generator.random(4 * items) < np.where(target, 0.9, 0.3)
        difference = answer.astype(int) - target.astype(int)
        return ci95(bootstrap_mean(difference, ids(items, 4), int(generator.integers(2**32)), draws))

    return interval


def accuracy_per_mutation(items: int) -> Callable[[np.random.Generator, int], Interval]:
    """Items of different difficulty, of mean 0.85 when clean; every mutation costs 0.004."""

    def interval(generator: np.random.Generator, draws: int) -> Interval:
        p = generator.uniform(0.7, 1.0, size=(items, 1)) - 0.004 * MUTATIONS
        right = generator.random(p.shape) < p
        seed = int(generator.integers(2**32))
        return ci95(slope(np.tile(MUTATIONS, items), right.ravel(), ids(items, len(MUTATIONS)), seed, draws))

    return interval


def area_under_roc(items: int) -> Callable[[np.random.Generator, int], Interval]:
    """Normal scores, those of positives one standard deviation higher, rounded to tenths."""

    def interval(generator: np.random.Generator, draws: int) -> Interval:
        label = np.arange(items) % 2
        score = np.round(generator.normal(size=items) + label, 1)
        return ci95(roc_auc(label, score, ids(items), int(generator.integers(2**32)), draws))

    return interval


# What it is called, the truth, and how an interval for it is made.
SETTINGS: Sequence[tuple[str, float, Callable[[np.random.Generator, int], Interval]]] = (
    ("accuracy 0.80, 445 items, Wilson", 0.8, accuracy_wilson(0.8, 445)),
    ("accuracy 0.97, 445 items, Wilson", 0.97, accuracy_wilson(0.97, 445)),
    ("accuracy 0.80, 200 items, bootstrap", 0.8, accuracy_bootstrap(0.8, 200)),
    ("accuracy 0.97, 40 items, bootstrap *", 0.97, accuracy_bootstrap(0.97, 40)),
    ("accuracy 0.80, 150 items x 4 variants, by item", 0.8, accuracy_of_variants(150, rows_are_items=False)),
    ("accuracy 0.80, 150 items x 4 variants, by row *", 0.8, accuracy_of_variants(150, rows_are_items=True)),
    ("paired difference -0.072, 300 items", 0.85 * -0.12 + 0.15 * 0.2, paired_difference(300)),
    ("flip rate 0.10, 300 items, Wilson", 0.1, flip_rate(0.1, 300)),
    ("label bias +0.10, 150 items x 4 orders", 0.1, label_bias(150)),
    ("slope -0.004, 150 items x 6 mutation counts", -0.004, accuracy_per_mutation(150)),
    ("ROC AUC 0.760, 200 items", float(ndtr(1 / np.sqrt(2))), area_under_roc(200)),
)


def coverage(name: str, repetitions: int, draws: int = 2000, seed: int = 20) -> float:
    """The share of repetitions of a setting in which the interval holds the truth."""
    ((place, truth, interval),) = [(k, truth, made) for k, (n, truth, made) in enumerate(SETTINGS) if n == name]
    generators = [np.random.default_rng([seed, place, repetition]) for repetition in range(repetitions)]
    held = [low <= truth <= high for low, high in (interval(generator, draws) for generator in generators)]
    return sum(held) / repetitions


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    noise = 196 * (0.95 * 0.05 / repetitions) ** 0.5
    print(f"{repetitions} repetitions, 2000 bootstrap draws; a true 95 % shows as 95.0 % ± {noise:.1f}")
    print(f"{'setting':50} {'coverage':>8} {'seconds':>8}")
    for name, _, _ in SETTINGS:
        start = time.perf_counter()
        print(f"{name:50} {100 * coverage(name, repetitions):7.1f}% {time.perf_counter() - start:8.1f}", flush=True)


if __name__ == "__main__":
    main()
