"""One HTML page that needs nothing else: no script, no font, no file beside it; pictures lie in it as base64."""

from __future__ import annotations

import base64
from html import escape

from megatron.scaling.show.figures.style import UNITS
from megatron.scaling.show.report import listing
from megatron.scaling.show.report.listing import Listing
from megatron.scaling.show.screen import interval

STYLE = """
body { font: 16px/1.5 Georgia, serif; color: #1c1c1c; background: #fff; max-width: 1180px; margin: 2em auto; padding: 0 1.5em }
h1, h2, h3, nav, table, figcaption { font-family: Helvetica, Arial, sans-serif; line-height: 1.25 }
h1 { font-size: 1.8em; margin-bottom: 0.2em } h2 { font-size: 1.3em; margin-top: 2.2em; border-bottom: 1px solid #bbb }
h3 { font-size: 1em; margin-bottom: 0.4em }
nav a { margin-right: 1.2em } a { color: #0b2f55 }
figure { margin: 1.2em 0 } figure img { width: 100%; height: auto; border: 1px solid #ddd }
figcaption { font-size: 0.85em; color: #444 }
.scroll { overflow-x: auto; margin-bottom: 1.4em }
table { border-collapse: collapse; font-size: 0.82em; font-variant-numeric: tabular-nums }
th { text-align: right; border-bottom: 2px solid #888; padding: 0.25em 0.7em; vertical-align: bottom }
td { text-align: right; border-bottom: 1px solid #ddd; padding: 0.2em 0.7em; white-space: nowrap }
th:first-child, td:first-child, .words th, .words td { text-align: left }
td.long { white-space: normal; min-width: 24em; text-align: left; overflow-wrap: anywhere }
ul.warnings li { margin-bottom: 0.3em } .warnings { background: #fff6e0; border-left: 4px solid #b36b00; padding: 0.6em 2em }
summary { cursor: pointer; font-family: Helvetica, Arial, sans-serif; font-weight: bold; margin: 0.6em 0 }
@media print { body { max-width: none } .scroll { overflow: visible } td { white-space: normal } }
"""
LONG = 60  # characters in a cell that may be broken


def render(report, pictures: dict[str, tuple[str, bytes]]) -> str:
    """The page. `pictures`: file name without suffix -> (title, PNG)."""
    sections = {
        "Result": _result(report),
        "Warnings": _warnings(report.warnings),
        "Figures": "".join(_figure(name, *picture) for name, picture in pictures.items()),
        "Tables": _tables(
            listing.list_minima(report),
            listing.list_laws(report),
            listing.list_ratios(report),
            listing.list_data_value(report),
            listing.list_crossover(report),
        ),
        "Runs": _tables(listing.list_losses(report)) + _folded(listing.list_identities(report)),
        "How to reproduce": _reproduce(report),
    }
    links = "".join(f'<a href="#{_anchor(title)}">{escape(title)}</a>' for title in sections)
    body = "".join(
        f'<section id="{_anchor(title)}"><h2>{escape(title)}</h2>{content}</section>\n' for title, content in sections.items()
    )
    title = "Scaling report: " + ", ".join(study.label for study in report.studies)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n<h1>{escape(title)}</h1>\n<nav>{links}</nav>\n{body}</body>\n</html>\n"
    )


def _result(report) -> str:
    """What was found, in sentences."""
    said = [
        f"{len(report.table)} runs of {len(report.studies)} objective(s), {len(report.table.dropped)} not used. "
        "Intervals are of 95 %; 'open' means that the data do not bound that side."
    ]
    said += [sentence for study in report.studies for sentence in _found_in(study, UNITS[report.unit])]
    said += [
        f"At {ratio['flops']:.3g} FLOPs MDM takes {ratio['ratio']:.3g} times the compute of AR at equal loss "
        f"({interval(ratio['ci'], '.3g')}){', extrapolated' if ratio['extrapolated'] else ''}."
        for ratio in report.ratios
    ]
    said += [
        f"{curve['label']}: R_D* = {curve['R_D']:.4g} ({interval(curve.get('R_D_ci'), '.3g')}) repetitions."
        for curve in report.data_value
        if curve.get("R_D") is not None
    ]
    law = report.crossover and report.crossover.get("power_law")
    if law:
        said.append(
            f"MDM passes AR at C = e^k U^p: p = {law['p']:.3f} ({interval(law['ci'].get('p'), '.3f')}), "
            f"k = {law['k']:.3f} ({interval(law['ci'].get('k'), '.3f')})."
        )
    return "".join(f"<p>{escape(sentence)}</p>\n" for sentence in said)


def _found_in(study, unit: str) -> list[str]:
    """The exponent of the minima and what L(N, D) says."""
    said, (a, ci) = [], (study.isoflop.exponents["a"], study.isoflop.ci["a"])
    if a is not None:
        said.append(
            f"{study.label}: the compute-optimal size grows as C^a, a = {a:.3f} ({interval(ci, '.3f')}), "
            f"from {len(study.isoflop.interior)} isoFLOP minima."
        )
    if study.law:
        params, ci = study.law.params, study.law.ci
        said.append(
            f"{study.label}: L(N, D) on {study.law.rows_used} rows gives E = {params['E']:.3f} {unit} "
            f"({interval(ci.get('E'), '.3f')}) and a = {params['a']:.3f} ({interval(ci.get('a'), '.3f')})."
        )
    return said


def _warnings(warnings: list[str]) -> str:
    if not warnings:
        return "<p>None.</p>"
    return f'<ul class="warnings">{"".join(f"<li>{escape(warning)}</li>" for warning in warnings)}</ul>'


def _figure(name: str, title: str, picture: bytes) -> str:
    data = base64.b64encode(picture).decode()
    return (
        f'<figure id="figure-{escape(name)}"><img src="data:image/png;base64,{data}" alt="{escape(title)}">'
        f"<figcaption>{escape(title)} (also {escape(name)}.png and {escape(name)}.pdf)</figcaption></figure>\n"
    )


def _reproduce(report) -> str:
    command = f"<p>The report was made by</p><pre>{escape(report.command)}</pre>" if report.command else ""
    return (
        command
        + _tables(listing.list_settings(report), listing.list_fit_settings(report), listing.list_dropped(report))
        + _folded(listing.list_sources(report))
    )


def _tables(*listings: Listing) -> str:
    return "".join(f"<h3>{escape(one.title)}</h3>{_table(one)}\n" for one in listings if one.rows)


def _folded(one: Listing) -> str:
    """A table that may be long, behind its title."""
    return f"<details><summary>{escape(one.title)}</summary>{_table(one)}</details>\n" if one.rows else ""


def _table(one: Listing) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in one.columns)
    rows = "".join(f"<tr>{''.join(_cell(cell) for cell in row)}</tr>\n" for row in one.rows)
    words = ' class="words"' if len(one.columns) == 2 else ""
    return f'<div class="scroll"><table{words}><thead><tr>{head}</tr></thead><tbody>\n{rows}</tbody></table></div>'


def _cell(text: str) -> str:
    return f'<td class="long">{escape(text)}</td>' if len(text) > LONG else f"<td>{escape(text)}</td>"


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")
