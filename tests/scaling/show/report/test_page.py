import base64
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from megatron.scaling.show.report import build_report
from megatron.scaling.show.report.page import render

VOID = {"meta", "img", "br", "hr", "link"}


class Structure(HTMLParser):
    """Checks that tags close in order; keeps texts, tags and the attributes that load something."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.texts, self.loads, self.ids, self.links = [], [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open += [] if tag in VOID else [tag]
        self.loads += [value for name, value in attrs if name in ("src", "srcset", "data", "poster")]
        self.links += [value for name, value in attrs if name == "href"]
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def report(sweep):
    return replace(build_report(sweep(), num_resamples=20), command="scaling_laws.py report 'a & b' --out c")


@pytest.fixture
def page(report):
    return render(report, {"isoflop": ("The <title>", b"\x89PNG picture")})


def test_it_needs_nothing_else(page):
    found = Structure(page)
    assert found.loads == ["data:image/png;base64," + base64.b64encode(b"\x89PNG picture").decode()]
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)
    assert not {"script", "link", "iframe", "object"} & set(found.tags) and not re.search(r"@import|url\(|https?:", page)
    assert len(set(found.ids)) == len(found.ids) and page.isascii()


def test_words_are_escaped(page):
    texts = "".join(Structure(page).texts)
    for words in ("The <title>", "'a & b'", "no <result.json>"):
        assert words in texts


def test_it_holds_what_it_takes_to_reproduce(report, page):
    texts = "".join(Structure(page).texts)
    for expected in (
        "AR (exact NLL)",
        "MDM (upper bound)",
        "bytes 1f",
        "slice 2e",
        "total",
        "6ND",
        "se noise",
        "se data",
        "seed",
        "starts",
        "other optima",
        "ab" * 32,
        "numpy",
        "scipy",
        "matplotlib",
        "lost",
        *report.warnings,
    ):
        assert expected in texts, expected
    assert all(run["run"] in texts for study in report.studies for run in study.runs)


def test_it_says_what_was_found(report):
    whole = replace(
        report,
        data_value=[{"label": "AR (exact NLL)", "R_D": 15.39, "R_D_ci": [6.5, None], "points": []}],
        crossover={"critical": [], "power_law": {"k": -4.1, "p": 2.412, "ci": {"k": [-6, -2], "p": [2.265, 2.543]}}},
    )
    texts = "".join(Structure(render(whole, {})).texts)
    for expected in (
        "AR (exact NLL): the compute-optimal size grows as C^a, a = 0.4",
        "on 15 rows gives E = ",
        "times the compute of AR",
        "R_D* = 15.39 (6.5 .. open)",
        "p = 2.412 (2.265 .. 2.543)",
    ):
        assert expected in texts, expected


def test_without_warnings_it_says_none(sweep):
    report = build_report(sweep(objectives=("ar",)), num_resamples=20)
    study = report.studies[0]
    calm = replace(report, studies=[replace(study, isoflop=replace(study.isoflop, warnings=[]), law=None)])
    assert "<p>None.</p>" in render(calm, {})
