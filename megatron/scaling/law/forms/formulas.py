"""Laws that are their formulas: of members, epochs and weight decay, of one loss by another, of accuracy by a loss."""

from __future__ import annotations

from megatron.scaling.law.expression import parse_form

FORMS = tuple(
    parse_form(formula, name)
    for name, formula in {
        # What is left with ever more members K of an ensemble, epochs e = 1 + R, or parameters and members (Kim et al.,
        # arXiv:2509.14786, have the first of them, with an exponent near 1; E is the asymptote).
        "power-members": "E + F/K^gamma; K = members",
        "power-epochs": "E + F/(1 + R)^gamma",
        "power-params-members": "E + A/N^alpha + F/K^gamma; K = members",
        # The penalty of overfit-penalty, which weight decay W lowers.
        "overfit-penalty-decay": "E + A/N^alpha + B/D^beta + P*R*N/U/W^phi; W = weight-decay; phi in 0.001:3",
        # One loss of runs by another of the same N, D and U (Brandfonbrener et al., arXiv:2411.12925): kappa is the ratio of
        # their exponents, E and F are their irreducible losses.
        "loss-to-loss": "E + K*(X - F)^kappa; F in 0:min(X); kappa in 0.05:5; X = other_loss",
        # Accuracy by a task's loss, the second step of Bhagia et al., arXiv:2412.04403: from `low`, by `A`, with slope k at M.
        "accuracy": "low + A/(1 + exp(k*(X - M))); k in 0.1:200; M in 0:max(X); X = task_loss",
    }.items()
)
