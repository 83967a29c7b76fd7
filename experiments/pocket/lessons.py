"""Short documents of the world's text that each teach one thing about its language.

Causes and effects, words with two senses, pronouns, counting: said in the words of a storybook,
with examples that belong to the text's part of the world and never in the form of a task.
"""

from __future__ import annotations

from random import Random

from experiments.pocket import words
from experiments.pocket.counts import draw_story
from experiments.pocket.events import Pair, draw_pair, other_event
from experiments.pocket.pronouns import draw_mention
from experiments.pocket.senses import Uses, draw_uses
from experiments.pocket.splits import TEXT, part_of

UNRELATED = 0.3  # share of the events that nothing came of: another one just follows
EFFECT_LINKS = ("That is why", "What came of it?", "For this reason")
CAUSE_LINKS = ("The reason was this:", "Why?", "It came from this:")
MEANWHILE = ("The same day", "Later")

SAME = 0.6  # share of the pairs of sentences that use a word in one sense
COMPARED = (
    'Is "{w}" one thing in both lines?\n', 'Does "{w}" mean one thing here?\n',
    'Both times "{w}", and is it the same?\n',
)  # fmt: skip

RIGHT_PERSON = 0.6  # share of the people named for a pronoun that are the right ones
SHORT_REPLY = 0.5  # share of the replies about numbers that are no sentence


def causes(rng: Random) -> str:
    """Write what happened to two people and what came of it, or why."""
    lines = []
    for _ in range(2):
        pair = text_pair(rng)
        if rng.random() < UNRELATED:
            link, second = rng.choice(MEANWHILE), other_event(rng, pair)
        else:
            link = rng.choice(EFFECT_LINKS if pair.effect else CAUSE_LINKS)
            second = pair.second
        if link[-1] not in "?:":
            second = second[0].lower() + second[1:]
        lines.append(f"{pair.first} {link} {second}\n")
    return "".join(lines)


def senses(rng: Random) -> str:
    """Write two sentences with one word and what it means in them."""
    same = rng.random() < SAME
    uses = text_uses(rng, same)
    one, two = uses.sentences
    if rng.random() < 0.35:
        return "".join(
            f'{sentence}\nThe word "{uses.word}" is for {gloss}.\n'
            for sentence, gloss in zip(uses.sentences, uses.glosses, strict=True)
        )
    line = rng.choice(COMPARED).format(w=uses.word)
    if rng.random() < 0.5:
        reply = "Yes." if same else "No."
    elif same:
        reply = f"Yes, {uses.glosses[0]}."
    else:
        reply = f"No, {uses.glosses[0]} and then {uses.glosses[1]}."
    return f"{one}\n{two}\n{line}{reply}\n"


def pronouns(rng: Random) -> str:
    """Write a sentence about two people and say whom its pronoun means."""
    while part_of((mention := draw_mention(rng)).text) != TEXT:
        pass
    who, other = mention.people[mention.refers], mention.people[1 - mention.refers]
    lines = [f"{mention.text}\n"]
    for _ in range(2):
        turn = rng.random()
        if turn < 0.25:
            lines.append(f"Who {mention.done}?\nIt was {who}.\n")
        elif turn < 0.5:
            lines.append(f'Here "{mention.pronoun}" means {who}, not {other}.\n')
        else:
            right = rng.random() < RIGHT_PERSON
            line = f'Is "{mention.pronoun}" the same as {who if right else other} here?\n'
            lines.append(line + ("Yes" if right else "No") + rng.choice((".\n", f", {who}.\n")))
    return "".join(lines)


def counts(rng: Random) -> str:
    """Write a story with numbers and questions about it."""
    while part_of((story := draw_story(rng)).text) != TEXT:
        pass
    lines = [f"{story.text}\n"]
    asker = rng.choice(words.WOMEN + words.MEN)
    for _ in range(3):
        query = story.draw_query(rng)
        line = rng.choice(("{a} asked, {q}\n", "Question: {q}\n"))
        reply = query.answer if rng.random() < SHORT_REPLY else query.sentence
        lines.append(f"{line.format(a=asker, q=query.question)}Reply: {reply}\n")
    return "".join(lines)


def text_pair(rng: Random) -> Pair:
    """Draw two events that belong to the text."""
    while part_of((pair := draw_pair(rng)).key) != TEXT:
        pass
    return pair


def text_uses(rng: Random, same: bool) -> Uses:
    """Draw two sentences with one word that belong to the text."""
    while part_of((uses := draw_uses(rng, same)).key) != TEXT:
        pass
    return uses
