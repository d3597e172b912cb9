"""Invented voices: random habits of speech that turn a neutral reply into a speaker's own.

A language model learns to follow a voice from its lines only if it meets very many voices, each seen
through a few lines and nothing else. Real speakers are too few for that, so every training window that
uses an invented voice draws a new combination of habits: how a line opens and ends, how the other person
is addressed, which words are replaced, how sentences are cut and punctuated. Interjections are often
nonsense syllables, so that the habit can be learnt from the window alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from random import Random

__all__ = ["Voice", "random_name", "random_voice"]

_OPENERS = """Well|Oh|Ah|Hm|Now then|Look|See here|Goodness|My word|Listen|Right|Truly|Honestly|Good grief|Bless me|Easy
Aha|Ho ho|Tsk|Pfft|Eh|Oi|Yo|Hey|Ooh|Wow|Gosh|Golly|Blimey|Crikey|Mercy|Heavens|Indeed|Behold|Lo|Psst|Whoa|Ugh|Sigh
Hee hee|Zap|Ding|Click|Whirr|Beep|Bzzt|Woof|Meow|Quack|Hoot|Chirp|Hiss|Splash|Boom|Tick tock|Clank|Squeak|Moo|Baa
Fact|Report|Answer|Note|Reply|Data|Order|Alert|Status|Query|Noted|Confirmed|By my boots|By the moon|By thunder
Stars above|Great winds|Sweet pickles|Holy cabbage|Good heavens|Oh dear me|Mark my words|Between us|In short|In truth
To be fair|If you ask me|As my gran said|Let me think|Fear not|Good news|Sad to say|Bad luck|No doubt|Of course""".replace("\n", "|").split("|")

_CLOSERS = """you see|you know|I say|I think|I suppose|I dare say|I hear|or so they say|as always|as usual|once again
no less|no more|at last|for now|for sure|for real|and so on|or something|or whatever|innit|eh|yes|no|right|okay
if you must know|if you please|if you like|thank you|if I recall|to my mind|in my view|under the stars|by the sea
on my word|on my honour|so it is|so be it|and that is that|end of story|trust me|believe me|mark that|over|out
beep|ribbit|woof|purr|hoot|tick|la la la|ha ha|hee hee|he he|hmm|sigh|sniff|yawn|wink|bow|shrug|nod|cough""".replace("\n", "|").split("|")

_ADDRESS = """friend|my friend|my dear|dear|boss|chief|comrade|little one|young one|stranger|traveller|neighbour|cousin
brother|sister|old pal|pal|buddy|mate|champ|captain|doctor|teacher|master|madam|sir|human|mortal|citizen|partner
honey|sugar|sweet pea|pumpkin|duckling|kitten|sparrow|my lord|my lady|your grace|kid|kiddo|fellow|chum|old sport
colleague|customer|guest|player|student|reader|dreamer|wanderer|hero|rascal|angel|cupcake|turnip|potato""".replace("\n", "|").split("|")

_SENTENCES = """That is how it goes.|So my mother taught me.|What can you do.|Life is strange.|I have seen worse.
The wheel turns.|Time will tell.|Ask the wind.|It is written.|That is the rule.|I never lie.|Do not tell anyone.
What a day.|What a world.|How lovely.|How dreadful.|How very odd.|Nothing is free.|Everything has a price.
All is well.|All is lost.|We shall see.|We go on.|I need a drink.|I need a nap.|I am too old for this.
Keep it quiet.|Watch your step.|Stay calm.|Be brave.|Be kind.|Be quick.|Work comes first.|Rest is for later.
Case closed.|Next question.|End of message.|Processing done.|Please wait.|Thank you for asking.|I am at your service.
The stars agree.|The numbers agree.|The soup is ready.|The tide is turning.|The clock is ticking.|Snow is coming.
Believe it or not.|Make of that what you will.|Is that not grand?|Is it not so?|Do you follow?|Do you see?|Who knows?
Why not?|Who cares?|What of it?|Fancy that!|Hooray!|Marvellous!|Splendid!|Shocking!|Delicious!|Onward!|Forward!""".replace("\n", "|").split("|")

_FILLERS = "um|uh|like|sort of|kind of|you know|er|well|actually|basically|literally|really|just|rather|quite".split("|")

_LEXICONS: tuple[dict[str, str], ...] = (
    {"you": "thou", "your": "thy", "are": "art", "yes": "yea", "have": "hath", "no": "nay", "do": "dost"},
    {"you": "ye", "my": "me", "yes": "aye", "is": "be", "are": "be", "hello": "ahoy"},
    {"going to": "gonna", "want to": "wanna", "got to": "gotta", "yes": "yeah", "because": "cause", "them": "em"},
    {"i am": "I'm", "it is": "it's", "do not": "don't", "that is": "that's", "cannot": "can't"},
    {"i'm": "I am", "it's": "it is", "don't": "do not", "that's": "that is", "can't": "cannot", "i've": "I have"},
    {"good": "splendid", "nice": "delightful", "bad": "dreadful", "very": "most", "like": "adore"},
    {"good": "cool", "nice": "neat", "great": "awesome", "bad": "lame", "very": "super", "friend": "dude"},
    {"good": "optimal", "bad": "faulty", "think": "compute", "feel": "detect", "know": "store", "like": "prefer"},
    {"i": "this one", "me": "this one", "my": "this one's", "am": "is"},
    {"i": "we", "me": "us", "my": "our", "am": "are"},
    {"small": "wee", "little": "wee", "girl": "lass", "boy": "lad", "know": "ken", "not": "nae"},
    {"yes": "affirmative", "no": "negative", "hello": "greetings", "maybe": "uncertain", "people": "humans"},
    {"think": "reckon", "yes": "yep", "no": "nope", "over there": "yonder", "food": "grub", "house": "shack"},
    {"maybe": "perhaps", "big": "enormous", "small": "tiny", "say": "declare", "ask": "enquire", "get": "obtain"},
    {"the": "ze", "this": "zis", "that": "zat", "with": "wiz"},
    {"and": "&", "you": "u", "are": "r", "your": "ur", "to": "2", "for": "4", "please": "plz"},
)

_HABITS = {
    "opener": 6, "closer": 4, "address": 4, "sentence": 3, "lexicon": 4, "casing": 2, "ending": 4, "short": 2,
    "filler": 2, "drop_g": 1, "accent": 1, "stretch": 1,
}  # fmt: skip

_SYLLABLES = "ba be bo ka ke ko ra ri ro ta ti to la li lo ma mi mo na ni no za ze zo ga gu sha shi cho dru gri ple fla wo yo vi ven tor mar del bur".split()

_FIRST = """Anna|Ben|Clara|David|Ella|Frank|Grace|Henry|Ivy|Jack|Kate|Leo|Mary|Noah|Olive|Paul|Quinn|Rose|Sam|Tess|Una
Victor|Wendy|Xander|Yara|Zoe|Arthur|Bella|Carl|Dora|Edgar|Flora|Gus|Hazel|Igor|June|Karl|Lucy|Max|Nora|Otto|Pearl
Ralph|Stella|Tom|Ursula|Vera|Walter|Agnes|Boris|Cora|Dan|Edith|Fred|Greta|Hugo|Ida|Jonas|Kim|Liam|Mona|Ned|Opal
Peter|Ruth|Simon|Tara|Vince|Wanda|Alma|Bruno|Celia|Dora|Ernest|Fay|George|Helen|Isaac|Jane|Kurt|Lena|Milo|Nina""".replace("\n", "|").split("|")

_TITLES = """Captain|Doctor|Professor|Lady|Lord|Sir|Madame|Uncle|Aunt|Old|Little|Brother|Sister|King|Queen|Prince|Princess
Count|Baron|Mister|Miss|Sergeant|Master|Nurse|Judge|Father|Mother|Cousin|Chef|Wizard|Detective|Agent|Inspector""".replace("\n", "|").split("|")

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_WORD = re.compile(r"[A-Za-z']+")


def _invented(rng: Random) -> str:
    return "".join(rng.choice(_SYLLABLES) for _ in range(rng.randint(2, 3))).capitalize()


def random_name(rng: Random) -> str:
    """A display name: a first name, a title and a name, or invented syllables."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(_FIRST)
    if kind < 0.7:
        return f"{rng.choice(_TITLES)} {rng.choice(_FIRST)}"
    if kind < 0.85:
        return f"{rng.choice(_TITLES)} {_invented(rng)}"
    return _invented(rng)


