"""A small lexicon in the format that `WordNet.from_files` reads, and the same one as WordNet's database."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

SYNSETS = {
    "00000001-n": ["film", "movie", "moving picture", "picture"],
    "00000002-n": ["film", "thin-film", "plastic_film"],
    "00000003-n": ["church", "Church"],
    "00000004-n": ["man", "adult male", "human"],
    "00000005-n": ["good", "goodness"],
    "00000006-n": ["ad", "advertisement", "ad-lib"],
    "00000007-n": ["AD", "A.D.", "anno Domini"],
    "00000008-n": ["fly", "housefly"],
    "00000009-n": ["ice cream", "icecream"],
    "00000010-n": ["analysis", "breakdown"],
    "00000011-n": ["leaf", "foliage"],
    "00000001-v": ["film", "shoot", "take"],
    "00000002-v": ["go", "travel", "move"],
    "00000003-v": ["hope", "trust", "desire"],
    "00000004-v": ["hop", "jump"],
    "00000005-v": ["fly", "aviate"],
    "00000006-v": ["like", "care for", "enjoy"],
    "00000001-a": ["good", "fine", "Fine"],
    "00000002-a": ["nice", "pleasant"],
    "00000003-a": ["large", "big"],
    "00000004-s": ["good", "sound"],
    "00000001-r": ["well", "good"],
    "00000002-r": ["finely", "o'clock", "so-so"],
}
FORMS = {
    "man": {"n": ["men"]},
    "analysis": {"n": ["analyses"]},
    "leaf": {"n": ["leaves"]},
    "go": {"v": ["went", "gone", "goes"]},
    "fly": {"v": ["flew", "flown"]},
    "good": {"a": ["better", "best"]},
    "well": {"r": ["better", "best"]},
    "ice cream": {"n": ["icecreams"]},
}
INFLECTED = (
    "films", "filmed", "filming", "FILM", "churches", "men", "goods", "ads", "AD", "a.d", "flies",
    "flew", "fly", "goes", "going", "went", "hopes", "hoped", "hoping", "hopping", "nicer",
    "nicest", "larger", "better", "best", "well", "analyses", "leaves", "ice_cream", "ice-cream",
    "icecreams", "o'clock", "likes", "s", "es", "ing",
)  # fmt: skip


def entries() -> dict[str, Any]:
    """Lemma -> part of speech -> senses, as Open English WordNet has them."""
    found: dict[str, Any] = {}
    for identifier, members in SYNSETS.items():
        for lemma in members:
            part = identifier[-1].replace("s", "a")
            senses = found.setdefault(lemma.replace("_", " "), {}).setdefault(part, [])
            senses.append([identifier, f"{lemma}%1:00:00::"])
    return found


def write_json(folder: Path) -> tuple[Path, Path]:
    """The two files of `WordNet.from_files`."""
    first, second = folder / "entries.json", folder / "synsets.jsonl"
    first.write_text(json.dumps({"entries": entries(), "forms": FORMS}))
    rows = [{"id": identifier, "members": members} for identifier, members in SYNSETS.items()]
    second.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return first, second


def nltk_reader(home: Path) -> Any:
    """NLTK's reader of the lexicon; ``home`` must be on ``nltk.data.path``."""
    from nltk.corpus.reader import WordNetCorpusReader

    folder = home / "corpora" / "wordnet"
    folder.mkdir(parents=True)
    _write_database(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has English only, which it warns about
        return WordNetCorpusReader(str(folder), None)


def _write_database(folder: Path) -> None:
    """The files of WordNet's database, see wndb(5WN)."""
    (folder / "lexnames").write_text("".join(f"{i:02d}\tname{i}\t1\n" for i in range(45)))
    (folder / "index.sense").write_text("")
    names = {"n": "noun", "v": "verb", "a": "adj", "r": "adv"}
    offsets: dict[str, int] = {}
    for part, name in names.items():
        header = "".join(f"  {number} WordNet 0.0 Copyright of nobody\n" for number in range(1, 30))
        data = header
        rows = [key for key in SYNSETS if key[-1].replace("s", "a") == part]
        for key in rows:
            offsets[key] = len(data)
            words = " ".join(f"{member.replace(' ', '_')} 0" for member in SYNSETS[key])
            # A satellite needs a head: the first adjective.
            pointers = f"001 & {offsets['00000001-a']:08d} a 0000" if key[-1] == "s" else "000"
            frames = " 00" if part == "v" else ""
            count = f"{len(SYNSETS[key]):02x}"
            data += f"{len(data):08d} 00 {key[-1]} {count} {words} {pointers}{frames} | a gloss  \n"
        (folder / f"data.{name}").write_text(data)
        senses: dict[str, list[str]] = {}
        for lemma, parts in entries().items():
            for sense in parts.get(part, ()):
                senses.setdefault(lemma.lower().replace(" ", "_"), []).append(sense[0])
        index = header
        for lemma, ids in sorted(senses.items()):
            places = " ".join(f"{offsets[key]:08d}" for key in dict.fromkeys(ids))
            count = len(dict.fromkeys(ids))
            index += f"{lemma} {part} {count} 0 {count} 0 {places}  \n"
        (folder / f"index.{name}").write_text(index)
        irregular: dict[str, list[str]] = {}
        for lemma, forms in FORMS.items():
            for form in forms.get(part, ()):
                irregular.setdefault(form, []).append(lemma.replace(" ", "_"))
        (folder / f"{name}.exc").write_text(
            "".join(f"{form} {' '.join(lemmas)}\n" for form, lemmas in sorted(irregular.items()))
        )
