"""A prompt as the user's turn of a chat, in the words of the tokenizer's own template.

    header + prompt + footer, then the option as the assistant's answer

A model's thinking, where its template can switch it, is off: the answer follows at once.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MARK = "a prompt"


class ChatError(ValueError):
    """A tokenizer whose chat template cannot be used."""


class ChatFrame:
    """What a chat template puts before and behind the one thing the user says.

    `header_length`: the tokens before the prompt.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        if not tokenizer.chat_template:
            raise ChatError(
                "model.prompt=chat: this model's tokenizer has no chat template; allowed is plain"
            )
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": MARK}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=False,
        )
        self.header, found, self.footer = str(text).partition(MARK)
        ids = tokenizer(str(text), add_special_tokens=False)["input_ids"]
        header = tokenizer(self.header, add_special_tokens=False)["input_ids"]
        self.header_length = len(header)  # pyright: ignore
        if not found or ids[: self.header_length] != header:  # pyright: ignore
            raise ChatError(
                f"model.prompt=chat: the chat template renders {MARK!r} as {text!r}, needed: the "
                "words unchanged, behind tokens of their own; allowed is plain"
            )

    def wrap(self, prompt: str) -> str:
        """Return the text up to where the assistant's answer begins."""
        return f"{self.header}{prompt}{self.footer}"
