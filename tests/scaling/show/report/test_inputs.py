import json

import pytest

from megatron.errors import BadData, MissingInput
from megatron.scaling.law.fitted import save_fit
from megatron.scaling.show.report import build_report
from megatron.scaling.show.report.inputs import read_critical, read_data_value, read_fits


def test_nothing_given_and_nothing_there(tmp_path):
    assert (read_fits([], tmp_path), read_data_value(None, tmp_path), read_critical(None, tmp_path)) == ({}, [], None)


def test_what_lies_in_the_folder_is_found(tmp_path):
    points = [{"epochs": 4, "value": 0.9, "ci": [0.8, None]}, {"epochs": 9, "value": None, "ci": [None, None]}]
    (tmp_path / "data_value.json").write_text(json.dumps({"curves": [{"label": "AR", "points": points}]}))
    assert read_data_value(None, tmp_path) == [{"label": "AR", "points": [(4, 0.9, 0.8, None)]}]
    whole = {"critical": [{"unique_tokens": 1}], "unique_tokens": [1], "flops": [2], "difference": [[0]]}
    (tmp_path / "critical_compute.json").write_text(json.dumps(whole))
    assert read_critical(None, tmp_path) == whole


@pytest.mark.parametrize(
    "content, error, words",
    [
        (None, MissingInput, "no such file"),
        ("{", BadData, "not JSON"),
        ("[]", BadData, "found a list"),
        ("{}", BadData, "no curves"),
    ],
)
def test_a_file_that_is_asked_for_must_hold_it(tmp_path, content, error, words):
    if content is not None:
        (tmp_path / "given.json").write_text(content)
    with pytest.raises(error, match=words):
        read_data_value(str(tmp_path / "given.json"), tmp_path)


def test_fits_are_shown_under_the_names_of_their_folders(sweep, tmp_path):
    law = build_report(sweep(objectives=("ar",)), num_resamples=10).studies[0].law
    for folder in ("a/c4", "b/c4", "wiki"):
        save_fit(law, tmp_path / folder)
    paths = [str(tmp_path / "a/c4"), str(tmp_path / "b/c4/fit.json"), str(tmp_path / "wiki/fit.json")]
    fits = read_fits(paths, tmp_path)
    assert list(read_fits([], tmp_path)) == ["wiki"] and list(read_fits([], tmp_path / "a")) == ["c4"]
    assert list(fits) == [*paths[:2], "wiki"] and fits["wiki"].params == pytest.approx(law.params)
    law.conventions.update(objective="ar", bound="exact")
    for folder in ("named/ar", "named/c4"):
        save_fit(law, tmp_path / folder)
    assert list(read_fits([], tmp_path / "named")) == ["AR (exact NLL)", "c4: AR (exact NLL)"]
