"""Checks the alert rules and the Grafana board against the table of metrics.

Usage: python watch.py METRICS.md ALERTS.yml BOARD.json

Every metric that an expression names is in the table, and every label that it is asked or grouped by is one of that metric's. Panels of
the board do not overlap. Prints what was found; that expressions are valid PromQL is left to promtool.
"""

import itertools
import json
import pathlib
import re
import sys

import yaml

# Of every series, by whoever reads it.
SCRAPED = {"job", "instance", "le"}
# Prometheus' own.
BUILT_IN = {"up"}


def main() -> None:
    table, alerts, board = (pathlib.Path(name).read_text() for name in sys.argv[1:])
    known = metrics(table)
    rules = [rule for group in yaml.safe_load(alerts)["groups"] for rule in group["rules"]]
    for rule in rules:
        check(rule["expr"], known, rule["alert"])
        require(rule["labels"]["severity"] in ("page", "ticket"), f"{rule['alert']}: no severity")
        require({"summary", "description"} == set(rule["annotations"]), f"{rule['alert']}: what to do?")
        for label in re.findall(r"\$labels\.(\w+)", str(rule["annotations"])):
            named = re.findall(r"\bsluicegate_\w+|\bup\b", rule["expr"])
            have = set().union(*(known.get(base(name, known), set()) for name in named)) | SCRAPED
            require(label in have, f"{rule['alert']}: no label {label}")
    require(len({rule["alert"] for rule in rules}) == len(rules), "two rules have one name")
    board = json.loads(board)
    panels = board["panels"]
    require(len({panel["id"] for panel in panels}) == len(panels), "two panels have one id")
    for one, other in itertools.combinations(panels, 2):
        require(not overlap(one["gridPos"], other["gridPos"]), f"{one['title']} lies over {other['title']}")
    drawn = [panel for panel in panels if panel["type"] != "row"]
    for panel in drawn:
        require(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24, f"{panel['title']} is too wide")
        require(panel["targets"], f"{panel['title']} shows nothing")
        for target in panel["targets"]:
            check(target["expr"], known, panel["title"])
            grouped = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
            for label in grouped:
                require(label in labels_of(target["expr"], known), f"{panel['title']}: no label {label}")
            for variable in re.findall(r"\$(\w+)", target["expr"]):
                names = {each["name"] for each in board["templating"]["list"]} | {"__rate_interval"}
                require(variable in names, f"{panel['title']}: no variable {variable}")
    for variable in board["templating"]["list"]:
        check(variable.get("definition", ""), known, variable["name"])
    print(f"{len(rules)} rules, {len(drawn)} panels, {len(known)} metrics known")


def metrics(table: str) -> dict:
    """The labels of each metric, histograms under the names of their series."""
    known = {}
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) < 5 or not cells[0].startswith("`sluicegate_"):
            continue
        name, labels = cells[0].strip("`"), set(re.findall(r"`(\w+)`", cells[2]))
        if cells[1] == "histogram":
            known |= {f"{name}_{part}": labels for part in ("bucket", "count", "sum")}
        else:
            known[name] = labels
    return known


def base(name: str, known: dict) -> str:
    return name if name in known or name in BUILT_IN else ""


def check(expr: str, known: dict, where: str) -> None:
    for name, selector in re.findall(r"\b(sluicegate_\w+|up\b)(?:\{([^}]*)\})?", expr):
        require(name in known or name in BUILT_IN, f"{where}: there is no {name}")
        for label in re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector):
            require(label in known.get(name, set()) | SCRAPED, f"{where}: {name} has no label {label}")
    for group in re.findall(r"\bby \(([^)]*)\)", expr):
        for label in re.split(r"\s*,\s*", group):
            require(label in labels_of(expr, known), f"{where}: grouped by {label}, which nothing has")


def labels_of(expr: str, known: dict) -> set:
    return set().union(*(known.get(name, set()) for name in re.findall(r"\bsluicegate_\w+", expr))) | SCRAPED


def overlap(one: dict, other: dict) -> bool:
    beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return not (beside or below)


def require(holds: object, otherwise: str) -> None:
    if not holds:
        sys.exit(otherwise)


main()
