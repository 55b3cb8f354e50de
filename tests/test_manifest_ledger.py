"""The ledger balances on any manifest, and no decision depends on the order of the rows."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_material import SOUND, clean_rules, fired, judged

from voxtrain.manifest.audit import contamination, ledger, ledger_text, length
from voxtrain.manifest.evidence import Evidence
from voxtrain.manifest.formats import Line
from voxtrain.manifest.sound import NO_FILE, Samples, Sound, unreadable

CLEAN = clean_rules(boilerplate=("thanks for watching",))  # one: to read all patterns takes longer than a test
PATHS = [f"/clips/{number}.wav" for number in range(6)]
FINE = Samples("00" * 16, 0.5, -20.0, 0.0, 0.0, 0.1, 0.1, 7_500.0, 1.0)


def sound(seconds: float, digest: int | None = None) -> Sound:
    """A sound of that length; decoded where a digest is given."""
    samples = None if digest is None else replace(FINE, digest=f"{digest:032x}", decoded_s=seconds)
    return replace(SOUND, duration_s=seconds, samples=samples)


sounds_of_files = st.fixed_dictionaries(
    dict.fromkeys(
        PATHS,
        st.one_of(
            st.just(NO_FILE),
            st.just(unreadable("damaged")),
            st.floats(0.001, 60.0).map(sound),
            st.builds(sound, st.floats(0.9, 10.0), st.integers(1, 3)),
        ),
    )
)
records = st.lists(
    st.fixed_dictionaries(
        {
            "audio": st.sampled_from([*PATHS, *PATHS, None]),
            "text": st.sampled_from(["Good morning.", "Good evening.", " ", "Thanks for watching!", "?", None, 17]),
            "parent": st.sampled_from(["one", "two", None]),
        },
        optional={"ref_audio": st.sampled_from(PATHS), "speaker": st.sampled_from(["ann", "ben"])},
    ),
    min_size=1,
    max_size=25,
)


def numbered(made: list[dict[str, object]]) -> list[Line]:
    return list(enumerate(made, start=1))


@settings(deadline=None, max_examples=40)
@given(records, sounds_of_files)
def test_the_ledger_balances(made, sounds) -> None:
    evidence = judged(numbered(made), sounds, CLEAN)
    audit = ledger(evidence, CLEAN.rule_names(), None)
    rejects, found = audit["rejects_by_rule"], fired(evidence, CLEAN)
    assert audit["rows_in"] == len(made) == audit["rows_kept"] + sum(rejects.values())
    assert sum(not rules for rules in found.values()) == audit["rows_kept"]
    # sums of whole microseconds, each rounded once to a float: 1e-9 is far under one of them
    seconds = audit["seconds_kept"] + sum(audit["seconds_rejected_by_rule"].values())
    assert audit["seconds_in"] == pytest.approx(seconds, abs=1e-9)
    for rule, count in rejects.items():
        assert count == sum(rules[:1] == (rule,) for rules in found.values())
        assert audit["fired"].get(rule, {}).get(rule, 0) == sum(rule in rules for rules in found.values()) >= count
    for one, together in audit["fired"].items():
        for other, count in together.items():
            assert count == audit["fired"][other][one] <= audit["fired"][one][one]


@settings(deadline=None, max_examples=40)
@given(records, sounds_of_files, st.randoms(use_true_random=False), st.integers(1, 7))
def test_neither_the_order_nor_the_chunks_decide_anything(made, sounds, chance: random.Random, chunk_rows: int) -> None:
    lines = numbered(made)
    shuffled = chance.sample(lines, len(lines))
    assert fired(judged(lines, sounds, CLEAN), CLEAN) == fired(judged(shuffled, sounds, CLEAN, chunk_rows), CLEAN)


@settings(deadline=None, max_examples=40)
@given(records, sounds_of_files, st.randoms(use_true_random=False))
def test_what_stays_is_the_same_when_lines_are_numbered_anew(made, sounds, chance: random.Random) -> None:
    """Lines decide only between rows that are equal in all else."""
    anew = numbered(chance.sample(made, len(made)))

    def kept(lines: list[Line]) -> list[str]:
        found = fired(judged(lines, sounds, CLEAN), CLEAN)
        return sorted(str(sorted(record.items())) for line, record in lines if not found[line])

    assert kept(numbered(made)) == kept(anew)


@settings(deadline=None, max_examples=40)
@given(records, sounds_of_files)
def test_rows_that_are_the_same_are_kept_once_and_once_where_one_is_fit(made, sounds) -> None:
    """The same: their samples; where those are not known, their file and text."""

    def same(record: dict[str, str]) -> object:
        samples = sounds[record["audio"]].samples
        return (record["audio"], record["text"].strip()) if samples is None else samples.digest

    found = fired(judged(numbered(made), sounds, CLEAN), CLEAN)
    kept = [same(record) for line, record in numbered(made) if not found[line]]
    assert len(kept) == len(set(kept))
    assert set(kept) == {same(record) for line, record in numbered(made) if set(found[line]) <= {"duplicate"}}


def test_of_duplicates_a_fit_row_stays_and_of_those_the_smallest_id() -> None:
    clip = {"text": "Good morning.", "parent": "one"}
    made = [
        clip | {"id": "a", "audio": PATHS[0], "text": " "},
        clip | {"id": "c", "audio": PATHS[0]},
        clip | {"id": "b", "audio": PATHS[1], "text": "Good evening."},
        clip | {"id": "d", "audio": PATHS[2]},
    ]
    sounds = {path: sound(2.0, digest) for path, digest in zip(PATHS, [7, 7, 8, 9, 9, 9], strict=True)}
    evidence = judged(numbered(made), sounds, CLEAN)
    assert fired(evidence, CLEAN) == {1: ("empty_text", "duplicate"), 2: ("duplicate",), 3: (), 4: ()}
    assert evidence.rejects(1)["duplicate"].value == "b (line 3)"


def test_of_rows_that_cannot_be_decoded_those_of_one_file_and_text_are_the_same() -> None:
    clip = {"audio": PATHS[0], "parent": "one"}
    texts = ["Good morning.", "Good evening.", "Good morning."]
    made = [clip | {"id": name, "text": text} for name, text in zip("abc", texts, strict=True)]
    found = fired(judged(numbered(made), {PATHS[0]: sound(2.0)}, CLEAN), CLEAN)
    assert found == {1: (), 2: (), 3: ("duplicate",)}


def test_seconds_are_sums_of_whole_microseconds() -> None:
    """So they balance, and no order of the rows changes the last digit."""
    lengths_s = [1 / 3, 1 / 7, 200 / 13]
    sounds = {path: sound(seconds) for path, seconds in zip(PATHS, lengths_s, strict=False)}
    made = [{"id": path, "audio": path, "text": "Good morning.", "parent": "one"} for path in sounds]
    clean = clean_rules(chars_per_second={})

    def seconds_kept(rows: list[dict[str, object]]) -> float:
        return ledger(judged(numbered(rows), sounds, clean), clean.rule_names(), None)["seconds_kept"]

    assert seconds_kept(made) == seconds_kept(made[::-1]) == (333_333 + 142_857 + 15_384_615) / 1e6


def test_contamination_is_that_of_the_published_run() -> None:
    assert contamination(0.31, 8) == pytest.approx(0.9486, abs=5e-5)
    assert (contamination(0.0, 8), contamination(1.0, 8)) == (0.0, 1.0)


def test_the_text_shows_what_fired_and_an_example() -> None:
    texts = ["Good morning, everybody.", " ", "Thanks for watching!"]
    made = [{"id": path, "audio": path, "text": text, "parent": "p"} for path, text in zip(PATHS, texts, strict=False)]
    evidence: Evidence = judged(numbered(made), dict.fromkeys(PATHS, sound(20.0)), clean_rules(chars_per_second={}))
    audit = ledger(evidence, CLEAN.rule_names(), rows_per_step=4)
    audit |= {"manifest": "rows.jsonl", "splits": None, "warnings": ["mind the gap"]}
    text = ledger_text(audit).splitlines()
    assert text[0] == "Ledger of rows.jsonl"
    assert [line.split()[0] for line in text[2:6]] == ["rows", "empty_text", "boilerplate", "kept"]
    assert "too_long" not in "\n".join(text)
    assert "line 3: 'Thanks for watching!'" in text[4]
    assert "20.0 s" in text[4]
    assert text[-2].startswith("With the rejected rows left in, 99% of the steps of 4 rows")
    assert text[-1] == "Note: mind the gap"


def test_lengths_have_the_unit_that_suits_them() -> None:
    assert [length(seconds) for seconds in (0.3, 59.94, 90, 3599, 7200)] == [
        "0.3 s",
        "59.9 s",
        "1.5 min",
        "60.0 min",
        "2.00 h",
    ]
