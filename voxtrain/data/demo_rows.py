"""What the demo's manifest holds: sentences, voices and planted faults, all from a fixed seed.

The faults and their shares of all rows are those that the published run found in its manifest: 30.66 % without text,
0.50 % boilerplate, 2.57 % of clips under 100 ms.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, product
from random import Random

SEED = 2026

EMPTY_SHARE, BOILERPLATE_SHARE, SHORT_SHARE = 0.3066, 0.0050, 0.0257

ACCENTS = ("en", "en-US", "en-GB-scotland", "en-029", "en-GB-x-rp", "en-US-nyc", "en-GB-x-gbclan", "en-GB-x-gbcwmd")
VARIANTS = ("m1", "f1", "m2", "f2", "m3", "f3", "m4", "f4", "m5", "f5", "m6", "m7", "m8")

WHO = (
    "my neighbour",
    "the old ferryman",
    "a tall gardener",
    "our new teacher",
    "the baker's son",
    "every sailor",
    "a young doctor",
    "the quiet librarian",
    "his grandmother",
    "the night watchman",
)
DID = (
    "found a silver key",
    "painted seven doors",
    "bought some fresh bread",
    "lost the green umbrella",
    "wrote a long letter",
    "counted forty boats",
    "mended the garden fence",
    "heard a strange noise",
    "carried two heavy boxes",
    "read the morning paper",
)
WHERE = (
    "by the harbour",
    "before breakfast",
    "on the last train",
    "behind the mill",
    "in late September",
    "near the bridge",
    "after the storm",
    "at a quarter past nine",
)
FORMS = (
    "{who} {did}.",
    "Who {did} {where}?",
    "Was {who} there {where}?",
    "We met {who} {where}.",
    "{who} {did}, I think.",
)
BOILERPLATE = ("Thanks for watching!", "Please subscribe to our channel.")
EMPTY: tuple[str | None, ...] = ("", "", " ", None, "...", "")


@dataclass(frozen=True, slots=True)
class Voice:
    """A speaker in one sitting: what one parent recording sounds like."""

    parent: str
    name: str  # as eSpeak finds it: accent and variant
    words_per_minute: int
    pitch: int  # 0 to 99
    range: int  # of the pitch, 0 to 99


@dataclass(frozen=True, slots=True)
class DemoRow:
    """One row of the demo's manifest, and what is wrong with it."""

    id: str
    label: str  # clean | empty_text | boilerplate | short_audio
    said: str
    text: str | None  # what the manifest says was said
    voice: Voice
    cut_ms: tuple[int, int] | None  # the part of the utterance that is kept


def demo_rows(utterances: int, parents: int) -> list[DemoRow]:
    """`utterances` clean rows over `parents` recordings, and faulty rows beside them, shuffled."""
    random = Random(SEED)
    labels = ["clean"] * utterances + faults_beside(utterances)
    voices = _voices(random, parents)
    sentences = _sentences(random)
    spoken = [0] * parents
    rows = []
    for number, label in enumerate(labels):
        place = number % parents
        row_id = f"{voices[place].parent}_{spoken[place]:03d}"
        rows.append(_row(random, row_id, label, next(sentences), voices[place]))
        spoken[place] += 1
    random.shuffle(rows)
    return rows


def faults_beside(clean: int) -> list[str]:
    """The labels of the rows that must join `clean` good ones for the published shares of all rows."""
    total = clean / (1 - EMPTY_SHARE - BOILERPLATE_SHARE - SHORT_SHARE)
    shares = {"empty_text": EMPTY_SHARE, "boilerplate": BOILERPLATE_SHARE, "short_audio": SHORT_SHARE}
    return [label for label, share in shares.items() for _ in range(max(1, round(share * total)))]


def _voices(random: Random, parents: int) -> list[Voice]:
    return [
        Voice(
            parent=f"recording_{number + 1:02d}",
            name=f"gmw/{ACCENTS[number % len(ACCENTS)]}+{VARIANTS[number % len(VARIANTS)]}",
            words_per_minute=random.randrange(160, 201, 5),
            pitch=random.randrange(30, 71, 5),
            range=random.randrange(35, 66, 5),
        )
        for number in range(parents)
    ]


def _sentences(random: Random) -> Iterator[str]:
    """Sentences of every form in turn; none comes twice before all of its form came once."""
    of_each_form = []
    for form in FORMS:
        parts = product(WHO, DID, WHERE)
        sentences = list(dict.fromkeys(form.format(who=who, did=did, where=where) for who, did, where in parts))
        random.shuffle(sentences)
        of_each_form.append(cycle(sentences))
    for of_form in cycle(of_each_form):
        sentence = next(of_form)
        yield sentence[0].upper() + sentence[1:]


def _row(random: Random, row_id: str, label: str, said: str, voice: Voice) -> DemoRow:
    text: str | None = said
    cut: tuple[int, int] | None = None
    if label == "empty_text":
        text = random.choice(EMPTY)
    elif label == "boilerplate":
        text = random.choice(BOILERPLATE)
    elif label == "short_audio":
        first = random.randrange(100, 400)
        cut = (first, first + random.randrange(20, 100))
    return DemoRow(row_id, label, said, text, voice, cut)
