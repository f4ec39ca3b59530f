import pytest

from tools.transfer import main

fsspec = pytest.importorskip("fsspec")


def test_a_run_goes_and_comes_back(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_text("{}")
    assert not main([str(tmp_path / "a"), "--upload-to", "memory://transfer/a"])
    assert not main([str(tmp_path / "b"), "--download-from", "memory://transfer/a"])
    assert (tmp_path / "b" / "result.json").read_text() == "{}" and "1 files, 2 bytes, checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["a", "--upload-to", "elsewhere"], 2, "--upload-to elsewhere: expected a URL"),
        (["nowhere", "--upload-to", "memory://transfer/b"], 66, "nowhere is no folder"),
        (["a", "--download-from", "memory://transfer/none"], 66, "holds no whole copy"),
        (["a", "--download-from", "nonsense://x"], 66, "nonsense"),
    ],
)
def test_refusals(tmp_path, monkeypatch, capsys, words, code, said):
    monkeypatch.chdir(tmp_path)
    assert main(words) == code and said in capsys.readouterr().err and not any(tmp_path.iterdir())
