"""How long a pass takes: a fixed part, a part per token, and a part per token of context.

    seconds = fixed + per_token * tokens + per_context * sum over tokens of the slots it attends to

Learnt while passes run: least squares of the relative error, with old passes forgotten slowly and
outliers (a pass during which the machine did something else) pulled in as by Huber's estimator.
Pure; the first guess is what was measured when the slice was loaded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

FORGETTING = 0.96
"""Weight that a pass keeps when the next one is learnt."""
PRIOR_WEIGHT = 0.05
"""The first guess counts as so many passes of each kind, for ever: passes that are all alike say
nothing about others."""
OUTLIER = 2.5
"""From so many typical errors on a pass pulls less."""
PROMPT_TOKENS = 128
"""Of the prompt that speeds are told for."""
_CONTEXT_PART = 0.05
"""Of such a prompt's time, a first guess of what its context takes."""


@dataclass(frozen=True, slots=True)
class PassSize:
    """`context`: the sum, over the tokens, of the slots that each attends to."""

    tokens: int = 0
    context: float = 0.0

    def __add__(self, other: "PassSize") -> "PassSize":
        return PassSize(self.tokens + other.tokens, self.context + other.context)


def tokens_after(held: float, tokens: int) -> PassSize:
    """So many tokens of a row that holds `held` slots."""
    return PassSize(tokens, tokens * (held + (tokens + 1) / 2))


class CostModel:
    """Seconds of a pass, of any size."""

    def __init__(self, decode_s: float, prefill_tokens_per_s: float) -> None:
        """`decode_s`: a pass of one token behind 128; `prefill_tokens_per_s`: of 128 tokens."""
        prompt_s = max(PROMPT_TOKENS / prefill_tokens_per_s, decode_s)
        prompt = tokens_after(0, PROMPT_TOKENS)
        self._prior = (
            ((1.0, 1.0, PROMPT_TOKENS), decode_s),
            ((1.0, float(prompt.tokens), prompt.context), prompt_s),
            ((0.0, 0.0, prompt.context), _CONTEXT_PART * prompt_s),
        )
        self._matrix = [[0.0] * 3 for _ in range(3)]
        self._vector = [0.0] * 3
        self._typical_error = 0.1
        """Moving average of the relative error, capped."""
        self.passes = 0
        self.fixed_s, self.per_token_s, self.per_context_s = self._solve()

    def seconds(self, size: PassSize) -> float:
        """A pass of this size, at least a microsecond; an empty one takes no time."""
        if not size.tokens:
            return 0.0
        return max(1e-6, self.fixed_s + self.marginal_s(size))

    def decode_s(self, rows: int) -> float:
        """A pass over so many decode rows, each behind `PROMPT_TOKENS` slots."""
        return self.seconds(PassSize(rows, rows * PROMPT_TOKENS))

    def marginal_s(self, size: PassSize) -> float:
        """What work of this size adds to a pass that runs anyway."""
        return self.per_token_s * size.tokens + self.per_context_s * size.context

    def tokens_within(self, seconds: float, held: float) -> int:
        """How many tokens of a row that holds `held` slots add at most so much to a pass."""
        if seconds <= 0:
            return 0
        linear = self.per_token_s + self.per_context_s * (held + 0.5)
        square = self.per_context_s / 2
        if square * seconds < 1e-12 * linear * linear or not linear:
            return int(seconds / max(linear, 1e-9) + 1e-6)
        root = sqrt(linear * linear + 4 * square * seconds)
        return int((root - linear) / (2 * square) + 1e-6)

    def learn(self, size: PassSize, seconds: float) -> None:
        """A pass of this size took so long."""
        if not size.tokens or seconds <= 0:
            return
        error = abs(seconds - self.seconds(size)) / seconds
        trust = min(1.0, OUTLIER * self._typical_error / max(error, 1e-9))
        self._typical_error += 0.1 * (min(error, 1.0) - self._typical_error)
        self._typical_error = max(self._typical_error, 0.02)
        for row in range(3):
            for column in range(3):
                self._matrix[row][column] *= FORGETTING
            self._vector[row] *= FORGETTING
        features = (1.0, float(size.tokens), size.context)
        _add(self._matrix, self._vector, features, seconds, trust)
        self.passes += 1
        self.fixed_s, self.per_token_s, self.per_context_s = self._solve()

    def _solve(self) -> tuple[float, float, float]:
        matrix = [list(row) for row in self._matrix]
        vector = list(self._vector)
        for features, seconds in self._prior:
            _add(matrix, vector, features, seconds, PRIOR_WEIGHT)
        used = [0, 1, 2]
        while True:
            solution = _solved(matrix, vector, used)
            negative = [index for index in used if solution[index] < 0]
            if not negative:
                return solution[0], solution[1], solution[2]
            used.remove(min(negative, key=lambda index: solution[index] * matrix[index][index]))


def _add(
    matrix: list[list[float]],
    vector: list[float],
    features: Sequence[float],
    seconds: float,
    weight: float,
) -> None:
    """One equation `features . x = seconds`, divided by the seconds: the error is relative."""
    relative = [feature / seconds for feature in features]
    for row, left in enumerate(relative):
        for column, right in enumerate(relative):
            matrix[row][column] += weight * left * right
        vector[row] += weight * left


def _solved(matrix: list[list[float]], vector: list[float], used: Sequence[int]) -> list[float]:
    """The least squares over the `used` unknowns; the others are 0. Gauss with scaling."""
    scale = [1.0 / sqrt(matrix[i][i]) for i in used]
    size = len(used)
    rows = [
        [matrix[a][b] * scale[i] * scale[j] for j, b in enumerate(used)] + [vector[a] * scale[i]]
        for i, a in enumerate(used)
    ]
    for i in range(size):
        rows[i][i] += 1e-9
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(rows[row][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for other in range(i + 1, size):
            factor = rows[other][i] / rows[i][i]
            for column in range(i, size + 1):
                rows[other][column] -= factor * rows[i][column]
    values = [0.0] * size
    for i in reversed(range(size)):
        rest = sum(rows[i][j] * values[j] for j in range(i + 1, size))
        values[i] = (rows[i][size] - rest) / rows[i][i]
    solution = [0.0, 0.0, 0.0]
    for i, index in enumerate(used):
        solution[index] = values[i] * scale[i]
    return solution
