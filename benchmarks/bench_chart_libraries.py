"""One histogram of error over bound, drawn by each chart library that is installed and by reports/charts.py.

Prints what decides whether a library can draw in the report: time, bytes, what a strict Content-Security-Policy blocks
(style attributes, style elements without a hash, scripts), and what follows light and dark (classes).

    pip install pygal matplotlib altair vl-convert-python
    python benchmarks/bench_chart_libraries.py
"""

from __future__ import annotations

import importlib.util
import io
import re
import subprocess
import sys
import time

EDGES = [-8.0, -6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0]
COUNTS = [60378, 694, 2613, 3346, 6732, 4943, 7015, 10029, 6385, 7685, 12, 3, 0, 1, 0, 0, 0]
NAMES = ["exact", *(f"2^{edge:g}" for edge in EDGES)]


def own() -> str:
    """Draw with the report's own geometry and template."""
    from harness.records.record import Histogram
    from reports.charts import histogram_chart
    from reports.template import environment

    template = environment().get_template("charts.html.j2").module
    return str(template.histogram("gemm", ["GEMM"], histogram_chart(Histogram(EDGES, COUNTS))))  # type: ignore[attr-defined]


def pygal() -> str:
    """Draw with pygal."""
    import pygal as library

    chart = library.Bar(
        logarithmic=True, width=400, height=190, show_legend=False, js=[], disable_xml_declaration=True
    )
    chart.x_labels = NAMES
    chart.add("elements", [count or None for count in COUNTS])
    return str(chart.render())


def matplotlib() -> str:
    """Draw with matplotlib's SVG backend."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(4, 1.9))
    axes.bar(range(len(COUNTS)), COUNTS)
    axes.set_yscale("log")
    target = io.StringIO()
    figure.savefig(target, format="svg", metadata={"Date": None})
    return target.getvalue()


def altair() -> str:
    """Draw with Vega-Lite, through altair and vl-convert."""
    import altair as alt

    data = alt.Data(
        values=[{"bin": name, "n": count or 0.5} for name, count in zip(NAMES, COUNTS, strict=True)]
    )
    chart = alt.Chart(data, width=340, height=150).mark_bar(color="var(--bar)")
    chart = chart.encode(x=alt.X("bin:N", sort=None), y=alt.Y("n:Q", scale=alt.Scale(type="log")))
    target = io.StringIO()
    chart.save(target, format="svg")
    return target.getvalue()


LIBRARIES = {function.__name__: function for function in (own, pygal, matplotlib, altair)}


def main() -> None:
    """Draw with each library in a process of its own, so that importing is part of the time."""
    if len(sys.argv) > 1:
        started = time.perf_counter()
        drawn = LIBRARIES[sys.argv[1]]()
        seconds = time.perf_counter() - started
        found = {word: len(re.findall(word, drawn)) for word in ("style=", "<style", "<script", "class=")}
        print(f"{sys.argv[1]:12} {seconds:5.2f} s  {len(drawn.encode()):7,} bytes  {found}")
        return
    for name in LIBRARIES:
        if name != "own" and importlib.util.find_spec(name) is None:
            print(f"{name:12} is not installed")
            continue
        subprocess.run([sys.executable, __file__, name], check=True)  # noqa: S603 - this file itself


if __name__ == "__main__":
    main()