@dataclass(frozen=True)
class Voice:
    """A combination of habits; ``apply`` says a neutral line in it.

    Attributes:
        openers: Interjections of which one may open a line.
        closers: Tags of which one may end the last sentence.
        address: Words for the other person.
        sentences: Whole sentences that may follow a line.
        lexicon: Replacements of words, lower case.
        filler: A word that may be inserted between two words.
        rates: Probability of each habit by name.
        casing: ``"as_is"``, ``"lower"`` or ``"upper"``.
        ending: What replaces a full stop.
        short: Only the first sentence is kept.
        drop_g: "walking" becomes "walkin'".
        accent: Letters and what replaces it.
        stretch: A vowel is drawn out.
    """

    openers: tuple[str, ...] = ()
    closers: tuple[str, ...] = ()
    address: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    lexicon: dict[str, str] = field(default_factory=dict)
    filler: str = ""
    rates: dict[str, float] = field(default_factory=dict)
    casing: str = "as_is"
    ending: str = "."
    opener_mark: str = ","
    short: bool = False
    drop_g: bool = False
    accent: tuple[str, str] = ("", "")
    stretch: bool = False

    def _hit(self, habit: str, rng: Random) -> bool:
        return rng.random() < self.rates.get(habit, 0.0)

    def _words(self, text: str, rng: Random) -> str:
        for old, new in self.lexicon.items():
            def replaced(match: re.Match[str], new: str = new) -> str:
                return new[0].upper() + new[1:] if match.group()[0].isupper() and match.group() != "I" else new
            text = re.sub(rf"\b{re.escape(old)}\b", replaced, text, flags=re.IGNORECASE)
        if self.drop_g:
            text = re.sub(r"(\w\w)ing\b", r"\1in'", text)
        if self.accent[0]:
            text = text.replace(*self.accent)
        words = text.split(" ")
        if self.filler and len(words) > 3 and self._hit("filler", rng):
            spot = rng.randint(1, len(words) - 2)
            words.insert(spot, self.filler + ",")
            if not words[spot - 1].endswith((",", ".", "!", "?")):
                words[spot - 1] += ","
        if self.stretch and self._hit("stretch", rng):
            spot = rng.randrange(len(words))
            words[spot] = re.sub(r"([aeou])(?!.*[aeou])(?!\W*$)", r"\1\1\1", words[spot], count=1)
        return " ".join(words)

    def apply(self, text: str, rng: Random) -> str:
        """Says ``text`` (plain English, one line) in this voice."""
        sentences = _SENTENCE.split(text)
        if self.short:
            sentences = sentences[:1]
        text = self._words(" ".join(sentences), rng)
        if self.address and self._hit("address", rng):
            word = rng.choice(self.address)
            if rng.random() < 0.5 and text[-1] in ".!?":
                text = f"{text[:-1]}, {word}{text[-1]}"
            elif (comma := text.find(",")) > 0:
                text = f"{text[:comma]}, {word}{text[comma:]}"
            else:
                text = f"{word.capitalize()}, {_uncapital(text)}"
        if self.closers and self._hit("closer", rng) and text[-1] in ".!?":
            text = f"{text[:-1]}, {rng.choice(self.closers)}{text[-1]}"
        if self.openers and self._hit("opener", rng):
            opener = rng.choice(self.openers)
            text = f"{opener}, {_uncapital(text)}" if self.opener_mark == "," else f"{opener}{self.opener_mark} {text}"
        if self.sentences and self._hit("sentence", rng):
            extra = rng.choice(self.sentences)
            text = f"{extra} {text}" if rng.random() < 0.25 else f"{text} {extra}"
        if self.ending != ".":
            text = re.sub(r"\.(?=\s|$)", self.ending, text)
        if self.casing == "lower":
            text = text.lower()
        elif self.casing == "upper":
            text = text.upper()
        return text


