from megatron import progress
from megatron.progress import ProgressLine


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now


def test_a_line_a_minute_off_a_terminal(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    line = ProgressLine(100e6, done=10e6)
    for clock.now, done in ((1, 20e6), (59, 30e6), (60, 40e6), (100, 50e6), (120, 70e6)):
        line.show(done, "7 documents")
    line.clear()
    assert capsys.readouterr().err == "7 documents, 40%, 0.5 MB/s, 120 s left\n7 documents, 70%, 0.5 MB/s, 60 s left\n"
    unknown = ProgressLine(None, "pairs")
    clock.now = 220
    unknown.show(500)
    assert capsys.readouterr().err == "5 pairs/s\n"


def test_one_line_in_place_on_a_terminal(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    line = ProgressLine(10, "rows")
    for clock.now, done in ((1, 1), (1.2, 2), (2, 4)):
        line.show(done)
    line.clear()
    assert capsys.readouterr().err == "\r10%, 1 rows/s, 9 s left\033[K\r40%, 2 rows/s, 3 s left\033[K\r\033[K"
