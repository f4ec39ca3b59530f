"""Members scored together on the same rows with the same draws, by how many they are, and the law that this follows.

Two distributions are made of K members, and they are not the same one. Of tokens: each place is predicted by the mean of the
members' probabilities, given the same input. Left to right the product of these means is a likelihood, exact; of masked diffusion
the mean of denoisers is a denoiser, and its loss a bound on the NLL of its own mixture over orders. Of sequences: a member is
chosen once for the whole row, p(x) = mean of p_k(x); with exact likelihoods alone, since noise inside a logarithm biases it.

-log of a mean of K like terms is L_inf + a / K + O(1 / K^2) in the mean: the delta method, and what ensembles of language models
follow (Kim et al., arXiv:2509.14786, exponent about 1). K members, b rows, n asked places.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from megatron.batch import Noise
from megatron.catalogue import need_mask
from megatron.config import experiment
from megatron.engine.members import Answers, Members
from megatron.errors import Mismatch
from megatron.flags import ConfigError
from megatron.likelihood.measure import Read, compare, described, errors, read, refuse_idle_draws
from megatron.likelihood.paired import counted, refuse_other_rows, refuse_other_tokenizer
from megatron.likelihood.rows import Rows, over_rows
from megatron.likelihood.scores import target_log_p
from megatron.objectives import Objective
from megatron.standard_errors import combined, half_width
from megatron.training.trained import Trained

MOST_SUBSETS = 252  # of one size: all of 10 members
EXPONENTS = np.geomspace(0.2, 5, 400)  # of K, tried one by one where it is free
TOKENS, SEQUENCES = "tokens", "sequences"
WHAT = {TOKENS: "product over places of the mean of probabilities", SEQUENCES: "mean of the probabilities of whole rows"}


def measure(
    members: Sequence[Trained],
    which: str = "valid",
    rows: int | None = None,
    last: int | None = None,
    num_mc: int | None = None,
    names: Sequence[str] = (),
) -> dict:
    """Both distributions by the number of members, and other scores of all together.

    Draws have the first member's seed in all. Raises ConfigError, and Mismatch where members are not of one kind.
    """
    refuse_others(members)
    rows = rows or min(one.slice(which).rows for one in members)
    draws = num_mc or max(one.cfg.objective.num_mc for one in members)
    first = read(members[0], which, rows, last, draws)
    found = [first, *(read(one, which, rows, last, draws, seed=first.data.seed) for one in members[1:])]
    for other in found[1:]:
        refuse_other_rows(first, other)
        if other.estimators.objective != first.estimators.objective:
            raise Mismatch(
                f"{other.trained.checkpoint.path} poses its validation otherwise than {first.trained.checkpoint.path}: "
                "give members of the same objective's flags"
            )
    if first.plain == "exact" and num_mc is not None:
        raise ConfigError([f"--num-mc {num_mc} acts on draws, and exact has none: leave it out"])
    random, subsets = first.plain != "exact", chosen_subsets(len(members))
    models = [one.estimators.model for one in found]
    nll = together(models, first, subsets, draws if random else 1)
    params = float(np.mean([one.cfg.model.shape().total() for one in members]))  # of subsets of a size, the mean
    distributions = [distribution(TOKENS, nll, subsets, first, random, params)]
    if not random:
        distributions.append(
            distribution(SEQUENCES, of_sequences(nll[..., : len(members)], subsets), subsets, first, random, params)
        )
    result = described(first, which, last) | {
        "members": [about(one) for one in found],
        "rows": len(first.scored),
        "tokens": int(first.scored.sum()),
        "draws": len(nll),
        "distributions": distributions,
    }
    if names:
        whole = replace(first.estimators, model=Members(models, models[0].mesh), orders={}, blocks={})
        refuse_idle_draws([whole.score(name) for name in names], num_mc, None)
        result["of_all"] = compare(whole, list(names), first.scored, draws, None, first.bits)
    return result


def about(one: Read) -> dict:
    """A member, for the record."""
    trained = one.trained
    return {
        "run": counted(one)["run"],
        "checkpoint": str(trained.checkpoint.path),
        "step": trained.checkpoint.step,
        "seed": trained.cfg.train.seed,
        "params": trained.cfg.model.shape().total(),
        "training_tokens": trained.checkpoint.facts["samples"] * trained.cfg.model.seq_length,
        **trained.averaged,
    }


def refuse_others(members: Sequence[Trained]) -> None:
    """Members are of one objective and tokenizer, and no two are the same network. Raises ConfigError, Mismatch."""
    if len(members) < 2:
        raise ConfigError(["an ensemble has two members or more: give several runs"])
    first = members[0]
    need_mask(first.cfg.objective.objective, "an ensemble")
    for one in members[1:]:
        refuse_other_tokenizer(first, one)
        kinds = [x.cfg.objective.objective for x in (first, one)]
        if kinds[0] != kinds[1]:
            raise Mismatch(
                f"{first.checkpoint.path} is {kinds[0]} and {one.checkpoint.path} {kinds[1]}: what they predict is not given the "
                "same, so no mean of it is a model; give runs of one objective"
            )
    for a, b in combinations(members, 2):
        if a.checkpoint.path.resolve() == b.checkpoint.path.resolve() or weights_of(a) == weights_of(b) or repeats(a, b):
            raise Mismatch(
                f"{a.checkpoint.path} and {b.checkpoint.path} are the same network: members differ, in --seed at least"
            )


def weights_of(trained: Trained) -> set[tuple]:
    """Hashes of what a checkpoint stores of its model."""
    entries = trained.checkpoint.entries
    return {(e["name"], str(e["slice"]), e["sha256"]) for e in entries if e["name"].startswith("model/")}


def repeats(a: Trained, b: Trained) -> bool:
    """Whether two runs are one experiment at one step: they have the same weights whatever their layouts round."""
    if a.averaged != b.averaged or a.checkpoint.step != b.checkpoint.step:
        return False
    return origin(a) == origin(b)


def origin(trained: Trained) -> tuple:
    """What settles a run's weights but for its layout: flags, training data, and the weights that it began with."""
    facts = trained.checkpoint.facts
    train = facts["config"].get("train", {})
    began = train.get("load") if train.get("finetune") else None
    return experiment(facts["config"]), facts["fingerprints"].get("train"), began


