"""Each rule with examples: what it finds, what it lets pass, and what it says."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_material import clean_rules, option
from pydantic import ValidationError

from voxtrain.manifest.clean import CleanRules, findings
from voxtrain.manifest.row import Row
from voxtrain.manifest.rules import Candidate
from voxtrain.manifest.scripts import SCRIPTS, script_of, spoken_characters
from voxtrain.manifest.sound import NO_FILE, Samples, Sound, unreadable

STANDARD = clean_rules()
RULES, REPORTS = STANDARD.row_rules(), STANDARD.reports()
UNREADABLE = unreadable("Format not recognised.")
GOOD = Row("a", "/clips/a.wav", "Good morning.", 1, "one", None, "one", None, None)
SAMPLES = Samples("0" * 32, 0.5, -20.0, 0.0, 0.0, 0.1, 0.1, 7800.0, 2.0)
SOUND = Sound(False, "", 2.0, 16_000, 1, SAMPLES)

Case = tuple[Row, Sound, Sound | None]


def case(text: str = "Good morning.", sound: Sound = SOUND, reference: Sound | None = None, **row: Any) -> Case:
    """A row, its audio, and its reference audio."""
    return replace(GOOD, text=text, **row), sound, reference


def lasting(seconds: float, **samples: Any) -> Sound:
    """A sound of that length, some of what was measured changed."""
    return replace(SOUND, duration_s=seconds, samples=replace(SAMPLES, decoded_s=seconds, **samples))


def with_reference(path: str, reference: Sound, sound: Sound = SOUND) -> Case:
    return case(sound=sound, reference=reference, ref_audio_path=path)


OTHER = replace(SOUND, samples=replace(SAMPLES, digest="1" * 32))
HEADER = replace(SOUND, samples=None)
CUT_WAV = replace(HEADER, duration_s=1.0, stated_s=2.0, reason="its header states 2.000 s")

EXAMPLES: list[tuple[Case, tuple[str, object, object] | None]] = [
    # values that cannot be used
    (case("", odd=(("text", "17"),)), ("invalid_value", "text: 17", None)),
    (case(odd=(("audio", "17"),)), ("invalid_value", "audio: 17", None)),
    (case("", odd=(("text", None),)), ("empty_text", None, None)),
    (case(group="", odd=(("group", None),)), ("no_group", None, None)),
    # files
    (case(sound=NO_FILE), ("missing_audio", "/clips/a.wav", None)),
    (case(sound=NO_FILE, odd=(("audio", None),)), ("missing_audio", None, None)),
    (with_reference("/clips/r.wav", NO_FILE), ("missing_audio", "ref_audio: /clips/r.wav", None)),
    (case(sound=UNREADABLE), ("unreadable_audio", "/clips/a.wav: Format not recognised.", None)),
    (
        with_reference("/clips/r.wav", UNREADABLE),
        ("unreadable_audio", "ref_audio: /clips/r.wav: Format not recognised.", None),
    ),
    (with_reference("/clips/r.wav", OTHER), None),
    # cut short: seen in the header of a WAV, else when decoded
    (case(sound=CUT_WAV), ("truncated_audio", 0.5, 0.99)),
    (case(sound=replace(SOUND, samples=replace(SAMPLES, decoded_s=1.9))), ("truncated_audio", 0.95, 0.99)),
    (with_reference("/clips/r.wav", CUT_WAV), ("truncated_audio", 0.5, 0.99)),
    (case(sound=replace(SOUND, samples=replace(SAMPLES, decoded_s=1.99))), None),  # two frames of an MP3
    # length; the bounds let their own value pass
    (case("Hm", lasting(0.0999)), ("too_short", 0.0999, 0.1)),
    (case("Hm", lasting(0.1)), None),
    (case("Good morning. " * 10, lasting(30.0)), None),
    (case("Good morning. " * 10, lasting(30.001)), ("too_long", 30.001, 30.0)),
    # level
    (case(sound=lasting(2.0, rms_dbfs=-200.0)), ("silent", -200.0, -60.0)),
    (case(sound=lasting(2.0, rms_dbfs=-60.0)), None),
    (case(sound=lasting(2.0, clipped_share=0.011)), ("clipped", 0.011, 0.01)),
    (case(sound=lasting(2.0, clipped_share=0.01)), None),
    (case(sound=lasting(2.0, dc=-0.3)), ("dc_offset", -0.3, 0.1)),
    (case(sound=lasting(2.0, dc=0.05)), None),
    # the reference is the answer
    (with_reference("/clips/a.wav", SOUND), ("own_reference", "/clips/a.wav", None)),
    (with_reference("/clips/copy.flac", SOUND), ("own_reference", "/clips/copy.flac", None)),
    (with_reference("/clips/b/../a.wav", HEADER, HEADER), ("own_reference", "/clips/b/../a.wav", None)),
    (with_reference("/clips/copy.flac", HEADER, HEADER), None),  # who decodes nothing cannot know
]


@pytest.mark.parametrize(("given", "expected"), EXAMPLES)
def test_examples(given: Case, expected: tuple[str, object, object] | None) -> None:
    found = findings(RULES, Candidate(*given))
    assert [(name, one.value, one.threshold) for name, one in found.items()] == ([expected] if expected else [])


REPORTED: list[tuple[Sound, tuple[str, object, object] | None]] = [
    (lasting(4.0, leading_silence_s=1.2), ("leading_silence", 1.2, 1.0)),
    (lasting(4.0, leading_silence_s=1.0), None),
    (lasting(4.0, tail_silence_s=1.2), ("tail_silence", 1.2, 1.0)),
    (lasting(4.0, tail_silence_s=0.55), None),
    (lasting(4.0, bandwidth_hz=4000.0), ("upsampled", 4000.0, 6800.0)),
    (lasting(4.0, bandwidth_hz=6800.0), None),
    (lasting(4.0, bandwidth_hz=0.0), None),  # too short to tell
]


@pytest.mark.parametrize(("sound", "expected"), REPORTED)
def test_what_is_reported_is_not_rejected(sound: Sound, expected: tuple[str, object, object] | None) -> None:
    candidate = Candidate(*case(sound=sound))
    assert findings(RULES, candidate) == {}
    found = findings(REPORTS, candidate)
    assert [(name, one.value, one.threshold) for name, one in found.items()] == ([expected] if expected else [])


RATES: list[tuple[str, float, float | None]] = [
    # text, seconds, the bound that it is beyond
    ("Good morning.", 1.0, None),
    ("No.", 3.0, None),  # a short word in room tone
    ("No.", 3.1, 2.0),
    ("Please subscribe to our channel. " * 8, 3.0, 30.0),  # 208 letters
    ("Good morning, everybody.", 0.2, None),  # 21 letters: just so
    ("Good morning, everybody. Sit", 0.2, 30.0),
    ("1984", 9.0, None),  # sixteen letters, as spoken
    ("I.", 30.0, 2.0),
    ("今天天气很好。", 1.5, None),
    ("今天天气很好,我们去公园散步吧。" * 5, 3.0, 18.0),
    ("あ", 4.0, 0.7),
    ("안녕하세요 여러분", 1.5, None),
    ("안녕하세요 여러분" * 5, 1.0, 15.0),
    ("สวัสดีครับ ยินดีที่ได้รู้จัก", 2.0, None),
    ("สวัสดีครับ" * 12, 1.0, 40.0),
    ("مرحبا بكم في بيتنا", 1.5, None),
    ("नमस्ते, आप कैसे हैं?", 1.5, None),
    ("Доброе утро, как дела?", 1.5, None),
    ("да", 9.0, 2.0),
    ("...", 1.0, None),  # empty_text says so
]


@pytest.mark.parametrize(("text", "seconds", "bound"), RATES)
def test_chars_per_second(text: str, seconds: float, bound: float | None) -> None:
    found = findings(RULES, Candidate(*case(text, lasting(seconds)))).get("chars_per_second")
    assert (None if found is None else found.threshold) == bound
    if found is not None:
        assert found.value == spoken_characters(text) / seconds


def test_where_the_tail_is_cut_what_is_left_is_judged() -> None:
    long_tail = lasting(35.0, tail_silence_s=30.0)
    only_tail = lasting(2.0, tail_silence_s=2.0)
    cut = clean_rules(trim_tail_silence=0.05).row_rules()
    assert set(findings(RULES, Candidate(*case(sound=long_tail)))) == {"too_long", "chars_per_second"}
    assert findings(cut, Candidate(*case(sound=long_tail))) == {}
    assert findings(cut, Candidate(*case("Hm", only_tail)))["too_short"].value == pytest.approx(0.05)
    assert findings(cut, Candidate(*case(sound=replace(HEADER, duration_s=35.0))))["too_long"].value == 35.0


def test_every_rule_of_the_settings_has_an_example() -> None:
    shown = {expected[0] for _, expected in [*EXAMPLES, *REPORTED] if expected} | {"boilerplate", "chars_per_second"}
    assert shown == {rule.name for rule in (*RULES, *REPORTS)}


@pytest.mark.parametrize("text", ["", " ", "\xa0", "\n", "...", "?!", "\u200b", "、。", "♪ ♪", "—", "\ufeff", "🙂"])
def test_empty_text(text: str) -> None:
    assert findings(RULES, Candidate(*case(text)))["empty_text"].value == text


@pytest.mark.parametrize("text", ["I", "7", "你好", "ありがとう", "สวัสดี", "नमस्ते", "½", "Ja?", "مرحبا"])
def test_any_letter_or_digit_of_any_script_is_text(text: str) -> None:
    assert findings(RULES, Candidate(*case(text))) == {}


WRITTEN = [
    ("Hello, 1945!", "latin", 5 + 4 * 4),
    ("你好,1945 年", "cjk", 3 + 4),
    ("ｱﾘｶﾞﾄｳ ありがとうー", "cjk", 12),
    ("naïve", "latin", 5),
    ("\uff21\uff22\uff23", "latin", 3),
    ("สวัสดี", "thai", 6),
    ("नमस्ते", "devanagari", 6),
    ("Привет", "cyrillic", 6),
    ("안녕", "hangul", 2),
    ("Ελλάδα", "greek", 6),
    ("שלום", "hebrew", 4),
    ("مرحبا", "arabic", 5),
    ("ಕನ್ನಡ", "kannada", 5),
    ("ᓀᐦᐃᔭᐍᐏᐣ", "other", 7),
    ("Python 語", "latin", 7),
    ("12:30", "none", 16),
    ("?!", "none", 0),
    ("", "none", 0),
]


@pytest.mark.parametrize(("text", "script", "characters"), WRITTEN)
def test_scripts(text: str, script: str, characters: int) -> None:
    assert (script_of(text), spoken_characters(text)) == (script, characters)
    assert script in (*SCRIPTS, "none")


@given(st.text())
@settings(max_examples=100)
def test_any_text_has_a_script_and_a_length(text: str) -> None:
    assert script_of(text) in (*SCRIPTS, "none")
    assert (spoken_characters(text) > 0) >= any(map(str.isalpha, text))


def test_a_group_of_the_wrong_type_is_an_invalid_value() -> None:
    found = findings(RULES, Candidate(*case(group="", odd=(("group", "[1]"),))))
    assert {name: one.value for name, one in found.items()} == {"invalid_value": "group: [1]", "no_group": "[1]"}


def test_a_row_counts_under_its_first_fault_and_the_others_are_kept() -> None:
    found = findings(RULES, Candidate(*case(" ", UNREADABLE, group="", odd=(("group", None),))))
    assert list(found) == ["empty_text", "no_group", "unreadable_audio"]
    assert list(found) == [name for name in STANDARD.rule_names() if name in found]


def test_the_manifest_s_own_duration_is_not_believed() -> None:
    assert "too_short" in findings(RULES, Candidate(*case("Hm", lasting(0.05), duration_s=5.0)))
    assert findings(RULES, Candidate(*case(duration_s=500.0))) == {}


def test_names_of_rules_that_others_decide_come_last() -> None:
    assert STANDARD.rule_names()[-2:] == ("excluded", "duplicate")
    asr = {"model": "tiny", "device": "cpu", "compute_type": "int8", "language": None, "max_word_error_rate": 0.5}
    assert clean_rules(asr=asr, duplicates=False).rule_names()[-2:] == ("excluded", "word_error_rate")


def test_any_rule_may_be_told_to_report_only() -> None:
    rules = clean_rules(report_only=["clipped", "tail_silence", "boilerplate"])
    assert [rule.name for rule in rules.reports()] == ["boilerplate", "clipped", "tail_silence"]
    assert {"leading_silence", "upsampled"} < set(rules.rule_names())
    assert not {"clipped", "tail_silence", "boilerplate"} & set(rules.rule_names())


def composed(name: str, *overrides: str) -> CleanRules:
    from voxtrain.settings import compose

    return compose(["+recipe=demo", f"clean={name}", *overrides]).clean


@pytest.mark.slow
def test_headers_decodes_nothing_and_else_is_standard() -> None:
    headers = composed("headers")
    assert headers.model_copy(update={"decode": True}) == composed("standard")
    assert headers.reports() == ()
    assert not {"silent", "clipped", "dc_offset"} & set(headers.rule_names())
    assert {"boilerplate", "too_short", "chars_per_second", "truncated_audio"} < set(headers.rule_names())


def test_none_rejects_only_what_cannot_be_learnt_from() -> None:
    none = CleanRules(**option("clean", "none"))
    assert none.max_reject_share == 1.0
    assert none.reports() == ()
    passed = [
        case(""),
        case("Thanks for watching!", lasting(3000.0, clipped_share=1.0)),
        case("x" * 999, lasting(0.01)),
    ]
    for each in passed:
        assert findings(none.row_rules(), Candidate(*each)) == {}
    unfit = {expected[0] for given, expected in EXAMPLES if expected and findings(none.row_rules(), Candidate(*given))}
    assert unfit == {"invalid_value", "no_group", "missing_audio", "unreadable_audio"}


@pytest.mark.slow
def test_asr_is_standard_with_a_recogniser() -> None:
    with_asr = composed("asr", "clean.asr.model=tiny")
    assert with_asr.model_copy(update={"asr": None}) == composed("standard")
    assert with_asr.asr is not None
    assert with_asr.asr.model == "tiny"


def test_a_bound_of_one_script_is_changed_alone() -> None:
    changed = composed("standard", "clean.chars_per_second.thai=[1,50]").chars_per_second
    assert STANDARD.chars_per_second is not None
    assert changed == {**STANDARD.chars_per_second, "thai": (1.0, 50.0)}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"boilerplate": ["(unclosed"]}, "no regular expression"),
        ({"min_seconds": 31.0}, "over max_seconds"),
        ({"max_reject_share": 1.5}, "less than or equal to 1"),
        ({"min_secs": 1.0}, "Extra inputs"),
        ({"chars_per_second": {"klingon": [1, 2]}}, "klingon is no script"),
        ({"chars_per_second": {"latin": [9, 2]}}, "lower bound 9"),
        ({"report_only": ["missing_audio"]}, "missing_audio is none of"),
        ({"silent_dbfs": 3.0}, "less than or equal to 0"),
        ({"asr": {"model": "tiny"}}, "Field required"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        clean_rules(**changed)


def test_findings_can_be_written_as_json() -> None:
    for given_case, expected in EXAMPLES:
        told = [[one.value, one.threshold] for one in findings(RULES, Candidate(*given_case)).values()]
        assert json.loads(json.dumps(told, allow_nan=False)) == ([list(expected[1:])] if expected else [])
