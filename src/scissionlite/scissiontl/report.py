"""The report: one self-contained HTML page with both figures and the table of plans."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from scissionlite.atomic_folder import atomic_file
from scissionlite.scissiontl.constraints import Constraints
from scissionlite.scissiontl.figures import pareto_figure, split_figure
from scissionlite.scissiontl.planner import pareto
from scissionlite.scissiontl.plans import Plan
from scissionlite.scissiontl.profile import Profile

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = (
    "rank",
    "machines",
    "slicing point",
    "what crosses",
    "latency, ms",
    "device, ms",
    "transfer, ms",
    "edge, ms",
    "sent, kB",
    "a second",
    "leakage",
    "drop before training",
    "accuracy",
    "energy, mJ",
)
"""Columns of the report's table."""

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 76rem; padding: 0 1rem;
       color: #222; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
img { max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: 0.85rem; width: 100%; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: right; }
th:nth-child(-n+4), td:nth-child(-n+4) { text-align: left; }
tr.front td { font-weight: 600; }
dt { font-weight: 600; } dd { margin: 0 0 0.4rem 0; }
"""


def write_report(
    path: str | Path,
    plans: Sequence[Plan],
    profiles: Sequence[Profile],
    link: str,
    *,
    constraints: Constraints | None = None,
    every: Sequence[Plan] | None = None,
    best_private: Plan | None = None,
    top: int = 30,
) -> None:
    """Write a self-contained page.

    Parameters
    ----------
    path
        The HTML file.
    plans
        Ranked plans, best first.
    profiles
        Profiles of all machines.
    link
        Text that describes the link.
    constraints
        The limits that the plans keep.
    every
        The plans without the constraints, for the figures, which so show the excluded plans too.
        By default the plans themselves.
    best_private
        The best plan under the privacy constraints alone, to be marked in the figure.
    top
        Number of plans in the table, beside those of the Pareto front.
    """
    every = every or plans
    front = pareto(plans)
    shown = [*plans[:top], *(p for p in plans[top:] if p in front)]
    rows = "\n".join(_row(p, plans.index(p) + 1, p in front) for p in shown)
    head = "".join(f"<th>{escape(column)}</th>" for column in COLUMNS)
    facts = {
        "Network": profiles[0].model,
        "Machines": "; ".join(_machine(profile) for profile in profiles),
        "Link": link,
        "Constraints": _constraints(constraints),
        "Codecs": "; ".join(
            f"{profile.name}: {profile.entropy_note or 'measured with images.'}"
            for profile in profiles
        ),
        "Best": f"{plans[0].label}, cut at {plans[0].place}: "
        f"{plans[0].predicted.latency * 1e3:.1f} ms predicted",
    }
    fact_list = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts.items())
    title = f"ScissionTL: {profiles[0].model}"
    page = f"""<!DOCTYPE html>
<html lang="en">
<head><meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style></head>
<body>
<h1>{escape(title)}</h1>
<dl>{fact_list}</dl>
<h2>Latency by slicing point</h2>
{_image(split_figure(_one_pair(every), best_private), "Latency by slicing point")}
<h2>What nothing beats</h2>
{_image(pareto_figure(every), "Pareto front of latency and bytes, and of latency and leakage")}
<h2>Plans ({len(plans)} satisfy the constraints; those of the Pareto front in bold)</h2>
<table><thead><tr>{head}</tr></thead><tbody>
{rows}
</tbody></table>
</body>
</html>
"""
    with atomic_file(path) as file:
        file.write_text(page, encoding="utf-8")


def _row(plan: Plan, rank: int, on_front: bool) -> str:
    cost = plan.predicted
    cells = [
        str(rank),
        " to ".join(plan.machines),
        plan.place,
        plan.label,
        f"{cost.latency * 1e3:.1f}",
        f"{cost.device_stage * 1e3:.1f}",
        f"{(cost.transfer_time + cost.offload_time + cost.relay_time) * 1e3:.1f}",
        f"{(cost.decode_time + cost.edge_time + cost.cloud_time) * 1e3:.1f}",
        f"{cost.sent_bytes / 1e3:.2f}",
        f"{cost.throughput:.1f}",
        "" if cost.leakage is None else f"{cost.leakage:.2f}",
        "" if cost.drop is None else f"{cost.drop:.1%}",
        "" if plan.accuracy is None else f"{plan.accuracy:.2%}",
        "" if cost.energy is None else f"{cost.energy * 1e3:.1f}",
    ]
    body = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
    front = ' class="front"' if on_front else ""
    return f"<tr{front}>{body}</tr>"


def _one_pair(plans: Sequence[Plan]) -> list[Plan]:
    """The plans of the two machines that the best split uses, and those of its device alone."""
    best = next((p for p in plans if p.kind == "split" and p.second is None), plans[0])
    pair = (best.device, best.edge)
    return [p for p in plans if p.second is None and (p.device, p.edge) in (pair, (pair[0], ""))]


def _machine(profile: Profile) -> str:
    text = f"{profile.name}, {profile.runtime}"
    if profile.slowdown != 1:
        text += f", imagined {profile.slowdown:g} times slower"
    if profile.host is not None:
        text += f", {profile.host.cpu}, {profile.host.threads} thread(s)"
    return text


def _constraints(constraints: Constraints | None) -> str:
    fields = {} if constraints is None else constraints.active()
    return ", ".join(f"{name} {value}" for name, value in fields.items()) or "none"


def _image(figure: Figure, text: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(text)}" src="data:image/png;base64,{data}">'
