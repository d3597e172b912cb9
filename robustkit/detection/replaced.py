r"""A detector that reads every word of a text and says whether somebody else put it there.

An encoder is fine-tuned on clean texts and on copies with words replaced at random, to tell for each token
whether it is the writer's, as the discriminator of ELECTRA is (Clark, Luong, Le and Manning, ICLR 2020,
arXiv 2003.10555). ELECTRA's replacements are a language model's guesses and serve pre-training; these are
what attacks choose from (synonyms, neighbours, typos), and the verdict on a whole text is ours. No attack, no
adversarial text and no classifier is needed.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from robustkit.classifiers.cache import WeightsDigest
from robustkit.classifiers.features import Features, Text
from robustkit.classifiers.folders import folder_fingerprint, model_folder
from trainkit.config import FitConfig
from trainkit.hub import atomic_directory, fingerprint, read_json, write_json
from trainkit.loop import fit
from trainkit.objectives import Loss
from trainkit.seeding import derive_seed, preserved_rng

from .base import _GIVEN, Detector, texts_of
from .replaced_edits import RATES, Edited, Source, edited_copies, offers_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "JudgedWord",
    "ReaderDetector",
    "ReplacedWordsDetector",
    "ReplacedWordsObjective",
    "ReplacedWordsSettings",
    "WordReader",
    "joined",
    "text_log_odds",
    "train_replaced_words",
]

_READER = "reader"
_WORD = re.compile(r"\S+")
# Texts that are tokenized together, and windows in one forward pass.
_BATCH = 64
_SAVE_EVERY = 200


def text_log_odds(logits: Tensor, counts: Tensor) -> Tensor:
    r"""Log-odds that any token of a text is replaced, given those of the tokens and independence.

    With :math:`p_t` the probability of token t and :math:`q = \prod_t (1 - p_t)` this is
    :math:`\log((1 - q) / q)`.

    Args:
        logits: Log-odds of the tokens, :math:`\log(p_t / (1 - p_t))`, ``(n, T)``.
        counts: Which tokens count, bool ``(n, T)``.

    Returns:
        ``(n,)``; about -69 for a text without tokens, or one whose tokens are all certain.
    """
    none = -(softplus(logits) * counts).sum(dim=1)
    # Near log q = 0 the other probability is -log q; a floor keeps its logarithm finite.
    return torch.log(-torch.expm1(none.clamp(max=-1e-30))) - none


# The reader -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class JudgedWord:
    """What a reader says of one word.

    Attributes:
        word: The word as it stands in the text, with what is attached to it.
        start: Its first character.
        end: The one after its last.
        log_odds: That somebody replaced it: above 0 for more likely than not.
    """

    word: str
    start: int
    end: int
    log_odds: float


class WordReader:
    """An encoder with a head that gives each token the log-odds that its word was replaced.

    A text of more tokens than the reader takes (`max_length`) is read in windows that overlap by a quarter;
    each token is judged once, in the window where it stands further from the edge.

    Args:
        model: A token classifier of transformers with one label; put into evaluation mode, float32.
        tokenizer: Its tokenizer, a fast one; ``model_max_length`` is what the reader takes.

    Raises:
        ValueError: The model has several labels, or the tokenizer is slow, adds no special tokens (those of
            most left-to-right models) or does not say how much the reader takes.

    Example:
        ```python
        reader = WordReader.from_pretrained("my-reader")
        suspicious = [word for word in reader.word_log_odds(["a decent movie"])[0] if word.log_odds > 0]
        ```
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        if model.config.num_labels != 1:
            raise ValueError(
                f"the reader has {model.config.num_labels} labels; expected a token classifier with one, as "
                "train_replaced_words makes it"
            )
        _check_tokenizer(tokenizer)
        if tokenizer.model_max_length > 10**9:
            raise ValueError("tokenizer.model_max_length is not set; expected what the reader takes")
        self.model = model.float().eval()
        self.tokenizer = tokenizer
        self._weights = WeightsDigest(model)

    @property
    def max_length(self) -> int:
        """Tokens that are read at once, special ones included."""
        return int(self.tokenizer.model_max_length)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over weights, vocabulary and `max_length`; taken anew after the weights were changed."""
        vocabulary = json.dumps(self.tokenizer.get_vocab(), sort_keys=True)
        return fingerprint(self._weights(), vocabulary, self.max_length)

    def __repr__(self) -> str:
        return f"WordReader({self.fingerprint[:12]}, max_length={self.max_length})"

    @classmethod
    def from_pretrained(
        cls,
        folder_or_id: str | Path,
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
    ) -> Self:
        """Load a reader from a transformers folder or the Hub; safetensors weights only.

        Args:
            folder_or_id: What `save_pretrained` wrote; in a saved `ReplacedWordsDetector` it is ``reader``.
            revision: Branch, tag or commit of the repository.
            device: Where it runs.

        Raises:
            FileNotFoundError: The folder, or its safetensors weights, are missing.
            ValueError: The folder holds no reader, or one whose head is not trained.
            HubError: See `trainkit.resolve`.
        """
        from transformers import AutoTokenizer

        folder = model_folder(folder_or_id, revision)
        model = _load(folder, new_head=False)
        if device is not None:
            model.to(device)  # type: ignore[arg-type]  # its wrapper is annotated without the device
        return cls(model, AutoTokenizer.from_pretrained(folder, local_files_only=True))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a plain transformers folder, all or nothing; an earlier one is replaced."""
        with atomic_directory(folder, replace=True) as partial:
            self._write(partial)

    def _write(self, folder: Path) -> None:
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def log_odds(self, texts: Sequence[str], *, truncate: bool = False) -> NDArray[np.float64]:
        """`text_log_odds` of texts.

        Args:
            texts: n texts, empty ones too.
            truncate: Read only the first `max_length` tokens of a text.

        Returns:
            float64 ``(n,)``; a text's value does not depend on the others, up to rounding.

        Raises:
            TypeError: ``texts`` is a str.
        """
        scores = np.empty(len(texts))
        for number, _, logits in self._judged(texts, truncate):
            scores[number] = _any(logits)
        return scores

    def word_log_odds(self, texts: Sequence[str], *, truncate: bool = False) -> list[list[JudgedWord]]:
        """What the reader says of each word; words are what stands between blanks.

        Args:
            texts: n texts.
            truncate: See `log_odds`.

        Returns:
            For each text its words in order; those in which the tokenizer finds no token, or that were not
            read, are left out. A word of several tokens counts as replaced if any of them is.

        Raises:
            TypeError: ``texts`` is a str.
        """
        found: list[list[JudgedWord]] = [[] for _ in texts]
        for number, places, logits in self._judged(texts, truncate):
            for match in _WORD.finditer(texts[number]):
                start, end = match.span()
                own = logits[(places[:, 0] < end) & (places[:, 1] > start)]
                if len(own):
                    found[number].append(JudgedWord(match[0], start, end, _any(own)))
        return found

    @torch.no_grad()
    def _judged(self, texts: Sequence[str], truncate: bool) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Of each text, in any order, the number, the places (k, 2) of its tokens and their logits (k,)."""
        if isinstance(texts, str):
            raise TypeError("texts is a str; expected a sequence of texts")
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        for start in range(0, len(order), _BATCH):
            part = order[start : start + _BATCH]
            windows = self._windows([texts[i] for i in part], truncate)
            owners, places, counted = (windows.pop(name) for name in ("owners", "places", "counted"))
            logits = torch.cat(
                [
                    self.model(**{k: v[rows].to(self.model.device) for k, v in windows.items()}).logits.cpu()
                    for rows in torch.arange(len(owners)).split(_BATCH)
                ]
            )[..., 0].double()
            for place, number in enumerate(part):
                own = counted & (owners == place)[:, None]
                yield number, places[own], logits[own]

    def _windows(self, texts: list[str], truncate: bool) -> dict[str, Tensor]:
        """Model inputs of w windows, ``owners`` (w,), ``places`` (w, T, 2) and ``counted``, bool (w, T)."""
        overlap = (self.max_length - self.tokenizer.num_special_tokens_to_add()) // 4
        options = {} if truncate else {"stride": overlap, "return_overflowing_tokens": True}
        batch = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_length, return_tensors="pt",
            return_offsets_mapping=True, return_special_tokens_mask=True, **options,
        )  # fmt: skip
        windows: dict[str, Tensor] = dict(batch)
        places, content = windows.pop("offset_mapping"), windows.pop("special_tokens_mask") == 0
        owners = windows.pop("overflow_to_sample_mapping", torch.arange(len(texts)))
        change = torch.cat([torch.tensor([True]), owners[1:] != owners[:-1]])
        first, last = change, torch.cat([change[1:], torch.tensor([True])])
        if self.tokenizer.truncation_side == "left":
            # The windows of a text come from its end to its beginning.
            first, last = last, first
        position, length = content.cumsum(dim=1) - 1, content.sum(dim=1, keepdim=True)
        begins = first[:, None] | (position >= overlap // 2)
        ends = last[:, None] | (position < length - (overlap - overlap // 2))
        counted = content & begins & ends & (places[..., 1] > places[..., 0])
        return {**windows, "owners": owners, "places": places, "counted": counted}


def _any(logits: Tensor) -> float:
    return float(text_log_odds(logits[None], torch.ones(1, len(logits))))


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} does not say where tokens stand; a fast one is needed")
    if not tokenizer.num_special_tokens_to_add():
        raise ValueError(
            f"{type(tokenizer).__name__} adds no special tokens, so its model seems to read from left to "
            "right only; give an encoder of BERT's kind"
        )


def _load(folder: Path, *, new_head: bool) -> PreTrainedModel:
    """A trained token classifier, or an encoder with a new head of one label."""
    from transformers import MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING as KINDS
    from transformers import AutoConfig, AutoModelForTokenClassification

    kinds: Mapping[Any, Any] = KINDS
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if type(config) not in kinds:
        raise ValueError(
            f"{str(folder)!r} holds a {config.model_type}, of which transformers makes no token classifier; "
            "give an encoder of texts, such as BERT, RoBERTa or MiniLM"
        )
    if new_head:
        config.id2label, config.label2id = {0: "replaced"}, {"replaced": 0}
    elif kinds[type(config)].__name__ not in (found := config.architectures or ["model without a head"]):
        raise ValueError(
            f"{str(folder)!r} holds a {found[0]}, no trained reader; train one with train_replaced_words"
        )
    model: PreTrainedModel = AutoModelForTokenClassification.from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
        ignore_mismatched_sizes=new_head,
    )  # fmt: skip
    return model


# Training ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ReplacedWordsSettings:
    """How a reader is trained; the defaults are those of this project's study with MiniLM.

    Attributes:
        max_length: Tokens that the reader takes at once, special ones included; of a longer training text
            only the beginning is learned from.
        rates: Shares of a text's words that are replaced, one is drawn for each text.
        copies: Times that each text is seen as it is, and as often with other words replaced.
        batch_size: Texts of a step over all processes, alike in length.
        learning_rate: Peak of the linear schedule; larger encoders want less, about 3e-5.
        warmup_ratio: Share of the steps in which the rate rises.
        text_weight: Weight of a text's own log-loss beside the mean of its tokens'.
        mixed_precision: As in `FitConfig`.

    Raises:
        TypeError: A value is of another type.
        ValueError: A value is out of range.
    """

    max_length: int = 128
    rates: Sequence[float] = RATES
    copies: int = 2
    batch_size: int = 32
    learning_rate: float = 2e-4
    warmup_ratio: float = 0.1
    text_weight: float = 0.1
    mixed_precision: Literal["no", "bf16", "fp16"] = "bf16"

    def __post_init__(self) -> None:
        for name in ("max_length", "copies", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} is {value!r}; expected an int")
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1")
        for name in ("learning_rate", "warmup_ratio", "text_weight"):
            if not _is_number(value := getattr(self, name)):
                raise TypeError(f"{name} is {value!r}; expected a number")
        if not (isinstance(self.rates, Sequence) and all(map(_is_number, self.rates))):
            raise TypeError(f"rates is {self.rates!r}; expected a sequence of numbers")
        if not self.rates or not all(0 < rate <= 1 for rate in self.rates):
            raise ValueError(f"rates is {self.rates}; expected shares above 0 and at most 1")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate is {self.learning_rate}; expected a number above 0")
        if not 0 <= self.warmup_ratio < 1:
            raise ValueError(f"warmup_ratio is {self.warmup_ratio}; expected at least 0 and below 1")
        if not 0 <= self.text_weight < math.inf:
            raise ValueError(f"text_weight is {self.text_weight}; expected at least 0")
        if self.mixed_precision not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision is {self.mixed_precision!r}; expected no, bf16 or fp16")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class ReplacedWordsObjective:
    """Log-loss of every token, averaged over a text's tokens, plus ``text_weight`` times that of the text.

    Args:
        tokenizer: A fast one; it gives the tokens' places.
        max_length: Tokens read of a text.
        text_weight: See `ReplacedWordsSettings`.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int, text_weight: float) -> None:
        self.tokenizer, self.max_length, self.text_weight = tokenizer, max_length, text_weight

    def collate(self, batches: Sequence[Sequence[Edited]]) -> dict[str, Tensor]:
        """Joins batches of texts; adds ``is_token`` and ``replaced``, both ``(n, T)``."""
        texts = [text for batch in batches for text in batch]
        batch = self.tokenizer(
            [text.text for text in texts], padding=True, truncation=True, max_length=self.max_length,
            return_tensors="pt", return_offsets_mapping=True,
        )  # fmt: skip
        starts, ends = batch.pop("offset_mapping").unbind(dim=-1)
        is_token = ends > starts
        replaced = torch.zeros(starts.shape)
        for row, text in enumerate(texts):
            for start, end in text.places:
                replaced[row][is_token[row] & (starts[row] < end) & (ends[row] > start)] = 1
        return {**batch, "is_token": is_token, "replaced": replaced}

    def __call__(self, model: Any, batch: Mapping[str, Tensor]) -> Loss:
        """Sum over the batch's texts; one without tokens counts nothing."""
        inputs = {name: t for name, t in batch.items() if name not in ("is_token", "replaced")}
        logits, is_token = model(**inputs).logits[..., 0].float(), batch["is_token"]
        of_tokens = binary_cross_entropy_with_logits(logits, batch["replaced"], reduction="none") * is_token
        changed = batch["replaced"].amax(dim=1)
        of_texts = binary_cross_entropy_with_logits(
            text_log_odds(logits, is_token).clamp(-30, 30), changed, reduction="none"
        )
        means = of_tokens.sum(dim=1) / is_token.sum(dim=1).clamp(min=1)
        return Loss(means.sum() + self.text_weight * of_texts.sum(), len(logits))


