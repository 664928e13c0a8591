#!/usr/bin/python3
"""Draws a file of bench/results: one picture for each table, a place and a guest.

    charts.py bench/results/NAME.json FOLDER     writes FOLDER/bench-PLACE-GUEST.svg

A bar is the median, the line on it goes from the least to the most; figures of one unit share an axis.
The same results give the same bytes.
"""

import itertools
import json
import os
import sys

import matplotlib

matplotlib.use("svg")
# Text stays text, and names within the file do not change from run to run.
matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "cocoon", "font.size": 9})
from matplotlib import pyplot  # noqa: E402

COLOURS = {"cocoon": "#2b6cb0", "micro": "#2b6cb0", "cloud-hypervisor": "#dd8a3e"}
OTHER = "#8a8f98"
BAR = 0.38
INCHES_A_BAR = 0.22


def draw(title, figures, path):
    """Draws the figures of one table, an axis for each unit."""
    units = [(unit, list(group)) for unit, group in itertools.groupby(
        sorted(figures, key=lambda figure: figure["unit"]), lambda figure: figure["unit"])]
    heights = [len(group) + 2 for _, group in units]
    picture, axes = pyplot.subplots(
        len(units), squeeze=False, layout="constrained",
        figsize=(8, 0.5 + INCHES_A_BAR * sum(heights)), gridspec_kw={"height_ratios": heights})
    picture.suptitle(title)
    shown = {}
    for (unit, group), axis in zip(units, axes[:, 0]):
        shown.update(draw_unit(axis, unit, group))
    axes[0, 0].legend(shown.values(), shown.keys(), loc="lower right", bbox_to_anchor=(1, 1), ncol=len(shown), frameon=False)
    picture.savefig(path, metadata={"Date": None})
    pyplot.close(picture)


def draw_unit(axis, unit, figures):
    """Draws the figures of one unit, in their order from above; returns a bar of each engine."""
    names = list(dict.fromkeys(label(figure) for figure in figures))
    engines = list(dict.fromkeys(figure["engine"] for figure in figures))
    shown = {}
    for figure in figures:
        height = BAR * 2 / len(engines)
        place = names.index(label(figure)) - BAR + height * (engines.index(figure["engine"]) + 0.5)
        median = figure["median"]
        around = [[median - figure["min"]], [figure["max"] - median]]
        shown[figure["engine"]] = axis.barh(
            place, median, height, xerr=around, color=COLOURS.get(figure["engine"], OTHER),
            error_kw={"elinewidth": 0.8, "ecolor": "#333333"})
        axis.annotate(number(median), (figure["max"], place), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    # A clone takes milliseconds and a boot seconds: both are to be seen.
    axis.set_xscale("log")
    axis.set_xlabel(unit)
    axis.margins(x=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    return shown


def number(value):
    """Three digits, or all that stand before the point."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def label(figure):
    """What a figure is called: with the guest's memory, if it has any."""
    return f'{figure["figure"]}, {figure["mib"]} MiB' if figure["mib"] else figure["figure"]


def main(results, folder):
    with open(results) as file:
        kept = json.load(file)
    os.makedirs(folder, exist_ok=True)
    host = kept["host"]
    by_table = lambda figure: (figure["where"], figure["guest"])
    for (where, guest), figures in itertools.groupby(kept["figures"], by_table):
        title = f'{where}, {guest}: cocoon {kept["revision"]}, {kept["date"]}, {host["cpus"]} x {host["cpu"]}'
        draw(title, list(figures), os.path.join(folder, f"bench-{where}-{guest}.svg"))


if __name__ == "__main__":
    main(*sys.argv[1:])
