"""What there is to say of a run's judges: how far a panel agrees, and what a score is without the judge's errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rambla_ray.display import counted


def judge_lines(scores: Mapping[str, Any]) -> Iterator[str]:
    """A line for each cell with a panel, for all of these where there are several, and for each corrected score."""
    panels = [cell for cell in scores["cells"] if cell.get("panel")]
    for cell in panels:
        yield f"{_where(cell)}: {_panel(cell['panel'])}"
    if len(panels) > 1 and (run := scores.get("panel")):
        yield f"the judges over all {len(panels)} rows: {_alpha(run['alpha'])}"
    for cell in scores["cells"]:
        if (found := cell.get("corrected")) and found["value"] is not None:
            yield (
                f"{_where(cell)}: corrected for the judge's errors {_share(found)}, where it found "
                f"{_share(cell['accuracy'])} right (sensitivity {_share(found['sensitivity'])}, specificity "
                f"{_share(found['specificity'])})"
            )


def judge_warnings(scores: Mapping[str, Any]) -> Iterator[str]:
    """What is to be known of panels and corrected scores before they are used: a line for each."""
    for cell in scores["cells"]:
        panel = cell.get("panel")
        if panel and (panel["fewer_votes"] or panel["ties"] or panel["no_votes"]):
            missing = [f"{one['missing']} of {one['judge']}" for one in panel["judges"] if one["missing"]]
            parts = [
                *([f"{counted(panel['fewer_votes'], 'sample')} had fewer votes"] if panel["fewer_votes"] else []),
                *([f"{counted(panel['ties'], 'sample')} had a tie"] if panel["ties"] else []),
                *([f"{counted(panel['no_votes'], 'sample')} had no vote"] if panel["no_votes"] else []),
            ]
            votes = f" (missing votes: {', '.join(missing)})" if missing else ""
            yield f"{_where(cell)}: of {panel['n']} judged by {len(panel['judges'])}, {', '.join(parts)}{votes}"
        for place, reason in cell.get("null_reasons", {}).items():
            if place in ("corrected", "corrected.value", "corrected.ci95"):
                what = "has no interval" if place == "corrected.ci95" else "is not there"
                if place != "corrected.ci95" or "corrected.value" not in cell["null_reasons"]:
                    yield f"{_where(cell)}: the score corrected for the judge's errors {what}: {reason}"
    if calibration := scores.get("judge_calibration"):
        if other := calibration.get("other_prompt"):
            yield (
                f"the judge's errors were measured with another prompt than that of {', '.join(other)} "
                f"({calibration['source']}): it may err there more, or less"
            )
        if calibration.get("synthetic") and not scores["synthetic"]:
            yield f"the judge's errors were measured on synthetic demo data ({calibration['source']})"


def _where(cell: Mapping[str, Any]) -> str:
    return f"{cell['model']} {cell['task']} {cell['variant']}".rstrip()


def _panel(panel: Mapping[str, Any]) -> str:
    agree = ", ".join(f"{one['judge']} {_share(one['agreement'], interval=False)}" for one in panel["judges"])
    return (
        f"{_alpha(panel['alpha'])}; with the majority agree {agree}; they differ on {panel['disagreed']['count']} of "
        f"{counted(panel['n'], 'sample')}"
    )


def _alpha(alpha: Mapping[str, Any]) -> str:
    if alpha["value"] is None:
        return "Krippendorff's alpha —"
    interval = f" ({alpha['ci95'][0]:.3f} to {alpha['ci95'][1]:.3f})" if alpha["ci95"] else ""
    return f"Krippendorff's alpha {alpha['value']:.3f}{interval}"


def _share(found: Mapping[str, Any] | None, *, interval: bool = True) -> str:
    if found is None or found["value"] is None:
        return "—"
    value = f"{100 * found['value']:.1f} %"
    if not interval or found["ci95"] is None:
        return value
    low, high = (100 * bound for bound in found["ci95"])
    return f"{value} ({low:.1f} to {high:.1f})"
