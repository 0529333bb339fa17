"""What it saves to stop when it is settled, and how often that is wrong, in simulations where the truth is known.

    python benchmarks/early_stop.py --runs 2000 --block 32

Each run asks items in a random order and looks after each block. Two models of given accuracies are right on the same
item with a correlation of their marks: it says how many items are discordant, that is, right for one of them alone.

    null         models as good as each other: how often any look decides, which is wrong, at 5 %
    dataset      the same about the items of one dataset, asked in a random order: how often a look decides between
                 models that are as good as each other on all of them, or an interval leaves out the mean over all
    gap          one is 10 points better, 890 items: how often that is decided, and after how many items on average;
                 beside it the n with which McNemar's exact test decides as often (99.9 % at most), if it looks once
    stakes       the mean number asked for that gap if the stake were spread by a Beta(a, a) of another a; and if the
                 error were divided among several comparisons
    width        items until the interval of an accuracy is as narrow as asked; beside it the n of Wilson's interval
    equivalence  models as good as each other: items until the 95 % interval of their difference is within ± a margin,
                 and the 90 % one; the n for 90 % power with two one-sided tests; how often the 90 % interval gets
                 there within 890 items where the difference is the margin, which is wrong
    others       mean widths after 890 items, beside other intervals that are valid at any time (other_intervals.py)
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from fixed_designs import ALPHA, equivalence_items, mcnemar_items, wilson_items
from numpy.typing import NDArray
from other_intervals import bernstein, hedged
from scipy import stats
from scipy.special import betaln
from simulated_pairs import Options, Pair

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rambla_ray.scoring.sequential import CONCENTRATION, RunningInterval, mean_interval, no_difference_p

Floats = NDArray[np.float64]
Goal = Callable[[float, float], bool]
Stop = tuple[int, float, float]  # After how many items, and the ends of the interval then.

ITEMS = 890
LONGEST = 20_000  # A run is given up there.
ACCURACIES = ((0.45, 0.55), (0.7, 0.8), (0.85, 0.95))
CORRELATIONS = (0.0, 0.25, 0.5)
WIDTHS = (0.1, 0.06)
STAKES = (CONCENTRATION, 1, 3, 12, 24)
PARTS = (2, 5, 10)
EQUIVALENCES = ((0.05, 0.03), (0.1, 0.03), (0.05, 0.05), (0.1, 0.05), (0.2, 0.05))  # Discordance and margin.


def decided_after(differences: Floats, options: Options) -> int | None:
    """The first look at which p is at most 5 %; None if none is. p only falls, so the looks are halved."""
    if no_difference_p(differences) > ALPHA:
        return None
    looks = options.looks(len(differences))
    first, last = 0, len(looks) - 1
    while first < last:
        middle = (first + last) // 2
        is_decided = no_difference_p(differences[: looks[middle]]) <= ALPHA
        first, last = (first, middle) if is_decided else (middle + 1, last)
    return looks[first]


def stops(interval: RunningInterval, values: Floats, options: Options, goals: Sequence[Goal]) -> list[Stop | None]:
    """For each goal the first look at which the interval meets it; None if it never does."""
    met: list[Stop | None] = [None] * len(goals)
    begin = 0
    for look in options.looks(len(values)):
        interval.add(values[begin:look])
        begin, ends = look, interval.ends
        met = [stop or ((look, *ends) if goal(*ends) else None) for stop, goal in zip(met, goals, strict=True)]
        if all(met):
            break
    return met


def mean_items(all_stops: Sequence[Stop | None], most: int) -> float:
    """How many items were asked on average, where those that never stop ask `most`."""
    return float(np.mean([stop[0] if stop else most for stop in all_stops]))


# Each of these makes the lines of a table for one setting.


def null(options: Options, discordance: float, cells: int, items: int) -> str:
    """How often models that are as good as each other are told apart, each item's difference being a mean of cells."""
    pair = Pair.apart(0, discordance)
    draws = (pair.draw(generator, items, cells) for generator in options.generators(1, discordance, cells, items))
    wrong = sum(decided_after(differences, options) is not None for differences in draws)
    return f"{discordance:11.2f} {cells:6} {items:6} {options.share(wrong):>22}"


def dataset(options: Options, name: str, values: Floats) -> str:
    """How often an interval of the mean of all values leaves it out, when they are asked in a random order."""
    truth, low, wrong = float(values.mean()), float(min(0, values.min())), 0
    options = replace(options, block=4 * options.block)  # Bounds hold what was found between looks.
    for generator in options.generators(2, truth, len(np.unique(values)), float((values != 0).mean())):
        goals = [lambda least, most: not least - 1e-9 <= truth <= most + 1e-9]
        wrong += stops(RunningInterval(ALPHA, low, 1), generator.permutation(values), options, goals) != [None]
    return f"{name:32} {options.share(wrong):>22}"


