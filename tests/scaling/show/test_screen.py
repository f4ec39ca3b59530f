from megatron.scaling.show.screen import interval, show, show_record


def test_intervals():
    assert interval((1.0, 2.5), ".2f") == "1.00 .. 2.50" and interval([None, 2.5], ".1f") == "open .. 2.5"
    assert interval((None, None), ".1f") == "open" and interval(None, ".1f") == "-"


def test_tables_and_records(capsys):
    show("nothing", ["a"], [])
    show("a title", ["a", "b"], [("x", "[1]")])
    show_record([{"run": f"r{number}", "reason": "odd"} for number in range(12)], ["beware [of] this"])
    out = capsys.readouterr().out
    assert "nothing" not in out and "a title" in out and "not used: r9: odd" in out and "r10" not in out
    assert "2 more rows" in out and "warning: beware [of] this" in out
