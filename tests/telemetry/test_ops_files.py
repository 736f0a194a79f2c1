"""The dashboard and the alert rules: every expression parses, and every name and label in it is really served."""

from __future__ import annotations

import json
import re
from pathlib import Path

import promql_parser
import pytest
import yaml

OPS = Path(__file__).parents[2] / "ops"
DASHBOARD = json.loads((OPS / "grafana-dashboard.json").read_text())
ALERTS = yaml.safe_load((OPS / "alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
#: What Grafana puts in.
_GRAFANA = {"$__rate_interval": "1m", "$process": ".*"}


def panels():
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expr = target["expr"]
            for name, value in _GRAFANA.items():
                expr = expr.replace(name, value)
            yield pytest.param(expr, target["legendFormat"], id=f"{panel['title']}: {target['legendFormat']}")


def selectors(node):
    """Every vector selector of an expression, and the labels that each aggregation around it keeps."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        inner = getattr(node, name, None)
        if inner is not None:
            yield from selectors(inner)
    for inner in getattr(node, "args", ()) or ():
        yield from selectors(inner)


def kept(expr):
    return {label.strip() for group in re.findall(r"by \((.*?)\)", expr) for label in group.split(",")} - {"le"}


def check(expr, served):
    """Parse, and find each selector in what is served: the name, its labels, and values of those labels."""
    found = list(selectors(promql_parser.parse(expr)))
    assert found, expr
    for selector in found:
        series = served.get(selector.name)
        assert series is not None, f"{selector.name} is not served"
        labels = {name for one in series for name in one}
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels, f"{selector.name} has no label {matcher.name}"
            if matcher.name == "process":
                continue
            values = {one[matcher.name] for one in series}
            for wanted in matcher.value.split("|"):
                assert wanted in values, f"{selector.name}: {matcher.name} is never {wanted!r}, only {sorted(values)}"
        assert kept(expr) <= labels, f"{selector.name} lacks one of {kept(expr)}"
    return found


async def test_every_panel_shows_something_that_is_served(served):
    """Names, labels and legends of the Grafana dashboard."""
    for param in panels():
        expr, legend = param.values
        found = check(expr, served)
        for label in re.findall(r"{{(\w+)}}", legend):
            assert label in {name for one in served[found[0].name] for name in one}, f"{param.id}: no {label}"
            assert not kept(expr) or label in kept(expr), f"{param.id}: {label} is summed away"


async def test_every_alert_watches_something_that_is_served(served):
    """Names and labels of the rules; each says how bad it is, what happened, and what to do."""
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 12
    for rule in RULES:
        check(rule["expr"], served)
        assert rule["labels"]["severity"] in {"page", "ticket"}
        text = rule["annotations"]["summary"]
        assert len(rule["annotations"]["action"]) > 20
        for label in re.findall(r"\$labels\.(\w+)", text):
            names = {
                name
                for selector in selectors(promql_parser.parse(rule["expr"]))
                for one in served[selector.name]
                for name in one
            }
            assert label in (kept(rule["expr"]) or names), f"{rule['alert']}: no label {label}"


async def test_every_room_is_on_the_dashboard_and_watched(served):
    """A dashboard that forgets a room is one that nobody looks at when it breaks."""
    rooms = {name.split("_")[1] for name in served}
    shown = {name for param in panels() for name in re.findall(r"aegis_([a-z]+)_", param.values[0])}
    watched = {name for rule in RULES for name in re.findall(r"aegis_([a-z]+)_", rule["expr"])}
    assert rooms == shown == watched


def test_the_dashboard_is_one_that_grafana_takes():
    """Panels do not overlap, their numbers are their own, and all ask the data source that one chooses."""
    seen = set()
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24
        assert not cells & seen, panel["title"]
        seen |= cells
        for target in panel.get("targets", ()):
            assert target["datasource"]["uid"] == "${datasource}"
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {"datasource", "process"}
