"""The page of the extinction experiment: curves as inline SVG, the table, the marks. One file without anything to load."""
import html
import statistics

CHARTS = [
    ("The carrier, its balancer and its revivers", "rare", ["loss_free", "gate_balancer", "mimic", "redo", "drop", "ours"]),
    ("Protections", "rare", ["exempt", "exempt_dense", "gate_balancer_learned", "exempt_learned", "ours_learned", "ours"]),
    ("Without a carrier", "rare", ["loss_free", "replay", "ewc", "ours_no_i6", "dense_params", "ours"]),
    ("ours, and ours without one part", "rare", ["ours", "ours_no_i1", "ours_no_i2", "ours_no_i4", "ours_no_i5", "ours_no_i6"]),
    ("Weaker anchors", "rare", ["ours_no_i4", "ours_anchor_10", "ours_anchor_100", "ours"]),
    ("Ordinary training", "rare", ["none", "aux_micro", "aux_global", "loss_free", "quantile", "hash"]),
    ("What it costs the common domains", "common", ["loss_free", "gate_balancer", "mimic", "ewc", "replay", "ours"]),
]
FIELDS = {"rare": (1, "rare facts known"), "common": (3, "common loss above the optimum, nats")}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 300, 48, 140, 12, 34

STYLE = """
:root { --paper: #fbfbf9; --ink: #1d2327; --soft: #6a737b; --line: #d9dcdd; --dry: #f1ead9;
        --c0: #1f6fb2; --c1: #c8541b; --c2: #2c8a57; --c3: #8c4fa8; --c4: #b0365a; --c5: #7a6a10; }
@media (prefers-color-scheme: dark) {
:root { --paper: #16191c; --ink: #e4e7e9; --soft: #98a2aa; --line: #343b41; --dry: #272318;
        --c0: #6cb2ee; --c1: #f09158; --c2: #66c896; --c3: #c595e0; --c4: #f07a9a; --c5: #d2bf55; } }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 1100px; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .6rem; text-align: left; white-space: nowrap; } td.text { white-space: normal; }
svg { width: 100%; max-width: 760px; height: auto; } svg text { font-size: 11px; fill: var(--soft); } code { font-size: 13px; }
.passed { color: var(--c2); } .failed { color: var(--c4); }
"""


def series(rows, arm, field):
    """Steps, means and deviations over the seeds of an arm."""
    curves = [r["curve"] for r in rows if r["arm"] == arm]
    if not curves:
        return None
    points = list(zip(*curves))
    steps = [p[0][0] for p in points]
    found = [[c[field] for c in p] for p in points]
    return steps, [statistics.fmean(v) for v in found], [statistics.stdev(v) if len(v) > 1 else 0 for v in found]


def nice_top(x):
    for top in (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5):
        if x <= top:
            return top
    return x


def chart(rows, kind, arms):
    field, label = FIELDS[kind]
    found = [(arm, series(rows, arm, field)) for arm in arms]
    found = [(arm, s) for arm, s in found if s]
    if len(found) < 2:          # nothing to compare
        return ""
    a, b, c = (rows[0][k] for k in ("steps_a", "steps_b", "steps_c"))
    start = a // 3 if kind == "common" else 0         # the common loss falls from 3 nats at first
    top = 1 if kind == "rare" else nice_top(max(m for _, s in found for step, m in zip(s[0], s[1]) if step >= start))
    x = lambda step: LEFT + (WIDTH - LEFT - RIGHT) * (step - start) / max(a + b + c - start, 1)
    y = lambda v: TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(v, 0), top) / top)
    out = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}">',
           f'<rect x="{x(a):.1f}" y="{TOP}" width="{x(a + b) - x(a):.1f}" height="{HEIGHT - TOP - BOTTOM}" fill="var(--dry)"/>']
    for i in range(5):
        v = top * i / 4
        out.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(v):.1f}" y2="{y(v):.1f}" stroke="var(--line)"/>'
                   f'<text x="{LEFT - 6}" y="{y(v) + 4:.1f}" text-anchor="end">{v:g}</text>')
    for name, middle in (("A: mixed", (max(start, 0) + a) / 2), ("B: drought", a + b / 2), ("C: return", a + b + c / 2)):
        if name[0] == "C" and not c:
            continue
        out.append(f'<text x="{x(middle):.1f}" y="{HEIGHT - 18}" text-anchor="middle">{name}</text>')
    out.append(f'<text x="{LEFT}" y="{HEIGHT - 4}">{label}, over {a + b + c} steps; bands: one standard deviation</text>')
    ends = []
    for i, (arm, (steps, means, deviations)) in enumerate(found):
        points = [(s, m, d) for s, m, d in zip(steps, means, deviations) if s >= start]
        band = " ".join(f"{x(s):.1f},{y(m + d):.1f}" for s, m, d in points) + " " + " ".join(f"{x(s):.1f},{y(m - d):.1f}" for s, m, d in reversed(points))
        out.append(f'<polygon points="{band}" fill="var(--c{i})" opacity="0.15"/>')
        out.append(f'<polyline points="{" ".join(f"{x(s):.1f},{y(m):.1f}" for s, m, _ in points)}" fill="none" stroke="var(--c{i})" stroke-width="1.8"/>')
        ends.append([y(points[-1][1]) + 4, i, arm])
    ends.sort()
    for before, after in zip(ends, ends[1:]):         # names beside the ends of their curves, one below the other
        after[0] = max(after[0], before[0] + 13)
    shift = max(0, ends[-1][0] - (HEIGHT - BOTTOM + 6))
    for at, i, arm in ends:
        out.append(f'<text x="{WIDTH - RIGHT + 6}" y="{at - shift:.1f}" style="fill: var(--c{i})">{html.escape(arm)}</text>')
    return "".join(out) + "</svg>"


def write(rows, arms, marks, columns, command, path):
    """arms: name -> what; marks: (name, verdict, figures); columns: (key, title, cell of an arm)."""
    out = ["<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>The extinction experiment</title>",
           f"<style>{STYLE}</style><h1>The extinction experiment</h1><p><code>{html.escape(command)}</code></p>",
           f"<p>{len({r['seed'] for r in rows})} seeds, {len({r['arm'] for r in rows})} arms. What is measured, and what passes: README.md.</p>"]
    out.append("<h2>Pass marks</h2><div class=scroll><table><tr><th>mark<th>verdict<th>figures</tr>")
    for name, verdict, figures in marks:
        out.append(f"<tr><td>{html.escape(name)}<td class={verdict.split()[0]}>{verdict}<td class=text>{html.escape(figures)}</tr>")
    out.append("</table></div>")
    for title, kind, shown in CHARTS:
        drawn = chart(rows, kind, shown)
        if drawn:
            out.append(f"<h2>{html.escape(title)}</h2>{drawn}")
    out.append("<h2>All arms</h2><div class=scroll><table><tr><th>arm" + "".join(f"<th>{html.escape(title)}" for _, title, _ in columns) + "<th>what</tr>")
    for arm, what in arms.items():
        if any(r["arm"] == arm for r in rows):
            out.append(f"<tr><td>{html.escape(arm)}" + "".join(f"<td>{make(arm)}" for _, _, make in columns) + f"<td>{html.escape(what)}</tr>")
    out.append("</table></div></html>")
    with open(path, "w", encoding="utf-8") as file:
        file.write("\n".join(out) + "\n")
