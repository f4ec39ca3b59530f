import json

import pytest

from megatron.data.synthetic.topics import Topics
from tools import make_topic_pairs


def test_a_corpus_says_what_is_known_of_it_and_is_not_written_over(tmp_path, capsys):
    argv = ["--output", str(tmp_path / "c"), "--documents", "50", "--topics", "3", "--length", "5"]
    assert make_topic_pairs.main([*argv, "--json"]) == 0
    said, source = json.loads(capsys.readouterr().out), Topics(topics=3, length=5)
    assert (said["information"], said["entropy"], said["ids"]) == (source.information(), source.entropy(), source.num_ids)
    assert make_topic_pairs.main(argv) == 73 and "exists" in capsys.readouterr().err
    with pytest.raises(SystemExit) as left:
        make_topic_pairs.main([*argv[:2], "--share", "1"])
    assert left.value.code == 2 and "--share must lie between 0 and 1" in capsys.readouterr().err
