"""Examples to ids: option tokens, truncation from the left, and what does not fit."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import normalizers

from experiments.data.encode import EncodeError, Encoder
from experiments.tasks import Example
from tests.text_models import byte_tokenizer

PLAIN, WITH_BOS = byte_tokenizer(), byte_tokenizer(bos=True)
TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)


def ids_of(text: str) -> list[int]:
    return PLAIN(text)["input_ids"]


def test_option_tokens_are_the_last_ones():
    encoded = Encoder(PLAIN, 64).encode(Example("It was", (" bad", " good"), 1))
    assert encoded.ids == (ids_of("It was bad"), ids_of("It was good"))
    assert encoded.option_lengths == (4, 5)
    assert encoded.label == 1
    assert not encoded.truncated


@given(
    prompt=TEXT,
    options=st.lists(TEXT, min_size=1, max_size=4, unique=True),
    max_length=st.integers(2, 60),
    bos=st.booleans(),
)
def test_truncation_is_from_the_left_and_keeps_bos_and_option(prompt, options, max_length, bos):
    encoder = Encoder(WITH_BOS if bos else PLAIN, max_length)
    example = Example(prompt, tuple(options), 0)
    whole = [[1] * bos + ids_of(prompt + option) for option in options]
    own = [ids_of(option) for option in options]
    if any(len(row) > max_length < bos + 1 + len(o) for row, o in zip(whole, own, strict=True)):
        with pytest.raises(EncodeError, match=f"max_length={max_length} cannot hold option"):
            encoder.encode(example)
        return
    encoded = encoder.encode(example)
    assert encoded.truncated == any(len(row) > max_length for row in whole)
    for row, length, full, option in zip(
        encoded.ids, encoded.option_lengths, whole, own, strict=True
    ):
        assert row[-length:] == option
        assert row == full[:bos] + full[bos:][-(max_length - bos) :]
        assert len(row) == min(len(full), max_length)
        assert len(row) > length  # something is left to predict the option from


def test_one_by_one_is_the_same_as_all_at_once():
    examples = [Example("a b", (" c", " dd"), 0), Example("longer prompt", (" e\n",), None, ("e",))]
    encoder = Encoder(WITH_BOS, 12)
    assert encoder.encode_all(examples) == [encoder.encode(example) for example in examples]
    prompts = encoder.encode_prompts(examples, 4)
    assert prompts == [encoder.encode_prompt(example, 4) for example in examples]


def test_prompts_leave_room_for_generation():
    encoder = Encoder(WITH_BOS, 10)
    cut = encoder.encode_prompt(Example("0123456789", (" x",), None), 4)
    assert cut.ids == [1, *ids_of("56789")]
    assert cut.truncated
    assert not encoder.encode_prompt(Example("01234", (" x",), None), 4).truncated
    with pytest.raises(EncodeError, match=r"max_new_tokens=9 leaves no room .*allowed: 1 to 8"):
        encoder.encode_prompt(Example("0", (" x",), None), 9)


def test_an_option_without_a_token_is_an_error():
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip(left=False)
    with pytest.raises(EncodeError, match=r"option '\\n' adds no token .*option_len 0"):
        Encoder(tokenizer, 64).encode(Example("Yes or No?", ("\n",), 0))


def test_a_prompt_without_a_token_is_an_error():
    with pytest.raises(EncodeError, match="is no token to this tokenizer"):
        Encoder(PLAIN, 64).encode(Example("", ("Yes", "No"), 0))
    assert Encoder(WITH_BOS, 64).encode(Example("", ("Yes", "No"), 0)).option_lengths == (3, 2)


def test_special_tokens_behind_the_text_are_an_error():
    with pytest.raises(EncodeError, match="special tokens before the text only"):
        Encoder(byte_tokenizer(eos_behind=True), 64)


def test_a_length_limit_below_two_is_an_error():
    with pytest.raises(EncodeError, match="max_length=1 is not allowed"):
        Encoder(PLAIN, 1)


def test_real_tokenizers(shared: Path):
    from transformers import AutoTokenizer

    example = Example("Is it?\n", ("Yes", "No"), 0)
    for name, prefix in (("qwen3-tokenizer", 0), ("stories260K", 1), ("reviews-3m", 0)):
        tokenizer = AutoTokenizer.from_pretrained(shared / "models" / name)
        encoder = Encoder(tokenizer, 64)
        encoded = encoder.encode(example)
        for row, length, option in zip(
            encoded.ids, encoded.option_lengths, example.options, strict=True
        ):
            assert row == tokenizer(example.prompt + option)["input_ids"]
            assert encoder.decode(row[-length:]).strip().lower() == option.lower()
        if prefix:
            short = Encoder(tokenizer, max(encoded.option_lengths) + 2).encode(example)
            assert {row[0] for row in short.ids} == {tokenizer.bos_token_id}
            assert short.truncated


def word_tokenizer(*known: str):
    """A tokenizer of whole words; others are <unk>."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(("<unk>", *known))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


def test_options_the_tokenizer_cannot_write_are_refused():
    encoder = Encoder(word_tokenizer("It", "was", "great"), 64)
    with pytest.raises(EncodeError, match=r"' terrible' holds a token .* does not know .'<unk>'"):
        encoder.encode(Example("It was", (" great", " terrible"), 0))


def test_options_the_tokenizer_cannot_tell_apart_are_refused():
    lowering = byte_tokenizer()
    lowering.backend_tokenizer.normalizer = normalizers.Lowercase()
    encoder = Encoder(lowering, 64)
    with pytest.raises(EncodeError, match=r"'no', 'No'.* are the same tokens"):
        encoder.encode(Example("Yes or No?", ("No", "no"), 0))
    encoder.encode(Example("Yes or No?", ("No", "no", "yes"), 2))  # two wrong ones: no matter
