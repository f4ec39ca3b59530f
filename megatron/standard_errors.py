"""What standard errors of few degrees of freedom add up to, and how wide an interval they make."""

from __future__ import annotations

import math


def combined(*parts: tuple[float | None, float | None]) -> tuple[float | None, float | None]:
    """The error of a sum of independent terms, and its degrees of freedom by Welch and Satterthwaite (Biometrics 2, 1946, 110).

    Each part is an error and its degrees of freedom, None where they are many; an error of None is left out, and so is one
    of 0. None where nothing is left.
    """
    known = [(error, df) for error, df in parts if error is not None]
    if not known:
        return None, None
    total = math.hypot(*(error for error, _ in known))
    spread = math.fsum((error / total) ** 4 / df for error, df in known if error and df)
    return total, 1 / spread if spread else None


def half_width(error: float, df: float | None, coverage: float = 0.95) -> float:
    """How far an interval of that coverage reaches to either side: Student's t, or the normal's quantile without `df`."""
    from scipy.special import ndtri, stdtrit

    tail = (1 + coverage) / 2
    return error * float(ndtri(tail) if df is None else stdtrit(df, tail))