def _uncapital(text: str) -> str:
    word = _WORD.match(text)
    if word is None or word.group() == "I" or word.group().startswith("I'"):
        return text
    return text[0].lower() + text[1:]


def _some(items: list[str], low: int, high: int, rng: Random) -> tuple[str, ...]:
    return tuple(rng.sample(items, rng.randint(low, high)))


def random_voice(rng: Random) -> Voice:
    """Draws a voice of one to four habits, each with its own frequency."""
    habits = set(rng.choices(list(_HABITS), weights=list(_HABITS.values()), k=rng.choice((2, 3, 3, 4, 5))))
    rates = {habit: rng.choice((0.35, 0.5, 0.7, 0.9, 1.0)) for habit in sorted(habits)}
    openers = _some(_OPENERS, 1, 3, rng)
    if rng.random() < 0.4:
        openers = tuple(_invented(rng) for _ in range(rng.randint(1, 2)))
    closers = _some(_CLOSERS, 1, 2, rng)
    if rng.random() < 0.2:
        closers = (_invented(rng).lower(),)
    return Voice(
        openers=openers if "opener" in habits else (),
        closers=closers if "closer" in habits else (),
        address=_some(_ADDRESS, 1, 2, rng) if "address" in habits else (),
        sentences=_some(_SENTENCES, 1, 3, rng) if "sentence" in habits else (),
        lexicon=rng.choice(_LEXICONS) if "lexicon" in habits else {},
        filler=rng.choice(_FILLERS) if "filler" in habits else "",
        rates=rates,
        casing=rng.choice(("lower", "lower", "upper")) if "casing" in habits else "as_is",
        ending=rng.choice(("!", "!", "...", "!!", "~", " :)", "?!", "..")) if "ending" in habits else ".",
        opener_mark=rng.choice((",", ",", "!", "...", ".", ":")),
        short="short" in habits,
        drop_g="drop_g" in habits,
        accent=rng.choice((("th", "d"), ("w", "v"))) if "accent" in habits else ("", ""),
        stretch="stretch" in habits,
    )