def gap(options: Options, first: float, second: float, correlation: float) -> str:
    """How soon a gap is decided."""
    pair = Pair.of(first, second, correlation)
    draws = (pair.draw(generator, ITEMS) for generator in options.generators(3, first, second, correlation))
    after = [decided_after(differences, options) for differences in draws]
    decided = [look for look in after if look is not None]
    asked, power = float(np.mean([look or ITEMS for look in after])), len(decided) / options.runs
    alone = mcnemar_items(pair.won, pair.lost, min(power, 0.999))
    return (
        f"{first:5.2f} {second:5.2f} {correlation:5.2f} {pair.discordance:5.3f} {options.share(len(decided)):>22} "
        f"{np.median([look or ITEMS for look in after]):7.0f} {asked:7.0f} {100 * (1 - asked / ITEMS):6.0f} % "
        f"{alone:8} {asked / alone:8.2f}"
    )


def stakes(options: Options, first: float, second: float, correlation: float) -> str:
    """The mean number of items asked with other stakes, and with a part of the error, by the formula for pairs."""
    draws = options.generators(3, first, second, correlation)
    signs = np.stack([Pair.of(first, second, correlation).draw(generator, ITEMS) for generator in draws])
    looks = np.array(options.looks(ITEMS))
    won, lost = ((signs == sign).cumsum(axis=1) for sign in (1, -1))
    more, fewer = np.ogrid[: won.max() + 1, : lost.max() + 1]
    asked = []
    for a, parts in (*((a, 1) for a in STAKES), *((CONCENTRATION, parts) for parts in PARTS)):
        needed = np.log(2 * parts / ALPHA)
        is_rejected = np.maximum(_log_mixture(a, more, fewer), _log_mixture(a, fewer, more)) >= needed
        decided = np.logical_or.accumulate(is_rejected[won, lost], axis=1)[:, looks - 1]
        asked.append(np.where(decided.any(axis=1), looks[decided.argmax(axis=1)], ITEMS).mean())
    return f"{first:5.2f} {second:5.2f} {correlation:5.2f} {' '.join(f'{one:7.0f}' for one in asked)}"


def _log_mixture(a: float, won: NDArray[np.int64], lost: NDArray[np.int64]) -> Floats:
    """The log of 2 ∫ from 1/2 to 1 of (2q)^won (2 - 2q)^lost dBeta(q; a, a)."""
    above = stats.beta.logsf(0.5, a + won, a + lost)
    wealth: Floats = (won + lost + 1) * np.log(2) + betaln(a + won, a + lost) - betaln(a, a) + above
    return wealth


def width(options: Options, accuracy: float) -> str:
    """How soon the interval of an accuracy is narrow enough, and how often it holds the truth then."""
    goals: list[Goal] = [lambda low, high, most=most: high - low <= most for most in WIDTHS]  # type: ignore[misc]
    draws = ((generator.random(LONGEST) < accuracy).astype(float) for generator in options.generators(4, accuracy))
    met = [stops(RunningInterval(ALPHA), values, options, goals) for values in draws]
    lines = []
    for most, ends in zip(WIDTHS, zip(*met, strict=True), strict=True):
        asked, alone = mean_items(ends, LONGEST), wilson_items(accuracy, most)
        held = sum(stop is not None and stop[1] <= accuracy <= stop[2] for stop in ends)
        lines.append(
            f"{accuracy:8.2f} {most:6.2f} {asked:7.0f} {alone:8} {asked / alone:8.2f} {options.share(held):>22}"
        )
    return "\n".join(lines)


def equivalence(options: Options, discordance: float, margin: float) -> str:
    """How soon models that are as good as each other are found so, and how often models that are not."""

    def ends(level: float, pair: Pair, items: int) -> list[Stop | None]:
        goals = [lambda low, high: -margin < low and high < margin]
        draws = (pair.draw(generator, items) for generator in options.generators(5, discordance, margin, pair.won))
        return [stops(RunningInterval(level, -1, 1), differences, options, goals)[0] for differences in draws]

    alike, apart = Pair.apart(0, discordance), Pair.apart(margin, discordance)
    strict, enough = ends(ALPHA, alike, LONGEST), ends(2 * ALPHA, alike, LONGEST)
    by_then = sum(stop is not None and stop[0] <= ITEMS for stop in enough)
    wrong = sum(stop is not None for stop in ends(2 * ALPHA, apart, ITEMS))
    return (
        f"{discordance:11.2f} {margin:6.2f} {mean_items(strict, LONGEST):8.0f} {mean_items(enough, LONGEST):8.0f} "
        f"{100 * by_then / options.runs:6.0f} % {equivalence_items(discordance, margin, 0.9):8} "
        f"{options.share(wrong):>22}"
    )


