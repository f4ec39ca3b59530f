from dataclasses import replace

from megatron.scaling.show.report import build_report, listing
from megatron.scaling.show.report.listing import print_report
from megatron.scaling.table.table import read_table


def test_what_is_printed(sweep, capsys):
    print_report(build_report(sweep(), num_resamples=20))
    printed = capsys.readouterr().out
    for expected in (
        "AR (exact NLL)",
        "isoFLOP minima",
        "a: N* ~ C^a",
        "alpha of L(N, D)",
        "equal loss",
        "not used: lost: unfinished: no <result.json>",
    ):
        assert expected in printed


def test_every_row_has_a_cell_for_every_column(sweep):
    report = build_report(sweep(), num_resamples=20)
    for name in (name for name in dir(listing) if name.startswith("list_")):
        one = getattr(listing, name)(report)
        assert all(len(row) == len(one.columns) and all(isinstance(cell, str) for cell in row) for row in one.rows), name


def test_run_directories_state_code_seeds_and_resumes(run_folders):
    found = listing.list_identities(build_report(read_table([run_folders]), num_resamples=0))
    row = dict(zip(found.columns, found.rows[0]))
    assert (row["code"], row["noise seed"], row["eval seed"], row["resumes"]) == ("0123456789ab", "3", "7", "1")
    assert row["tokenizer"] == "bytes 1f" and row["params convention"] == "total" and "skipped" not in row


def test_data_value_and_crossover(sweep):
    report = replace(
        build_report(sweep(objectives=("ar",), budgets=(6e11,)), num_resamples=0),
        data_value=[{"label": "AR", "R_D": 15.39, "R_D_ci": [6.5, None], "points": [(4, 0.9, 0.8, 1.0)]}],
        crossover={
            "critical": [{"unique_tokens": 1e6, "flops": None}, {"unique_tokens": 1e7, "flops": 2e12, "low": 1e12}],
            "power_law": {"k": 1.0, "p": 2.17, "ci": {"p": [1.9, 2.4]}},
        },
    )
    assert ["AR", "R_D*", "", "15.39", "6.5 .. open"] in listing.list_data_value(report).rows
    rows = listing.list_crossover(report).rows
    assert rows[0][1] == "none in range" and rows[1] == ["1e+07", "2e+12", "1e+12 .. open"]
    assert ["p of ln C = k + p ln U", "2.17", "1.9 .. 2.4"] in rows
