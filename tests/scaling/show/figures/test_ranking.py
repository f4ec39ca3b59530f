from megatron.scaling.show.figures.ranking import draw_ranking


def test_every_form_stands_with_its_error_and_interval(legible):
    first = {"form": "chinchilla", "error": 0.002, "behind": 0.0, "ci": None}
    other = {"form": "E + A/N^alpha + B/D^beta + P*R^phi*(N/U)^psi/W^rho", "error": 0.004, "behind": 0.002, "ci": [-0.001, 0.005]}
    rankings = [{"objective": "mdm", "leave_out": how, "forms": [first, other]} for how in ("largest", "flops")]
    figure = draw_ranking(rankings)
    texts = legible(figure)
    for expected in ("mdm: left out by largest", "mdm: left out by flops", "chinchilla: 0.002", "0.004", "95 % intervals"):
        assert expected in texts
    bars = [line.get_xdata() for line in figure.axes[0].lines if len(line.get_xdata()) == 2]
    assert [-0.001, 0.005] in [list(bar) for bar in bars]