def train_replaced_words(
    texts: Sequence[str],
    encoder: str | Path,
    sources: Sequence[Source],
    *,
    spared: Collection[str] = frozenset(),
    settings: ReplacedWordsSettings | None = None,
    output_dir: str | Path | None = None,
    revision: str | None = None,
    seed: int = 0,
) -> ReplacedWordsDetector:
    """Fine-tune an encoder to find replaced words.

    Cost: ``2 copies`` passes over the texts, forward and backward. Under ``accelerate launch`` or
    ``torchrun`` all processes train; each returns the detector, one of them should save it.

    Args:
        texts: Clean texts like those that will be guarded, best the classifier's training texts.
        encoder: Folder or Hub id of a pretrained encoder with a fast tokenizer and safetensors weights.
        sources: Where replacements come from, see `Source`; an attack that chooses its words elsewhere will
            be found less often.
        spared: Words that stay, such as stop words; their case does not matter.
        settings: Windows, edits, batches and rates.
        output_dir: Folder for checkpoints and metrics: the same call goes on with an interrupted run, and
            costs no training where the run is complete. None keeps nothing.
        revision: Branch, tag or commit of the encoder.
        seed: Of the head's first weights, the edits, the order and dropout.

    Returns:
        A detector that wants to be calibrated.

    Raises:
        TypeError: ``texts`` holds something else than str, or a source is none.
        ValueError: No texts or sources, no word has a replacement, the model is no encoder or takes fewer
            tokens than ``max_length``, or ``output_dir`` holds a run of another encoder, with other settings
            or another seed, or on other texts.
        OSError: The encoder is missing or has no safetensors weights; see `trainkit.resolve`.

    Example:
        ```python
        sources = [WordNetSwap(wordnet), NeighbourSwap(neighbours), typos]
        detector = train_replaced_words(train_texts, "sentence-transformers/all-MiniLM-L6-v2", sources,
                                        spared=stopwords, output_dir="runs/reader")
        detector.calibrate(classifier.extract(validation_texts), fpr=0.05)
        detector.word_log_odds(["a decent movie"])
        ```
    """
    from accelerate import PartialState

    settings = settings or ReplacedWordsSettings()
    _check_texts(texts, sources)
    folder = model_folder(encoder, revision)
    model, tokenizer = _untrained(folder, settings.max_length, seed)
    _warn_of_long(texts, tokenizer)
    rows = _rows(texts, sources, frozenset(word.lower() for word in spared), settings, seed)
    processes = PartialState(cpu=not torch.accelerator.is_available())
    if output_dir is not None:
        record = {
            "encoder": folder_fingerprint(folder),
            "settings": {**asdict(settings), "rates": list(settings.rates)},
            "seed": seed,
            "rows": fingerprint([row.text for row in rows]),
        }
        _claim(Path(output_dir), record, write=processes.is_main_process)
    fit(
        model,
        ReplacedWordsObjective(tokenizer, settings.max_length, settings.text_weight),
        _alike_in_length(rows, -(-settings.batch_size // processes.num_processes), seed=seed),
        config=FitConfig(
            output_dir=output_dir,
            epochs=1,
            batch_size=processes.num_processes,
            learning_rate=settings.learning_rate,
            warmup_ratio=settings.warmup_ratio,
            mixed_precision=settings.mixed_precision,
            seed=seed,
            save_every=None if output_dir is None else _SAVE_EVERY,
            keep_checkpoints=1,
            log_every=50,
            resume=output_dir is not None,
        ),
    )
    return ReplacedWordsDetector(WordReader(model, tokenizer))


def _check_texts(texts: Sequence[str], sources: Sequence[Source]) -> None:
    if isinstance(texts, str):
        raise TypeError("texts is a str; expected a sequence of texts")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"texts[{number}] is a {type(text).__name__}; expected a str")
    if not len(texts):
        raise ValueError("texts is empty: there is nothing to learn from")
    if not sources:
        raise ValueError("sources is empty; expected at least one, such as typos or WordNetSwap(wordnet)")
    for source in sources:
        offers_of(source)


def _untrained(folder: Path, max_length: int, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The encoder with a new head, and its tokenizer, which reads ``max_length`` tokens."""
    from transformers import AutoTokenizer

    with preserved_rng():
        torch.manual_seed(seed)
        model = _load(folder, new_head=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    _check_tokenizer(tokenizer)
    special = tokenizer.num_special_tokens_to_add()
    limit = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or 10**9)
    if not special < max_length <= limit:
        raise ValueError(
            f"max_length is {max_length}; expected more than the {special} special tokens and at most "
            f"{limit}, what the encoder takes"
        )
    tokenizer.model_max_length = max_length
    return model, tokenizer


def _rows(
    texts: Sequence[str],
    sources: Sequence[Source],
    spared: frozenset[str],
    settings: ReplacedWordsSettings,
    seed: int,
) -> list[Edited]:
    """What is learned from: the texts, and copies of them with words replaced, several times over."""
    rows = []
    for copy in range(settings.copies):
        copy_seed = derive_seed("copy", seed, copy)
        rows += [
            *(Edited(text) for text in texts),
            *edited_copies(texts, sources, spared, seed=copy_seed, rates=settings.rates),
        ]
    if len(rows) == settings.copies * len(texts):
        raise ValueError(
            f"no word of the {len(texts)} texts was replaced: the sources offer nothing for words of three "
            "letters or more that are not spared"
        )
    return rows


def _alike_in_length(rows: Sequence[Edited], size: int, *, seed: int) -> list[list[Edited]]:
    """Batches of texts alike in length, so that padding costs little; the seed says which of them meet."""
    rng = Random(seed)
    order = sorted(rows, key=lambda row: (len(row.text.split()) + rng.random() * 4, row.text))
    return [order[start : start + size] for start in range(0, len(order), size)]


def _warn_of_long(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> None:
    limit, long = tokenizer.model_max_length, 0
    for start in range(0, len(texts), 1000):
        tokens = tokenizer(list(texts[start : start + 1000]), truncation=True, max_length=limit + 1)
        long += sum(len(ids) > limit for ids in tokens["input_ids"])
    if long:
        warnings.warn(
            f"{long} of {len(texts)} texts have more than {limit} tokens; the reader learns from their "
            "beginning only",
            stacklevel=3,
        )


def _claim(folder: Path, own: Mapping[str, object], *, write: bool) -> None:
    """Refuse a folder that holds another run than the one that is described."""
    record = folder / "learned_from.json"
    if record.is_file() and (found := read_json(record)) != own:
        # The rows follow from seed and settings, too.
        changed = [name for name in ("encoder", "settings", "seed") if found.get(name) != own[name]]
        raise ValueError(
            f"{str(folder)!r} holds the training of a reader with another encoder, settings, seed, texts or "
            f"sources (what differs: {', '.join(changed or ['texts or sources'])}); remove this folder, or "
            "write elsewhere (output_dir, --out on the command line)"
        )
    if write:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(record, own)


# The detector -----------------------------------------------------------------------------------------------


class ReaderDetector(Detector):
    """A detector with a reader of replaced words, which is saved with it.

    It needs no `fit`. Arguments of a subclass are ``reader``, ``truncate`` and what else it needs.
    """

    needs_fit = False
    not_saved: ClassVar[tuple[str, ...]] = ("reader",)

    reader: WordReader
    truncate: bool

    def _check_params(self) -> None:
        if not isinstance(self.reader, WordReader):
            raise TypeError(
                f"reader is a {type(self.reader).__name__}; expected a WordReader, such as "
                "WordReader.from_pretrained(folder)"
            )
        if not isinstance(self.truncate, bool):
            raise TypeError(f"truncate is {self.truncate!r}; expected a bool")

    def word_log_odds(self, texts: Sequence[str]) -> list[list[JudgedWord]]:
        """Which words look replaced: see `WordReader.word_log_odds`."""
        return self.reader.word_log_odds(texts, truncate=self.truncate)

    def judged_words(self, texts: Sequence[Text]) -> Sequence[Sequence[JudgedWord]]:
        """The words of texts, or of pairs read as one text, with all that the detector says of them."""
        return self.word_log_odds([joined(text) for text in texts])

    def _save(self, directory: Path) -> None:
        super()._save(directory)
        folder = directory / _READER
        folder.mkdir()
        self.reader._write(folder)

    @classmethod
    def _parts(cls, directory: Path) -> dict[str, object]:
        classifier, parts = _GIVEN.get()
        device = None if classifier is None else classifier.device
        given = _GIVEN.set(
            (classifier, {**parts, "reader": WordReader.from_pretrained(directory / _READER, device=device)})
        )
        try:
            return super()._parts(directory)
        finally:
            _GIVEN.reset(given)


class ReplacedWordsDetector(ReaderDetector):
    r"""Log-odds that a reader gives to any word of a text being replaced.

    With :math:`p_t` the reader's probability for token t the score is :math:`\log((1 - q) / q)`, :math:`q =
    \prod_t (1 - p_t)`. The reader knows the classifier's texts, not the classifier: it also finds attacked
    texts that failed, and words that the writer himself misspelt. It needs no `fit`, only `calibrate`. Cost:
    a forward pass of the reader, more for long texts.

    Args:
        reader: A trained reader, such as that of `train_replaced_words`; saved with the detector, and loaded
            to the device of the classifier that is given then.
        truncate: Read only the first tokens of a text, as many as the reader takes at once, instead of the
            whole in windows.

    Example:
        >>> detector = train_replaced_words(texts, encoder, [WordNetSwap(wordnet), typos])
        >>> detector.calibrate(validation_features)
        >>> detector.save_pretrained("replaced")
        >>> Detector.from_pretrained("replaced")
    """

    extra_forwards = "1 of the reader"

    def __init__(self, reader: WordReader, truncate: bool = False) -> None:
        self.reader = reader
        self.truncate = truncate
        self._check_params()

    def _fit(self, clean: Features, labels: NDArray[np.int64], adversarial: Features | None) -> None:
        texts_of(clean)

    def _score(self, inputs: Features) -> NDArray[np.float64]:
        return self.reader.log_odds([joined(text) for text in texts_of(inputs)], truncate=self.truncate)


def joined(text: Text) -> str:
    """A text as the reader gets it: the parts of a pair are read one after the other."""
    return text if isinstance(text, str) else " ".join(text)
