from megatron.scaling.table.labels import label_of


def test_a_label_says_exact_or_bound_or_neither_and_by_which_score():
    assert label_of("mdm", {"bound": "bound"}) == "MDM (upper bound)" and label_of("x", {}) == "x (bound not stated)"
    assert label_of("ar", {"bound": "exact", "score": "exact"}) == "AR (exact NLL)"
    assert label_of("mdm", {"bound": "bound", "score": "korder:16"}) == "MDM (upper bound korder:16)"
    sampler = {"bound": "exact", "score": "rule:confidence"}
    assert label_of("mdm", sampler) == "MDM (exact NLL of the sampler rule:confidence)"
