import pytest

from megatron.errors import BadData
from megatron.scaling.law.expression import parse_form


@pytest.mark.parametrize(
    "text",
    [
        "E + A/N^alpha + B/N^beta",  # one variable, five parameters
        "E + A*D^(-c)*(1 + (D/d)^(1/f))^(-g*f); d in 1e8:1e12",  # a break inside of the data
        "E + A*exp(-D/D0); D0 in 1e8:1e12",  # a scale far from ordinary values
        "E + A/N^alpha + B*(1 - p)^phi; p = hidden-dropout",  # no number for columns above 1
        "E + K*(X - F)^kappa; F in 0:min(X); X = other_loss",  # none for F above the column
        "E + a/N^b",
        "E + A/N^alpha + B/D^alpha",
    ],
)
def test_what_data_can_tell_apart_is_a_form(text):
    parse_form(text)


@pytest.mark.parametrize(
    "text, words",
    [
        ("E + A*(B/N)^alpha", "of the parameters A, B only a combination"),
        ("E + G + A/N^alpha", "of the parameters E, G only a combination"),
        ("E + A/C^alpha + B/D^beta", "only a combination changes the loss"),  # C is no variable
        ("E + A/N^alpha + 0*Q", "the parameter Q changes nothing"),
        ("E + A*log(N - N)", "no number at ordinary values"),
        ("E + A/W^a; W = weight-decay; W = lr", "W has two clauses"),
        ("E + A/W^a + B*V; W = weight-decay; V = weight-decay", "two names for one column"),
    ],
)
def test_what_no_data_could_tell_apart_is_refused(text, words):
    with pytest.raises(BadData, match="--form") as refused:
        parse_form(text)
    assert words in str(refused.value)