# Subsets


def chosen_subsets(count: int) -> list[tuple[int, ...]]:
    """Of each size all, or as many of them as MOST_SUBSETS, drawn without repetition; those of one member come first."""
    found: list[tuple[int, ...]] = []
    rng = np.random.Generator(np.random.Philox(key=[0, count]))
    for size in range(1, count + 1):
        if size == 1 or math.comb(count, size) <= MOST_SUBSETS:
            found += combinations(range(count), size)
            continue
        some: set[tuple[int, ...]] = set()
        while len(some) < MOST_SUBSETS:
            some.add(tuple(sorted(rng.choice(count, size, replace=False).tolist())))
        found += sorted(some)
    return found


def together(models: Sequence[Answers], first: Read, subsets: list[tuple[int, ...]], draws: int) -> np.ndarray:
    """Each draw and row under the mean of each subset: every member reads each posed row once.  -> [draws, rows, subsets] nats"""
    estimators, found = first.estimators, []
    for number in range(draws):
        of = posed_by(models, estimators.objective, estimators.seed, number * estimators.apart, subsets)
        found.append(over_rows(models[0].mesh, estimators.rows, estimators.vocab_size, of).numpy())
    return np.stack(found)


def posed_by(
    models: Sequence[Answers], objective: Objective, seed: int, offset: int, subsets: list[tuple[int, ...]]
) -> Callable[[Rows], Tensor]:
    def nll(part: Rows) -> Tensor:
        clean = replace(part.clean, index=part.clean.index + offset)
        batch = part.borders.apply(objective.pose(clean, Noise(seed, clean.index), 1.0), clean)
        log_p = torch.stack([target_log_p(model, batch) for model in models])  # [K, n]
        weights, rows = batch.weights.flatten()[batch.asked].double(), batch.asked // batch.inputs.shape[1]
        found = torch.zeros(len(part.tokens), len(subsets), dtype=torch.float64)
        for column, subset in enumerate(subsets):
            mean = log_p[list(subset)].logsumexp(0) - math.log(len(subset))
            found[:, column].index_add_(0, rows, -mean * weights)
        return found

    return nll


def of_sequences(nll: np.ndarray, subsets: list[tuple[int, ...]]) -> np.ndarray:
    """-log of the mean of whole rows' likelihoods.  [draws, rows, K] -> [draws, rows, subsets]"""
    parts = torch.from_numpy(nll)
    found = [math.log(len(subset)) - (-parts[..., list(subset)]).logsumexp(-1) for subset in subsets]
    return torch.stack(found, -1).numpy()


# By the number of members


