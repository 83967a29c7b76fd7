"""Words with two senses, and short sentences that show which one is meant."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from experiments.pocket import words


@dataclass(frozen=True)
class Sense:
    """One meaning of a word: a gloss and sentences that use it ({n} a name)."""

    gloss: str
    sentences: tuple[str, ...]


SENSES: dict[str, tuple[Sense, Sense]] = {
    "bank": (
        Sense("the edge of a river", (
            "{n} sat on the bank of the river.", "{n} swam to the other bank.",
            "A boat lay at the bank near {n}.", "{n} caught fish from the bank.",
        )),
        Sense("a house for money", (
            "{n} took coins out of the bank.", "The bank lent money to {n}.",
            "{n} counts coins in a bank.", "{n} owes the bank a lot of money.",
        )),
    ),
    "bat": (
        Sense("an animal", (
            "{n} saw a bat fly at night.", "A bat slept in the cave of {n}.",
            "The wings of the bat scared {n}.", "{n} heard a bat fly out of the cave.",
        )),
        Sense("a thing for games", (
            "{n} hit the ball with a bat.", "{n} won the game with a new bat.",
            "The bat of {n} is made of wood.", "{n} bought a bat and a ball.",
        )),
    ),
    "spring": (
        Sense("a time of the year", (
            "{n} plants flowers in spring.", "{n} longs for spring in the cold winter.",
            "The snow melts for {n} in spring.", "{n} was born in spring, not in summer.",
        )),
        Sense("water from the ground", (
            "{n} drank from the spring.", "The spring gives {n} clear water.",
            "{n} filled a bottle at the spring.", "{n} washed in the water of the spring.",
        )),
    ),
    "letter": (
        Sense("a message", (
            "{n} sent a letter to a friend.", "A letter came for {n} by post.",
            "{n} put a stamp on the letter.", "The post lost a letter to {n}.",
        )),
        Sense("a sign in a word", (
            "{n} can spell it with one letter.", "{n} left a letter out of the name.",
            "The name of {n} has one letter more.", "{n} cannot spell the last letter.",
        )),
    ),
    "match": (
        Sense("a game", (
            "{n} won the match and got a prize.", "The team of {n} lost the match.",
            "{n} saw the match with the team.", "The match ended well for {n} and the team.",
        )),
        Sense("a thing that burns", (
            "{n} lit the fire with a match.", "The match of {n} burned a hole.",
            "{n} struck a match in the dark.", "{n} made a fire with the last match.",
        )),
    ),
    "seal": (
        Sense("an animal", (
            "{n} saw a seal swim in the sea.", "The seal ate a fish from {n}.",
            "A seal lay on the ice near {n}.", "{n} gave fish to the seal.",
        )),
        Sense("a mark of wax", (
            "{n} pressed a seal into the wax.", "The paper of {n} has a red seal.",
            "{n} broke the seal of the paper.", "The mayor put a seal on the paper of {n}.",
        )),
    ),
    "palm": (
        Sense("a tree", (
            "{n} sat in the shade of a palm.", "A tall palm grows in the garden of {n}.",
            "{n} climbed the tall palm.", "The leaves of the palm give {n} shade.",
        )),
        Sense("a part of the hand", (
            "{n} held a coin in one palm.", "The palm of {n} hurts, and so does the thumb.",
            "{n} cut a palm and a finger.", "{n} has a ring on the finger, near the palm.",
        )),
    ),
    "nail": (
        Sense("a thing of iron", (
            "{n} hit the nail with a hammer.", "A nail of iron holds the door of {n}.",
            "{n} pulled a nail out of the wood.", "{n} put a nail into the wood.",
        )),
        Sense("a part of a finger", (
            "{n} painted the nail of one finger.", "{n} bit the nail of a thumb.",
            "The nail of {n} is long, like the finger.", "{n} cut the nail of the thumb.",
        )),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Uses:
    """Two sentences that use one word, with the gloss of each use."""

    word: str
    sentences: tuple[str, str]
    glosses: tuple[str, str]

    @property
    def key(self) -> str:
        """Return the text whose hash decides which part of the world owns the two."""
        return " ".join(self.sentences)


def draw_uses(rng: Random, same: bool, among: tuple[str, ...] = tuple(SENSES)) -> Uses:
    """Draw a word and two different sentences with it, in one sense or in two."""
    word = rng.choice(among)
    first, second = rng.sample(SENSES[word], 2)
    if same:
        second = first
        templates = rng.sample(first.sentences, 2)
    else:
        templates = [rng.choice(first.sentences), rng.choice(second.sentences)]
    names = rng.sample(words.WOMEN + words.MEN, 2)
    one, two = (t.format(n=name) for t, name in zip(templates, names, strict=True))
    return Uses(word, (one, two), (first.gloss, second.gloss))
