import pytest

from megatron.scaling.__main__ import main


def test_pack_and_check(run_folders, tmp_path, capsys):
    archive = str(tmp_path / "a.zip")
    assert main(["archive", str(run_folders), "--out", archive, "--title", "Mine"]) == 0
    assert main(["archive", "--check", archive]) == 0
    assert "66 files are as its manifest says" in capsys.readouterr().out
    assert main(["archive", str(run_folders), "--out", archive]) == 73


@pytest.mark.parametrize(
    "flags", [[], ["runs"], ["--out", "a.zip"], ["--check", "a.zip", "runs"], ["--check", "a", "--out", "b"]]
)
def test_flags_that_do_not_go_together_are_2(flags, capsys):
    assert main(["archive", *flags]) == 2
    assert "--check" in capsys.readouterr().err
