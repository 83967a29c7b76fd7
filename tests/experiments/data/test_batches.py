"""Batches and losses: padding changes nothing, and the fast loss is the textbook loss."""

import copy
from collections import Counter
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from experiments.data.batches import Batch, collate, collate_rows, sample_batch
from experiments.data.encode import Encoded, Encoder
from experiments.models.loss import label_logits, loss, mean_log_probs, option_log_probs
from experiments.tasks import TASKS, Example
from tests.text_models import FAMILIES, VOCABULARY, byte_tokenizer, random_model

EXAMPLES = [
    Example("It was", (" bad", " good"), 1),
    Example("a much longer prompt. It was", (" bad", " good"), 0),
    Example("three. It", (" a", " bb", " is a long one"), 2),
]
ONE_TOKEN = [
    Example("It was", ("x", "y", "z"), 1),
    Example("a much longer prompt. It was", ("x", "y", "z"), 0),
    Example("three. It", ("x", "b", "z"), 2),
]
TWO_OPTIONS = [Example("yes or no?", ("y", "n"), 1)]
ENCODER = Encoder(byte_tokenizer(), 64)
CLASSIFICATION, LM = TASKS["sst2"], TASKS["squad"]


def token_log_probs(model: nn.Module, ids: list[int], option_length: int) -> Tensor:
    """The textbook: all logits of one row, shifted by one, the option's tokens picked out."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids])).logits[0].float()
    picked = F.log_softmax(logits[:-1], dim=-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return picked[-option_length:]


def textbook_loss(model: nn.Module, examples: list[Encoded], kind: str) -> Tensor:
    rows = [
        [token_log_probs(model, *row) for row in zip(e.ids, e.option_lengths, strict=True)]
        for e in examples
    ]
    if kind == "lm":
        return -torch.cat([own[e.label] for own, e in zip(rows, examples, strict=True)]).mean()
    scores = [torch.stack([option.mean() for option in own]) for own in rows]
    losses = [
        F.cross_entropy(s, torch.tensor(e.label)) for s, e in zip(scores, examples, strict=True)
    ]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", [CLASSIFICATION, LM], ids=["classification", "lm"])
def test_loss_is_the_textbook_loss(family: str, task):
    model, encoded = random_model(family), ENCODER.encode_all(EXAMPLES)
    for chosen in (encoded, encoded[:2], encoded[1:2], encoded[::-1]):
        batch = collate(chosen, task, ENCODER.pad_id)
        with torch.no_grad():
            value = loss(model, batch)
        assert value.shape == ()
        assert value.dtype == torch.float32
        torch.testing.assert_close(
            value, textbook_loss(model, chosen, task.loss), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("family", FAMILIES)
def test_options_of_one_token_share_a_row(family: str):
    model, encoded = random_model(family), ENCODER.encode_all(ONE_TOKEN)
    batch = collate(encoded, CLASSIFICATION, ENCODER.pad_id)
    apart = collate(encoded, CLASSIFICATION, ENCODER.pad_id, share=False)
    assert (batch.input_ids.shape[0], apart.input_ids.shape[0]) == (3, 9)
    assert batch.targets.shape == (3, 1, 3)
    assert torch.equal(batch.option_rows, apart.option_rows)
    gradients = []
    for rows in (batch, apart):
        model.zero_grad()
        value = loss(model, rows)
        value.backward()
        wanted = textbook_loss(model, encoded, "classification")
        torch.testing.assert_close(value.detach(), wanted, rtol=1e-5, atol=1e-5)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_rows_are_shared_only_where_all_examples_allow_it():
    one, longer = ENCODER.encode_all(ONE_TOKEN), ENCODER.encode_all(EXAMPLES)
    for mixed in ([one[0], longer[0]], longer, [one[0], *ENCODER.encode_all(TWO_OPTIONS)]):
        batch = collate(mixed, CLASSIFICATION, ENCODER.pad_id)
        assert batch.input_ids.shape[0] == sum(len(e.ids) for e in mixed)
    assert collate(one, LM, ENCODER.pad_id).input_ids.shape[0] == 3


@pytest.mark.parametrize("family", FAMILIES)
def test_a_padded_row_scores_as_alone(family: str):
    model, encoded = random_model(family), ENCODER.encode_all(EXAMPLES)
    ids = [row for e in encoded for row in e.ids]
    lengths = [length for e in encoded for length in e.option_lengths]
    together = collate_rows(ids, lengths, ENCODER.pad_id)
    assert together.padded
    with torch.no_grad():
        scores = mean_log_probs(option_log_probs(model, together), together.target_mask)
        for row, length, score in zip(ids, lengths, scores, strict=True):
            alone = collate_rows([row], [length], ENCODER.pad_id)
            assert not alone.padded
            own = mean_log_probs(option_log_probs(model, alone), alone.target_mask)
            torch.testing.assert_close(own[0], score, rtol=0, atol=1e-5)


def test_layout_of_a_batch():
    batch = collate(ENCODER.encode_all(EXAMPLES), CLASSIFICATION, ENCODER.pad_id)
    rows, width = batch.input_ids.shape
    assert (rows, width) == (7, len("a much longer prompt. It was good"))
    assert batch.option_rows.tolist() == [[0, 1, -1], [2, 3, -1], [4, 5, 6]]
    assert batch.labels.tolist() == [1, 0, 2]
    assert batch.token_mask.dtype == torch.bool
    assert batch.token_mask.sum(1).tolist() == [10, 11, 32, 33, 11, 12, 23]
    assert torch.equal(batch.attention_mask.bool(), batch.token_mask)
    assert (batch.input_ids[~batch.token_mask] == ENCODER.pad_id).all()
    assert batch.position_ids[0].tolist() == [0] * 23 + list(range(10))
    longest = len(" is a long one")
    assert batch.label_positions.tolist() == list(range(width - longest - 1, width - 1))
    assert batch.target_mask.sum(1).tolist() == [4, 5, 4, 5, 2, 3, 14]
    assert batch.targets.shape == (7, longest, 1)
    shown = batch.targets[0][batch.target_mask[0], 0].tolist()
    assert ENCODER.decode(shown) == " bad"
    only = collate(ENCODER.encode_all(EXAMPLES), LM, ENCODER.pad_id)
    assert only.input_ids.shape[0] == 3
    assert [
        ENCODER.decode(t[m, 0].tolist())
        for t, m in zip(only.targets, only.target_mask, strict=True)
    ] == [
        " good",
        " bad",
        " is a long one",
    ]


def test_gradient_of_the_loss_is_finite_with_fewer_options():
    model = random_model("qwen3")
    loss(model, collate(ENCODER.encode_all(EXAMPLES), CLASSIFICATION, ENCODER.pad_id)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_reduced_in_float32(dtype: torch.dtype):
    model = random_model("qwen3").to(dtype)
    batch = collate(ENCODER.encode_all(EXAMPLES[:2]), CLASSIFICATION, ENCODER.pad_id)
    with torch.no_grad():
        logits = label_logits(model, batch)
        log_probs = F.log_softmax(logits.float(), dim=-1).gather(2, batch.targets)
        value, own = loss(model, batch), option_log_probs(model, batch)
    assert logits.dtype == dtype
    assert value.dtype == own.dtype == torch.float32
    torch.testing.assert_close(own, log_probs * batch.target_mask[..., None], rtol=1e-5, atol=1e-5)


class Plain(nn.Module):
    """A model of one's own: no logits_to_keep, no positions, a tensor as output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8, VOCABULARY)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        hidden = self.embedding(input_ids)
        if attention_mask is not None:
            hidden = hidden * attention_mask[..., None]
        return self.head(hidden.cumsum(1))


