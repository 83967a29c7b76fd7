"""A prompt as the user's turn of a chat, in the words of the tokenizer's own template.

    header + prompt + footer, then the option as the assistant's answer

A model's thinking, where its template can switch it, is off: the answer follows at once. A template
that writes today's date writes that of `DATE`, so that a run's prompts are the same on every day.
Any other template that does not write the same words around every prompt is refused.
"""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from experiments.config.shorten import clipped, shortened

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Prompts whose words no template has of its own, and the answer to one of them.
PROMPTS = ("Is 7 more than 3?", 'The film was fine.\n\n"It" was', "so " * 400 + "it was")
ANSWER = "It is 4 more."
TIMES = 8  # that each is written: a template that chooses between two words at random is found

DATE = datetime(2024, 7, 26)  # the one that Llama 3's template falls back on
CODES = "aAbBcdDefFgGhHIjklmMnpPrRSTuUVwWxXyYzZ%"
CLOCK = "strftime_now"  # what transformers calls the clock it gives to templates

# A macro stands before the function of its name. Its last line break is the one that is not shown.
FIXED_CLOCK = f"""{{%- macro {CLOCK}(format) -%}}
{{%- set shown = namespace(text=format) -%}}
{{%- for code, word in fixed_date.items() -%}}
{{%- set shown.text = shown.text.replace(code, word) -%}}
{{%- endfor -%}}
{{{{- shown.text -}}}}
{{%- endmacro %}}
"""


class ChatError(ValueError):
    """A tokenizer whose chat template cannot be used."""

    def __init__(self, why: str) -> None:
        super().__init__(f"model.prompt=chat: {why}; allowed is plain")


class ChatFrame:
    """What a chat template puts before and behind the one thing the user says.

    `header_length`: the tokens before the prompt. `sha256` tells frames apart.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.chat_template:
            raise ChatError("this model's tokenizer has no chat template")
        first, *_ = PROMPTS
        self.header, _, self.footer = _written(tokenizer, [first]).partition(first)
        for prompt in PROMPTS * TIMES:
            text = _written(tokenizer, [prompt])
            if text != self.wrap(prompt):
                raise ChatError(
                    f"the chat template renders {shortened(prompt)} as {shortened(text)}, needed: "
                    f"the words once and unchanged, between {shortened(self.header)} and "
                    f"{shortened(self.footer)}, the same around every prompt"
                )
        self._check_tokens(tokenizer, first)
        self._check_end(tokenizer, first)
        self.sha256 = hashlib.sha256(f"{self.header}\0{self.footer}".encode()).hexdigest()

    def wrap(self, prompt: str) -> str:
        """Return the text up to where the assistant's answer begins."""
        return f"{self.header}{prompt}{self.footer}"

    def _check_tokens(self, tokenizer: "PreTrainedTokenizerBase", prompt: str) -> None:
        """Find the header's length; the prompt must begin with a token of its own."""
        ids: Any = tokenizer(self.wrap(prompt), add_special_tokens=False)["input_ids"]
        header: Any = tokenizer(self.header, add_special_tokens=False)["input_ids"]
        self.header_length = len(header)
        if ids[: self.header_length] != header:
            raise ChatError(
                f"the chat template renders {shortened(prompt)} as {shortened(self.wrap(prompt))}, "
                "needed: the words unchanged, behind tokens of their own"
            )

    def _check_end(self, tokenizer: "PreTrainedTokenizerBase", prompt: str) -> None:
        """Refuse a template that writes more words between a prompt and its answer.

        Some write no generation prompt: an option would go on with what the user said. Others begin
        the answer with a thought.
        """
        try:
            whole = _written(tokenizer, [prompt, ANSWER], generation=False)
        except ChatError:  # it takes no answer, so that nothing can be said
            return
        before, answered, _ = whole.partition(ANSWER)
        more = before.removeprefix(self.wrap(prompt)) if answered else before
        if more != before and more.strip():
            raise ChatError(
                f"the chat template ends a prompt with {shortened(self.footer)}, and writes "
                f"{shortened(more)} more before an answer, needed: a generation prompt behind "
                "which the answer begins"
            )


def _date() -> dict[str, str]:
    """Return what each code of strftime stands for on `DATE`; %-d is %d without its zeros."""
    words = {code: DATE.strftime(f"%{code}") for code in CODES}
    bare = {f"%-{code}": word.strip().lstrip("0") or "0" for code, word in words.items()}
    return {f"%{code}": word for code, word in words.items()} | bare


def _written(
    tokenizer: "PreTrainedTokenizerBase", turns: Sequence[str], generation: bool = True
) -> str:
    """Return what the template writes of a chat in which user and assistant take turns."""
    roles = ("user", "assistant")
    try:
        template = tokenizer.get_chat_template()
        fixed: dict[str, Any] = {}
        if CLOCK in template:
            fixed = {"chat_template": FIXED_CLOCK + template, "fixed_date": _date()}
        return str(
            tokenizer.apply_chat_template(
                [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)],
                tokenize=False,
                add_generation_prompt=generation,
                enable_thinking=False,
                **fixed,
            )
        )
    except Exception as error:  # whatever the template's language raises
        raise ChatError(
            f"the chat template cannot be rendered ({type(error).__name__}: {clipped(str(error))})"
        ) from error