def others(options: Options, name: str, draw: Callable[[np.random.Generator], Floats], scale: float) -> str:
    """Mean widths after the same values, for a tenth of the runs."""
    fewer = Options(max(1, options.runs // 10), options.block, options.seed)
    values = [draw(generator) for generator in fewer.generators(6, len(name))]
    widths = [
        scale * np.mean([high - low for low, high in (interval(one, ALPHA) for one in values)])
        for interval in (mean_interval, hedged, bernstein)
    ]
    return f"{name:40} {' '.join(f'{one:9.4f}' for one in widths)}"


def marks(accuracy: float, generator: np.random.Generator) -> Floats:
    """Whether 890 items were right, 1 or 0."""
    return (generator.random(ITEMS) < accuracy).astype(float)


def differences_from_0(pair: Pair, cells: int, generator: np.random.Generator) -> Floats:
    """The differences of 890 items, moved from -1 to 1 to 0 to 1."""
    return (1 + pair.draw(generator, ITEMS, cells)) / 2


def tables(options: Options) -> Iterator[tuple[str, str, Sequence[Callable[[], str]]]]:
    """The name of each table, its head, and what makes its lines."""
    gaps = [(*pair, correlation) for pair in ACCURACIES for correlation in CORRELATIONS]
    settings = [(items, *one) for items in (ITEMS, 5000) for one in ((0.05, 1), (0.2, 1), (0.4, 1), (0.2, 4))]
    head = f"{'discordance':>11} {'cells':>6} {'items':>6} {'decided':>22}"
    yield "null", head, [partial(null, options, share, cells, items) for items, share, cells in settings]
    wholes = [(f"{right} of 890 right", np.repeat([1.0, 0.0], [right, ITEMS - right])) for right in (445, 712, 846)]
    wholes += [
        (f"{won} won, {won} lost, of 890", np.repeat([1.0, -1, 0], [won, won, ITEMS - 2 * won])) for won in (45, 178)
    ]
    yield "dataset", f"{'dataset':32} {'left out':>22}", [partial(dataset, options, *one) for one in wholes]
    head = (
        f"{'accuracies':>11} {'corr.':>5} {'disc.':>5} {'decided':>22} {'median':>7} {'asked':>7} {'saved':>8} "
        f"{'fixed n':>8} {'× fixed':>8}"
    )
    yield "gap", head, [partial(gap, options, *one) for one in gaps]
    spread = [*(f"a = {a:.0f}" for a in STAKES), *(f"5 % / {parts}" for parts in PARTS)]
    head = f"{'accuracies':>11} {'corr.':>5} {' '.join(f'{one:>7}' for one in spread)}"
    yield "stakes", head, [partial(stakes, options, *one) for one in gaps]
    head = f"{'accuracy':>8} {'width':>6} {'asked':>7} {'fixed n':>8} {'× fixed':>8} {'held':>22}"
    yield "width", head, [partial(width, options, accuracy) for accuracy in (0.5, 0.8, 0.95)]
    head = (
        f"{'discordance':>11} {'margin':>6} {'at 95 %':>8} {'at 90 %':>8} {'by 890':>8} {'fixed n':>8} {'wrong':>22}"
    )
    yield "equivalence", head, [partial(equivalence, options, *one) for one in EQUIVALENCES]
    lines = [partial(others, options, f"an accuracy of {one}", partial(marks, one), 1) for one in (0.5, 0.8, 0.95)]
    for share, cells in ((0.2, 1), (0.4, 1), (0.4, 4)):
        draw, name = (
            partial(differences_from_0, Pair.apart(0.1, share), cells),
            f"a difference, {share} of {cells} discordant",
        )
        lines.append(partial(others, options, name, draw, 2))
    yield "others", f"{'width after 890 items of':40} {'ours':>9} {'hedged':>9} {'bernstein':>9}", lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--block", type=int, default=32, help="items between two looks")
    parser.add_argument("--seed", type=int, default=18)
    parser.add_argument("--only", default="", help="only tables whose name begins so")
    parser.add_argument("--processes", type=int, default=2)
    words = parser.parse_args()
    print(f"{words.runs} runs, a look after every {words.block} items, 5 %; shares with their 95 % interval")
    with ProcessPoolExecutor(words.processes) as pool:
        for name, head, lines in tables(Options(words.runs, words.block, words.seed)):
            if name.startswith(words.only):
                print(f"\n{name}\n{head}", flush=True)
                for line in [pool.submit(one) for one in lines]:
                    print(line.result(), flush=True)


if __name__ == "__main__":
    main()
