"""Adversarial training on texts: every step against loops by hand in float64, padding, dropout, the bank."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustkit.attacks.gradient import EmbeddingBall, LInf
from robustkit.classifiers import TextClassifier
from robustkit.training import (
    FGSMRS,
    MART,
    SIHG,
    TRADES,
    DynamicTraining,
    FlipCrop,
    FreeLB,
    FreeTraining,
    Growing,
    Natural,
    OnTexts,
    PGDTraining,
    TextBank,
    TextGame,
)
from tests.robustkit.tiny import tiny_classifier, toy_sentiment
from tests.robustkit.training.toys import assert_other, assert_same, config, weights
from trainkit import Callback, FitState, fit
from trainkit.seeding import epoch_permutation

TEXTS, LABELS = toy_sentiment(12)
TEXTS = [text if row % 3 else " ".join(text.split()[:5]) for row, text in enumerate(TEXTS)]
BALL = EmbeddingBall(0.3)
RATE = 0.1


class Reviews:
    def __len__(self) -> int:
        return len(TEXTS)

    def __getitem__(self, index: int) -> tuple[str, int]:
        return TEXTS[index], LABELS[index]


def classifier(family: str = "bert", *, dropout: bool = False) -> TextClassifier:
    model, tokenizer = tiny_classifier(family)
    for module in model.modules():
        if isinstance(module, nn.Dropout) and not dropout:
            module.p = 0.0
    return TextClassifier(model.double(), tokenizer)  # type: ignore[no-untyped-call]


def train(
    method: Any, found: TextClassifier, data: Any = None, *, callbacks: Any = (), **settings: Any
) -> Any:
    settings = {"max_steps": 3, "batch_size": 6, "learning_rate": RATE, **settings}
    return fit(
        found.model,
        method,
        data or Reviews(),
        config=config(**settings),
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=RATE),
        callbacks=callbacks,
    )


def batches(steps: int, size: int = 6) -> list[tuple[Tensor, list[str], Tensor]]:
    """Ids, texts and labels of the steps of a run with seed 0."""
    epochs = (epoch_permutation(len(TEXTS), seed=0, epoch=epoch).split(size) for epoch in range(steps))
    ids = [part for epoch in epochs for part in epoch][:steps]
    return [(part, [TEXTS[i] for i in part], torch.tensor([LABELS[i] for i in part])) for part in ids]


def by_hand(model: Any, tokenizer: Any, texts: list[str], delta: Tensor | None = None) -> tuple[Any, Tensor]:
    """Logits by way of ``inputs_embeds`` with positions that are given, and which tokens are words."""
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    if "roberta" in type(model).__name__.lower():
        positions = mask.cumsum(1) * mask + model.config.pad_token_id
    else:
        positions = torch.arange(ids.shape[1]).expand_as(ids)
    embedded = model.get_input_embeddings()(ids)
    words = mask.bool() & ~torch.isin(ids, torch.tensor([*tokenizer.all_special_ids]))
    if delta is None:
        delta = torch.zeros_like(embedded)
    logits = model(inputs_embeds=embedded + delta, attention_mask=mask, position_ids=positions).logits
    return logits, words


def word_norms(found: TextClassifier, texts: list[str]) -> Tensor:
    ids = found.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]
    return found.model.get_input_embeddings()(ids).detach().norm(dim=2, keepdim=True)


def normed(gradient: Tensor, words: Tensor) -> Tensor:
    """Token by token, 0 where there is no word."""
    size = gradient.norm(dim=2, keepdim=True)
    return (gradient / size.where(size > 0, 1)) * words[..., None]


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_one_ascent_step_is_the_one_by_hand(family: str) -> None:
    """Section 9: epsilon relative to each token, padding and special tokens at rest, the table learns too."""
    trained, twin = classifier(family), classifier(family)
    train(OnTexts(PGDTraining(BALL, 1, 0.5, random_start=False), trained), trained)
    model = twin.model
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for _, texts, labels in batches(3):
        norms = word_norms(twin, texts)
        delta = torch.zeros(*norms.shape[:2], 32, dtype=torch.float64, requires_grad=True)
        logits, words = by_hand(model, twin.tokenizer, texts, delta)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), delta)
        moved = 0.5 * 0.3 * norms * normed(gradient, words)
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(model, twin.tokenizer, texts, moved)[0], labels).backward()
        optimizer.step()
    assert_same(trained.model, model, atol=1e-10)
    natural = classifier(family)
    train(OnTexts(Natural(), natural), natural)
    assert_other(trained.model, natural.model)
    before = classifier(family).model.get_input_embeddings().weight
    assert (trained.model.get_input_embeddings().weight - before).abs().max() > 1e-6


def test_sihg_with_a_bank_is_the_loop_by_hand() -> None:
    """R3 on texts: a perturbation of its own for each text, kept whatever the batch pads it to."""
    trained, twin = classifier(), classifier()
    bank = TextBank(len(TEXTS), dtype="float32")
    bank.put(torch.arange(len(TEXTS)), torch.zeros(len(TEXTS), 0, 32))
    train(OnTexts(SIHG(BALL, bank, alpha=0.4), trained, relative=False), trained, max_steps=6)
    model, kept = twin.model, [torch.zeros(0, 32, dtype=torch.float64) for _ in TEXTS]
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for ids, texts, labels in batches(6):
        _, words = by_hand(model, twin.tokenizer, texts)
        delta = torch.zeros(*words.shape, 32, dtype=torch.float64)
        for row, i in enumerate(ids.tolist()):
            if len(kept[i]):
                delta[row, words[row]] = kept[i]
        delta.requires_grad_()
        logits, _ = by_hand(model, twin.tokenizer, texts, delta)
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, labels, reduction="sum"), delta)
        moved = delta.detach() + 0.4 * 0.3 * normed(gradient, words)
        moved = moved * (0.3 / moved.norm(dim=2, keepdim=True).clamp(min=1e-30)).clamp(max=1)
        optimizer.zero_grad()
        nn.functional.cross_entropy(by_hand(model, twin.tokenizer, texts, moved)[0], labels).backward()
        optimizer.step()
        for row, i in enumerate(ids.tolist()):
            kept[i] = moved[row, words[row]]
    assert_same(trained.model, model, atol=1e-6)  # the bank has 32 bits
    for i, rows in enumerate(kept):
        torch.testing.assert_close(bank.get(torch.tensor([i]))[0].double(), rows, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "method",
    [
        PGDTraining(EmbeddingBall(0.0), 2),
        FGSMRS(EmbeddingBall(0.0)),
        SIHG(EmbeddingBall(0.0), TextBank(len(TEXTS))),
        DynamicTraining(EmbeddingBall(0.0), 2, horizon=5),
        FreeLB(EmbeddingBall(0.0, per="sentence"), steps=3),
        TRADES(BALL, 2, beta=0.0),
    ],
    ids=lambda method: type(method).__name__,
)
def test_without_room_training_is_natural(method: Any) -> None:
    one, other = classifier(), classifier()
    train(OnTexts(method, one), one)
    train(OnTexts(Natural(), other), other)
    assert_same(one.model, other.model, atol=1e-12)


def test_the_ball_of_words_grows_too() -> None:
    """With half of epsilon from beginning to end, and with the first step of two of a growing ball."""
    grown, halved = classifier(), classifier()
    growing = PGDTraining(Growing(BALL, 2), 1, 0.5, random_start=False)
    train(OnTexts(growing, grown), grown, max_steps=1)
    half = PGDTraining(EmbeddingBall(0.5 * BALL.epsilon), 1, 0.5, random_start=False)
    train(OnTexts(half, halved), halved, max_steps=1)
    assert_same(grown.model, halved.model, atol=0)
    whole = classifier()
    train(OnTexts(PGDTraining(BALL, 1, 0.5, random_start=False), whole), whole, max_steps=1)
    assert_other(grown.model, whole.model)


def test_freelb_averages_the_gradients_of_its_points() -> None:
    """Two points by hand, the first one drawn; one point trains on the start alone."""
    ball = EmbeddingBall(0.5, per="sentence")
    trained, twin = classifier(), classifier()
    seen: list[Tensor] = []

    class Watched(FreeLB):
        def _first(self, game: TextGame, generator: torch.Generator) -> Tensor:
            seen.append(super()._first(game, generator))
            return seen[-1]

    train(OnTexts(Watched(ball, 2, 0.4), trained, relative=False), trained, max_steps=1)
    ((_, texts, labels),) = batches(1)
    model = twin.model
    first = seen[0].clone().requires_grad_()
    logits, words = by_hand(model, twin.tokenizer, texts, first)
    numbers = words.sum(dim=1) * 32
    assert (first[~words] == 0).all()
    assert (first.abs().amax(dim=(1, 2)) <= 0.5 / numbers.sqrt()).all()
    assert (first.flatten(1).norm(dim=1) > 0.2).all()
    (gradient,) = torch.autograd.grad(
        nn.functional.cross_entropy(logits, labels, reduction="sum"), first, retain_graph=True
    )
    gradient = gradient * words[..., None]
    second = first.detach() + 0.2 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None]
    second = second * (0.5 / second.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None]
    again = by_hand(model, twin.tokenizer, texts, second)[0]
    loss = sum(nn.functional.cross_entropy(each, labels) for each in (logits, again)) / 2
    loss.backward()  # type: ignore[union-attr]
    torch.optim.SGD(model.parameters(), lr=RATE).step()
    assert_same(trained.model, model, atol=1e-10)
    one = classifier()
    method = FreeLB(ball, 1, start=0.0)
    train(OnTexts(method, one), one, max_steps=1)
    other = classifier()
    train(OnTexts(Natural(), other), other, max_steps=1)
    assert_same(one.model, other.model, atol=1e-12)
    assert method.cost.units == 3 * 6


def game(found: TextClassifier, rows: list[int], seed: int | None = None, mode: Any = "eval") -> TextGame:
    accelerator = SimpleNamespace(
        mixed_precision="no", unwrap_model=lambda model: model, pad_across_processes=lambda rows, dim: rows
    )
    context: Any = SimpleNamespace(accelerator=accelerator, real=True, step=0)
    labels = torch.tensor([LABELS[row] for row in rows])
    texts = [TEXTS[row] for row in rows]
    method = PGDTraining(BALL, mode=mode)
    return TextGame(found.model, texts, labels, method, context, found, True, seed)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlnet", "gpt2", "t5", "bart"])
def test_padding_changes_no_gradient_and_gets_none(family: str) -> None:
    """A short text alone and beside a long one; XLNet pads on the left, GPT-2 reads the last word."""
    found = classifier(family)
    alone, beside = game(found, [0]), game(found, [0, 1])
    assert beside.inputs.shape[1] > alone.inputs.shape[1]
    delta = 0.1 * torch.randn(alone.inputs.shape, generator=torch.Generator().manual_seed(0)).double()
    delta = alone.threat.project(delta)
    short = alone.gradient(delta)
    wide = torch.zeros_like(beside.inputs)
    wide[0, beside.mask[0]] = delta[0, alone.mask[0]]
    long = beside.gradient(wide)
    torch.testing.assert_close(short[0, alone.mask[0]], long[0, beside.mask[0]], rtol=0, atol=1e-8)
    moved = beside.move(wide, long, 0.5)
    assert (moved[~beside.mask] == 0).all() and (moved[beside.mask].norm(dim=1) > 0).all()


def test_positions_of_roberta_follow_the_padding_that_inputs_embeds_would_hide() -> None:
    """The trap: without positions ``inputs_embeds`` counts padding on the left as text."""
    found = classifier("roberta")
    found.tokenizer.padding_side = "left"
    texts = [TEXTS[0], TEXTS[1]]
    batch = found.tokenizer(texts, padding=True, return_tensors="pt")
    embedded = found.model.get_input_embeddings()(batch["input_ids"])
    with torch.no_grad():
        naive = found.model(inputs_embeds=embedded, attention_mask=batch["attention_mask"]).logits
        right = found.model(**batch).logits
        with found.changing_embeddings(lambda each: each + 0, batch["input_ids"]):
            ours = found.model(**batch).logits
    torch.testing.assert_close(ours, right, rtol=0, atol=1e-12)
    assert (naive - right).abs()[0].max() > 1e-4


def test_passes_over_a_batch_share_their_dropout() -> None:
    found = classifier(dropout=True)
    found.model.train()
    nothing = torch.zeros_like(game(found, [0, 1]).inputs)
    state = torch.random.get_rng_state()
    shared = game(found, [0, 1], seed=5, mode="train")
    first, second = shared.losses(None)[1], shared.losses(nothing)[1]
    assert torch.equal(first, second)
    assert torch.equal(torch.random.get_rng_state(), state)
    other = game(found, [0, 1], seed=6, mode="train").losses(None)[1]
    assert (other - first).abs().max() > 1e-6
    fresh = game(found, [0, 1], mode="train")
    assert (fresh.losses(None)[1] - fresh.losses(None)[1]).abs().max() > 1e-6


def test_what_is_packed_comes_back_whatever_the_padding() -> None:
    """Section 10: stored by real tokens only."""
    found = classifier()
    alone, beside = game(found, [0]), game(found, [1, 0])
    delta = alone.threat.project(torch.randn_like(alone.inputs))
    bank = TextBank(3, dtype="float32")
    bank.put(torch.tensor([2]), alone.packed(delta))
    bank.put(torch.tensor([1]), torch.zeros(1, 0, 32))
    back = beside.unpacked(bank.get(torch.tensor([1, 2])))
    assert (back[0] == 0).all()
    torch.testing.assert_close(back[1, beside.mask[1]], delta[0, alone.mask[0]], rtol=0, atol=1e-6)
    assert (back[1, ~beside.mask[1]] == 0).all()
    assert torch.equal(beside.unpacked(beside.packed(back)), back)
    long = torch.ones(1, int(alone.mask.sum()) + 1, 32)
    with pytest.raises(ValueError, match="more tokens than a text has"):
        alone.unpacked(long)


def test_a_bank_of_texts_keeps_forgets_and_goes_through_checkpoints() -> None:
    bank = TextBank(5)
    ids = torch.tensor([3, 0])
    rows = torch.tensor([[[1.0, 2.0], [0.0, 0.0], [0.5, 0.0]], [[4.0, 0.0], [0.0, 0.0], [0.0, 0.0]]])
    bank.put(ids, rows)
    assert bank.get(torch.tensor([0])).shape == (1, 1, 2)
    assert bank.get(ids).tolist() == rows.tolist()
    assert bank.seen.tolist() == [True, False, False, True, False]
    assert bank.get(torch.tensor([1])).shape == (1, 0, 0)
    twin = TextBank(5)
    twin.load_state_dict(bank.state_dict())
    assert twin.get(ids).tolist() == rows.tolist() and torch.equal(twin.seen, bank.seen)
    empty = TextBank(5)
    empty.load_state_dict(TextBank(5).state_dict())
    assert not empty.seen.any()
    bank.forget()
    assert not bank.seen.any() and bank.get(ids).shape == (2, 0, 0)
    with pytest.raises(ValueError, match="the bank is of 4 in float16"):
        TextBank(4).load_state_dict(twin.state_dict())
    with pytest.raises(ValueError, match=r"expected \(2, tokens, d\)"):
        bank.put(ids, torch.zeros(3, 2, 2))
    with pytest.raises(ValueError, match="no finite numbers"):
        bank.put(ids, torch.full((2, 1, 2), 1e6))
    with pytest.raises(IndexError, match="has 5 examples"):
        bank.get(torch.tensor([5]))
    for arguments, message in (((0,), "size is 0"), ((5, "int8"), "dtype is 'int8'")):
        with pytest.raises(ValueError, match=message):
            TextBank(arguments[0], dtype=arguments[1] if len(arguments) > 1 else "float16")  # type: ignore[arg-type, misc]


class Stop(Callback):
    def on_step_end(self, state: FitState) -> None:
        if state.step == 3:
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_with_its_bank(tmp_path: Path) -> None:
    def method(found: TextClassifier) -> OnTexts:
        return OnTexts(SIHG(BALL, TextBank(len(TEXTS)), replays=2, eta=0.5), found)

    whole, cut, resumed = classifier(dropout=True), classifier(dropout=True), classifier(dropout=True)
    train(method(whole), whole, max_steps=6)
    settings: dict[str, Any] = {"output_dir": tmp_path, "save_every": 2, "max_steps": 6}
    with pytest.raises(KeyboardInterrupt):
        train(method(cut), cut, callbacks=[Stop()], **settings)
    last = method(resumed)
    result = train(last, resumed, resume="auto", **settings)
    assert result.resumed_from == 2
    assert_same(resumed.model, whole.model, atol=0)


def test_training_makes_a_text_classifier_more_robust_to_its_own_ball() -> None:
    """Loss at the worst of a few random-start steps, after training with and without perturbations."""
    losses = []
    for make in (lambda: Natural(), lambda: SIHG(BALL, TextBank(len(TEXTS)), alpha=0.5)):
        found = classifier()
        train(OnTexts(make(), found), found, max_steps=40)
        judged = game(found, list(range(len(TEXTS))))
        delta = judged.climb(torch.zeros_like(judged.inputs), 5, 0.4)
        losses.append(judged.losses(delta)[0].mean().item())
    assert losses[1] < losses[0]


def test_bad_use_is_refused() -> None:
    found = classifier()
    with pytest.raises(TypeError, match="need an EmbeddingBall"):
        OnTexts(PGDTraining(LInf(0.1, box=None)), found)
    with pytest.raises(ValueError, match="every batch gets its own"):
        OnTexts(PGDTraining(BALL.for_mask(torch.ones(1, 2))), found)
    with pytest.raises(ValueError, match="FreeTraining needs inputs of one shape"):
        OnTexts(FreeTraining(BALL), found)
    with pytest.raises(ValueError, match="SIHG needs inputs of one shape"):
        OnTexts(SIHG(BALL, init="carry"), found)
    with pytest.raises(ValueError, match="augmentation is of images"):
        OnTexts(PGDTraining(BALL, augmentation=FlipCrop()), found)
    for settings, message in (
        ({"steps": 0}, "steps is 0"),
        ({"alpha": 0.0}, "alpha is 0"),
        ({"start": -1.0}, "start is -1"),
    ):
        with pytest.raises(ValueError, match=message):
            FreeLB(BALL, **settings)  # type: ignore[arg-type]
    stranger = classifier("roberta")
    with pytest.raises(ValueError, match="not that of the classifier"):
        fit(stranger.model, OnTexts(Natural(), found), Reviews(), config=config())
    with pytest.raises(ValueError, match="labels go from"):
        train(OnTexts(Natural(), found), found, data=[("a good film", 2)] * 6)


def test_images_are_refused_by_freelb() -> None:
    from tests.robustkit.training.toys import train as train_images

    with pytest.raises(TypeError, match="FreeLB is for texts"):
        train_images(FreeLB(LInf(0.1)))  # type: ignore[arg-type]


def test_mart_and_mappings_run_and_count_their_passes() -> None:
    """A pair of texts is a text too."""
    found = classifier()
    data = [{"text": ("a good film", "the plot is good"), "label": i % 2} for i in range(6)]
    method = MART(BALL, 2)
    train(OnTexts(method, found), found, data=data, max_steps=2)
    assert method.cost.units == 2 * 6 * (2 * 2 + 6)
    assert torch.isfinite(weights(found.model)).all()
    plain = OnTexts(Natural(), found)
    found.model._compiled_call_impl = print
    with pytest.raises(ValueError, match="does not notice"):
        train(plain, found)