def distribution(name: str, nll: np.ndarray, subsets: list[tuple[int, ...]], first: Read, random: bool, params: float) -> dict:
    """One distribution's curve over the number of members and, of tokens, its law.  nll [draws, rows, subsets]"""
    scored, bits = first.scored, first.bits
    sizes = range(1, len(subsets[-1]) + 1)
    by_size = np.stack([mean_over(nll, subsets, size) for size in sizes], -1)  # [draws, rows, K]
    without = leave_one_out(nll, subsets, scored)  # [K, K - 1]
    curve = []
    for place, size in enumerate(sizes):
        here = by_size[..., place]
        point = {
            "members": size,
            "subsets": sum(len(subset) == size for subset in subsets),
            **estimate(here, scored, random, without[:, place] if place < without.shape[1] else None),
            "params": round(size * params),
        }
        point["bits_per_byte"] = None if bits is None else point["nats_per_token"] * bits
        if size > 1:
            jackknifed = without[:, place] - without[:, 0] if place < without.shape[1] else None
            point["minus_one_member"] = estimate(here - by_size[..., 0], scored, random, jackknifed)
        curve.append(point)
    value = "upper bound" if random else "exact"
    law = fit_law(by_size, without, scored, random) if name == TOKENS and len(curve) > 2 else None
    return {"of": name, "what": WHAT[name], "value": value, "curve": curve, "law": law}


def mean_over(nll: np.ndarray, subsets: list[tuple[int, ...]], size: int, without: int | None = None) -> np.ndarray:
    """[draws, rows, subsets] -> [draws, rows]"""
    columns = [i for i, subset in enumerate(subsets) if len(subset) == size and without not in subset]
    return nll[..., columns].mean(-1)


def leave_one_out(nll: np.ndarray, subsets: list[tuple[int, ...]], scored: np.ndarray) -> np.ndarray:
    """Nats a token of each size below K without each member in turn.  -> [K, K - 1]"""
    count = len(subsets[-1])
    return np.array(
        [
            [mean_over(nll, subsets, size, without=member).mean(0).sum() / scored.sum() for size in range(1, count)]
            for member in range(count)
        ]
    )


def estimate(nll: np.ndarray, scored: np.ndarray, random: bool, without: np.ndarray | None) -> dict:
    """A value with its errors: of rows and noise, and of which members were trained, by the jackknife over them.

    All members together are one subset, whose choice leaves no error to be seen.  nll [draws, rows], without [K] or None
    """
    found = errors(nll, scored, random)
    member = jackknife(without)
    se, df = combined((found["se"], found["se_df"]), member)
    return {"nats_per_token": float(nll.mean(0).sum() / scored.sum()), **found, "se": se, "se_df": df, "se_members": member[0]}


def jackknife(without: np.ndarray | None) -> tuple[float | None, float | None]:
    """Standard error of what a sample of K gives, by its values without each (Efron and Stein 1981), and K - 1."""
    if without is None or len(without) < 3:  # of two, one left has no scatter that can be told from its own
        return None, None
    count = len(without)
    return float(np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())), count - 1.0


def fit_law(by_size: np.ndarray, without: np.ndarray, scored: np.ndarray, random: bool) -> dict:
    """L(K) = L_inf + a / K by least squares over K = 1, 2, ...; with four members or more also with a free exponent.

    What is fitted is linear in the losses, so that its errors from rows and noise are those of the same sum of each row's; the
    jackknife fits again without each member.  by_size [draws, rows, K], without [K, K - 1]
    """
    count, part = by_size.shape[-1], without.shape[1]
    whole, less = solve(count), solve(part) if part > 1 else None  # [2, K], [2, K - 1]
    found: dict = {"form": "L_inf + a / members"}
    for row, name in enumerate(("L_inf", "a")):
        again = None if less is None else without @ less[row]
        found[name] = interval(estimate(by_size @ whole[row], scored, random, again))
    value = by_size.mean(0).sum(0) / scored.sum()
    fitted = found["L_inf"]["value"] + found["a"]["value"] / np.arange(1, count + 1)
    found["largest_residual"] = float(np.abs(value - fitted).max())
    if count >= 4:
        exponents = np.array([free_exponent(row) for row in without]) if part >= 3 else None
        se, df = jackknife(exponents)
        found["exponent_if_free"] = interval({"nats_per_token": free_exponent(value), "se": se, "se_df": df})
    return found


def solve(count: int, exponent: float = 1.0) -> np.ndarray:
    """What takes losses at K = 1..count to the least-squares L_inf and a.  -> [2, count]"""
    sizes = np.arange(1, count + 1.0)
    return np.linalg.pinv(np.stack([np.ones(count), sizes**-exponent], 1))


def free_exponent(losses: np.ndarray) -> float:
    """The b of L_inf + a / K^b with the least squares.  losses [K]"""
    sizes = np.arange(1, len(losses) + 1.0)

    def misfit(b: float) -> float:
        level, slope = solve(len(losses), b) @ losses
        return float(((losses - level - slope * sizes**-b) ** 2).sum())

    return float(min(EXPONENTS, key=misfit))


def interval(found: dict) -> dict:
    """95 %, where there is an error."""
    value, se = found["nats_per_token"], found["se"]
    wide = None if se is None else half_width(se, found["se_df"])
    return {"value": value, "se": se, "interval": None if wide is None else [value - wide, value + wide]}
