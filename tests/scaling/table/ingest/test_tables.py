import pytest

from megatron.errors import BadData
from megatron.scaling.table.ingest.tables import number, read_rows, read_wandb_export, renamed


def write(path, text):
    path.write_text(text)
    return path


def test_empty_cells_are_none_and_an_empty_table_is_refused(tmp_path):
    assert read_rows(write(tmp_path / "a.csv", "N,loss\n1,\n")) == [(2, {"N": "1", "loss": None})]
    assert read_rows(write(tmp_path / "a.jsonl", '{"N": 1}\n')) == [(1, {"N": 1})]
    with pytest.raises(BadData, match="no rows"):
        read_rows(write(tmp_path / "b.csv", "N,loss\n"))


def test_an_exported_chart_has_a_column_for_each_run(tmp_path):
    chart = (
        '"Step","small - val/loss","small - val/loss__MIN","small - val/loss__MAX","large - val/loss"\n'
        "10,3.5,3.4,3.6,\n20,3.0,2.9,3.1,2.5\n"
    )
    small, large = read_wandb_export(write(tmp_path / "chart.csv", chart))
    assert (small.run, large.run) == ("small", "large")
    assert [c.tolist() for c in small.curve("val/loss")] == [[10, 20], [3.5, 3.0]]
    assert [c.tolist() for c in large.curve("val/loss")] == [[20], [2.5]]
    assert small.names == ["val/loss", "Step"]


def test_an_exported_history_is_one_run_by_iteration(tmp_path):
    text = "_step,iteration,val/loss,note\n0,100,3.5,x\n1,200,,y\n2,200,NaN,z\n3,300,2.5,\n"
    (found,) = read_wandb_export(write(tmp_path / "history.csv", text))
    steps, loss = found.curve("val/loss")
    assert found.run == "history" and steps.tolist() == [100, 200, 300] and loss[[0, 2]].tolist() == [3.5, 2.5]
    assert "note" not in found.names


def test_a_table_of_runs_is_left_to_others(tmp_path):
    assert read_wandb_export(write(tmp_path / "runs.csv", "Name,State,val/loss\nsmall,finished,3\n")) is None


def test_columns_get_new_names_and_numbers_are_checked():
    assert renamed([(2, {"N": 1, "params": 9, "x": 3})], {"params": "N"}) == [(2, {"params": 1, "x": 3})]
    assert number("1e3", "t, line 2", "N") == 1000.0 and number(None, "t", "N") is None
    with pytest.raises(BadData, match="t, line 2, column N: found 'many'"):
        number("many", "t, line 2", "N")
