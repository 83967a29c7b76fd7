"""The protocol's two metrics: accuracy, and SQuAD's token F1."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def accuracy(predictions: Sequence[int], correct: Sequence[Sequence[int]]) -> float:
    """Return the share of predictions that are among the correct options."""
    hits = sum(p in allowed for p, allowed in zip(predictions, correct, strict=True))
    return hits / len(correct)


def best_constant(correct: Sequence[Sequence[int]]) -> float:
    """Return the accuracy of the best single option number for all: what knows nothing reaches."""
    numbers = {number for allowed in correct for number in allowed}
    return max(accuracy([number] * len(correct), correct) for number in numbers)


def normalise(answer: str) -> list[str]:
    """Return an answer's words: lower case, no punctuation, no a/an/the, single spaces."""
    bare = answer.lower().translate(_PUNCTUATION)
    return _ARTICLES.sub(" ", bare).split()


def token_f1(prediction: str, gold: str) -> float:
    """Return the F1 of the two answers as bags of normalised words (0 without a common word).

    A gold answer that has no such words ("A", "+") is compared as it is written, in lower case.
    """
    predicted, wanted = normalise(prediction), normalise(gold)
    if not wanted:
        return float(prediction.strip().lower() == gold.strip().lower())
    common = sum((Counter(predicted) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def best_f1(prediction: str, golds: Sequence[str]) -> float:
    """Return the highest token F1 over the gold answers."""
    return max(token_f1(prediction, gold) for gold in golds)