class Wrapper(nn.Module):
    """As adapters wrap a model: arguments are handed on."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.seen = inner, set()

    def forward(self, *args, **kwargs):
        self.seen |= set(kwargs)
        return self.inner(*args, **kwargs)


class Unmasked(nn.Module):
    def forward(self, input_ids: Tensor) -> Tensor:
        return torch.zeros(*input_ids.shape, VOCABULARY)


def test_a_model_without_logits_to_keep():
    model, encoded = Plain(), ENCODER.encode_all(EXAMPLES)
    rows = collate(encoded, CLASSIFICATION, ENCODER.pad_id)
    full = model(rows.input_ids, rows.attention_mask)
    assert torch.equal(label_logits(model, rows), full[:, rows.label_positions])


def test_a_wrapper_gets_every_keyword():
    inner = random_model("llama")
    model, batch = Wrapper(inner), collate(ENCODER.encode_all(EXAMPLES), LM, ENCODER.pad_id)
    assert torch.equal(loss(model, batch), loss(inner, batch))
    assert model.seen == {"attention_mask", "position_ids", "logits_to_keep", "use_cache"}


def test_padded_rows_need_a_model_with_a_mask():
    encoded = ENCODER.encode_all(EXAMPLES)
    with pytest.raises(TypeError, match=r"Unmasked\.forward takes no attention_mask"):
        loss(Unmasked(), collate(encoded, CLASSIFICATION, ENCODER.pad_id))
    value = loss(Unmasked(), collate(encoded[:1], LM, ENCODER.pad_id))
    torch.testing.assert_close(value, torch.tensor(float(VOCABULARY)).log())


@pytest.mark.parametrize("task", [CLASSIFICATION, LM], ids=["classification", "lm"])
def test_nothing_is_read_back_to_the_host(task):
    """On the meta device there are no values: a read-back would raise."""
    batch = collate(ENCODER.encode_all(EXAMPLES), task, ENCODER.pad_id)
    tensors = {
        f.name: getattr(batch, f.name).to("meta")
        for f in fields(Batch)
        if isinstance(getattr(batch, f.name), Tensor)
    }
    assert loss(copy.deepcopy(Plain()).to("meta"), replace(batch, **tensors)).is_meta


def test_an_empty_batch_is_an_error():
    with pytest.raises(ValueError, match="a batch of 0 rows"):
        collate_rows([], [], 0)


# Order of batches


@given(
    n_train=st.integers(1, 40),
    batch_size=st.integers(1, 40),
    seed=st.integers(0, 2**40),
    epochs=st.integers(1, 3),
)
def test_every_epoch_sees_each_example_once(n_train, batch_size, seed, epochs):
    if batch_size > n_train:
        with pytest.raises(
            ValueError, match=f"batch_size={batch_size} .*training examples, {n_train}"
        ):
            sample_batch(n_train, batch_size, seed, 0)
        return
    steps = -(-n_train * epochs // batch_size)
    batches = [sample_batch(n_train, batch_size, seed, step) for step in range(steps)]
    assert all(len(batch) == batch_size for batch in batches)
    seen = [index for batch in batches for index in batch]
    for epoch in range(epochs):
        assert sorted(seen[epoch * n_train : (epoch + 1) * n_train]) == list(range(n_train))
    assert sample_batch(n_train, batch_size, seed, steps - 1) == batches[-1]  # asked alone


def test_order_depends_on_seed_and_epoch_and_stays_the_same_for_ever():
    epochs = {tuple(sample_batch(8, 8, seed, step)) for seed in range(3) for step in range(3)}
    assert len(epochs) == 9
    assert sample_batch(8, 4, 0, 0) == [1, 0, 2, 5]
    assert sample_batch(8, 4, 2**33 + 1, 5) != sample_batch(8, 4, 1, 5)
    counts = Counter(sample_batch(50, 10, s, 0)[0] for s in range(400))
    assert len(counts) > 45


def test_impossible_batches():
    with pytest.raises(ValueError, match="batch_size=0 is not allowed"):
        sample_batch(8, 0, 0, 0)
    with pytest.raises(ValueError, match="step=-1"):
        sample_batch(8, 2, 0, -1)
