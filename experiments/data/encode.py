"""Examples to token ids, as MeZO encodes them.

    ids        = tokens(prompt + option)
    option_len = len(tokens(prompt + option)) - len(tokens(prompt))

so the option's tokens are the last `option_len` ids. A row longer than `max_length` loses tokens
from the left, after whatever the tokenizer itself puts first (a BOS token), which stays; that is
counted.
"""

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from experiments.config.shorten import shortened
from experiments.data.chat import ChatFrame
from experiments.tasks.base import Example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class EncodeError(ValueError):
    """An example the tokenizer or the length limit makes unusable."""


@dataclass(frozen=True)
class Encoded:
    """One example in tokens: a row of ids for each option, how many of them are the option's, the
    label.

    `label` indexes the rows; a generation example has one row (the first gold) and label 0.
    `correct` are all right options, the label among them. `truncated`: at least one row lost
    tokens.
    """

    ids: tuple[list[int], ...]
    option_lengths: tuple[int, ...]
    label: int
    truncated: bool
    correct: tuple[int, ...] = ()

    @functools.cached_property
    def shared(self) -> int:
        """Tokens that all rows begin with and that no option begins before."""
        first, *others = self.ids
        limit = min(len(row) - n for row, n in zip(self.ids, self.option_lengths, strict=True))
        for row in others:
            limit = next((i for i in range(limit) if row[i] != first[i]), limit)
        return limit

    @property
    def one_token(self) -> bool:
        """Whether the options are single tokens behind one and the same prompt."""
        return set(self.option_lengths) == {1} and self.shared == len(self.ids[0]) - 1


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt in tokens, cut to leave room for what is generated."""

    ids: list[int]
    truncated: bool


class Encoder:
    """Turns examples into ids with one tokenizer and one length limit.

    `vocabulary` is how many tokens the model has an embedding of; None: as many as it takes.
    `pad_id` fills up rows of a batch; it is masked everywhere, so a tokenizer without one, or with
    one that the model does not know, lends its end-of-text id, or id 0. With `chat` the prompt is
    what the user says in the tokenizer's chat template, and the option what the assistant answers;
    its opening words are never cut.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        max_length: int,
        chat: bool = False,
        vocabulary: int | None = None,
    ) -> None:
        if max_length < 2:
            raise EncodeError(f"train.max_length={max_length} is not allowed, needed: at least 2")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocabulary = vocabulary
        self._unknown = tokenizer.unk_token_id
        self._frame = ChatFrame(tokenizer) if chat else None
        self._prefix_length = (
            self._frame.header_length if self._frame else _leading_specials(tokenizer)
        )

    @property
    def chat_sha256(self) -> str | None:
        """What a chat template writes around every prompt, as a hash; None without one."""
        return self._frame.sha256 if self._frame else None

    @property
    def pad_id(self) -> int:
        """The token that fills up rows."""
        pads = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(pad for pad in pads if isinstance(pad, int) and self._known(pad))

    def encode(self, example: Example) -> Encoded:
        """Encode one example; see `encode_all`."""
        return self.encode_all([example])[0]

    def encode_all(self, examples: Sequence[Example]) -> list[Encoded]:
        """Encode examples in one call of the tokenizer.

        Raises EncodeError for an option without a token of its own, one that the tokenizer does
        not know or cannot tell from another, and a row that cannot hold its option and one token
        before it.
        """
        examples = [self._framed(example) for example in examples]
        texts = [
            text
            for example in examples
            for text in (example.prompt, *(example.prompt + option for option in example.options))
        ]
        tokens = iter(self._tokenize(texts))
        return [self._located(example, next(tokens), tokens) for example in examples]

    def encode_prompt(self, example: Example, max_new_tokens: int) -> EncodedPrompt:
        """Encode a prompt for generation; see `encode_prompts`."""
        return self.encode_prompts([example], max_new_tokens)[0]

    def encode_prompts(
        self, examples: Sequence[Example], max_new_tokens: int
    ) -> list[EncodedPrompt]:
        """Encode prompts for generation, each cut to `max_length - max_new_tokens` tokens."""
        room = self.max_length - max_new_tokens
        if max_new_tokens < 1 or room <= self._prefix_length:
            raise EncodeError(
                f"max_new_tokens={max_new_tokens} leaves no room for a prompt, allowed: 1 to "
                f"{self.max_length - self._prefix_length - 1} (train.max_length={self.max_length})"
            )
        prompts = self._tokenize([self._framed(example).prompt for example in examples])
        return [EncodedPrompt(self._cut(ids, room), len(ids) > room) for ids in prompts]

    def count(self, texts: Sequence[str]) -> list[int]:
        """Return the number of tokens of each text, without what opens a sequence."""
        ids = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return [len(row) for row in ids]  # pyright: ignore

    def length(self, example: Example) -> int:
        """Return the tokens of an example's longest row before any cut.

        Of a generation example its prompt's: the length of the gold answer is not to be known.
        """
        framed = self._framed(example)
        options = framed.options if example.label is not None else ("",)
        return max(map(len, self._tokenize([framed.prompt + option for option in options])))

    def decode(self, ids: list[int]) -> str:
        """Return the text of generated ids, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _framed(self, example: Example) -> Example:
        if self._frame is None:
            return example
        options = tuple(option.lstrip(" ") for option in example.options)
        return replace(example, prompt=self._frame.wrap(example.prompt), options=options)

    def _located(self, example: Example, prompt: list[int], tokens: Iterator[list[int]]) -> Encoded:
        try:
            return self._rows(example, prompt, tokens)
        except EncodeError as error:
            where = f"{example.where}: " if example.where else ""
            raise EncodeError(f"{where}{error}") from error

    def _rows(self, example: Example, prompt: list[int], tokens: Iterator[list[int]]) -> Encoded:
        if not prompt:
            raise EncodeError(
                f"the prompt of options {shortened(example.options)} is no token to this "
                "tokenizer, needed: at least one to predict an option from"
            )
        rows, lengths, truncated = [], [], False
        for option in example.options:
            ids = next(tokens)
            length = len(ids) - len(prompt)
            if length < 1:
                raise EncodeError(
                    f"option {shortened(option)} adds no token to the prompt that ends "
                    f"{example.prompt[-40:]!r} (option_len {length}), needed: at least one; "
                    "change the option's text or the tokenizer"
                )
            if self._prefix_length + length + 1 > self.max_length and len(ids) > self.max_length:
                raise EncodeError(
                    f"train.max_length={self.max_length} cannot hold option {shortened(option)} of "
                    f"{length} tokens behind a prompt, needed: at least "
                    f"{self._prefix_length + length + 1}"
                )
            if self._unknown is not None and self._unknown in ids[-length:]:
                raise EncodeError(
                    f"option {shortened(option)} holds a token that the tokenizer does not know "
                    f"({self.tokenizer.unk_token!r}), needed: text it can write; change the "
                    "option's text or the tokenizer"
                )
            truncated |= len(ids) > self.max_length
            rows.append(self._cut(ids, self.max_length))
            lengths.append(length)
        self._tell_apart(example, [row[-n:] for row, n in zip(rows, lengths, strict=True)])
        label = example.label or 0
        correct = example.correct or (label,)
        return Encoded(tuple(rows), tuple(lengths), label, truncated, correct)

    def _tell_apart(self, example: Example, options: list[list[int]]) -> None:
        right = {*example.correct, example.label or 0}
        for number, tokens in enumerate(options):
            if number not in right and any(tokens == options[one] for one in right):
                same = [example.options[one] for one in (number, *right)]
                raise EncodeError(
                    f"options {shortened(same)} are the same tokens to this tokenizer, needed: a "
                    "right option it can tell from a wrong one; change the options' texts or the "
                    "tokenizer"
                )

    def _cut(self, ids: list[int], room: int) -> list[int]:
        if len(ids) <= room:
            return ids
        return ids[: self._prefix_length] + ids[len(ids) - room + self._prefix_length :]

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        # verbose: the tokenizer would warn of rows longer than the model's context; we count them.
        specials = self._frame is None  # a chat template writes its own
        rows = self.tokenizer(texts, add_special_tokens=specials, verbose=False)["input_ids"]
        for row in rows:  # pyright: ignore[reportGeneralTypeIssues]
            if (largest := max(row, default=0)) and not self._known(largest):
                raise EncodeError(
                    f"token {self.tokenizer.convert_ids_to_tokens(largest)!r} has id {largest}, "
                    f"and the model embeds {self.vocabulary} tokens; needed: a tokenizer of this "
                    "model, or a model with an embedding of that length (resize_token_embeddings)"
                )
        return rows  # pyright: ignore[reportReturnType]

    def _known(self, token: int) -> bool:
        return self.vocabulary is None or 0 <= token < self.vocabulary


def _leading_specials(tokenizer: "PreTrainedTokenizerBase") -> int:
    """Count the special tokens the tokenizer puts before a text (a BOS: 1, none: 0).

    `add_bos_token` is not asked: tokenizers that add one by a post-processor say False. Raises
    EncodeError for one that also puts tokens behind the text, where the option must be last.
    """
    probe = "a b"
    bare = tokenizer(probe, add_special_tokens=False)["input_ids"]
    full = tokenizer(probe)["input_ids"]
    prefix = len(full) - len(bare)  # pyright: ignore
    if full[prefix:] != bare:  # pyright: ignore
        raise EncodeError(
            f"{type(tokenizer).__name__} turns {probe!r} into {full}, without special tokens "
            f"{bare}; "
            "needed: special tokens before the text only, since an option's tokens come last"
        )
    return prefix
