from megatron.scaling.table.labels import label_of


def test_a_label_says_exact_or_bound_or_neither():
    assert (label_of("mdm", "bound"), label_of("x", None)) == ("MDM (upper bound)", "x (bound not stated)")
