"""Each rule with examples: what it rejects, what it lets pass, and what it says."""

# ruff: noqa: RUF001  the letters of Turkish and Russian are what they are

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from manifest_material import SOUND, clean_rules, row, write_tone
from pydantic import ValidationError

from voxtrain.manifest.clean import judge
from voxtrain.manifest.header import NO_FILE, Header, read_header, read_headers
from voxtrain.manifest.row import Row

UNREADABLE = Header(None, missing=False, reason="Format not recognised.")


def rejected(one: Row, *headers: Header) -> tuple[str, object, object] | None:
    """(rule, value, threshold) of a row alone, its audio and its reference audio having these headers."""
    known = dict(zip([one.audio, one.ref_audio], headers or (SOUND,), strict=False))
    reject = judge([one], known, clean_rules())[0].reject
    return None if reject is None else (reject.rule, reject.value, reject.threshold)


def rule(one: Row, *headers: Header) -> str | None:
    found = rejected(one, *headers)
    return None if found is None else found[0]


@pytest.mark.parametrize("text", ["", " ", "\xa0", "\n", "...", "?!", "\u200b", "、。", "♪ ♪", "—", "\ufeff", "🙂"])
def test_empty_text(text: str) -> None:
    assert rejected(row(text=text)) == ("empty_text", text, None)


def test_null_text_is_empty_and_another_type_is_invalid() -> None:
    assert rejected(row(text="", odd=(("text", None),))) == ("empty_text", None, None)
    assert rejected(row(text="", odd=(("text", "17"),))) == ("invalid_value", "text: 17", None)


@pytest.mark.parametrize("text", ["I", "7", "你好", "ありがとう", "สวัสดี", "नमस्ते", "½", "Ja?", "مرحبا"])
def test_any_letter_or_digit_of_any_script_is_text(text: str) -> None:
    assert rule(row(text=text)) is None


BOILERPLATE = [
    "Thanks for watching!",
    "thank you so much for watching this video",
    "THANK YOU FOR WATCHING.",
    "Thanks for listening",
    "Thanks for watching! Thanks for watching!",
    "Thanks for watching. Please subscribe!",
    "Please subscribe to our channel.",
    "Don\u2019t forget to like, comment and subscribe!",
    "Like and subscribe",
    "Subscribe",
    "please like & subscribe to my YouTube channel now",
    "See you in the next video.",
    "Subtitles by the Amara.org community",
    "Subtitles: the Amara.org community",
    "Subtitles by SteamTeamExtra",
    "Transcription by CastingWords",
    "Captions provided by Some Company",
    "www.mooji.org",
    "For more information, visit www.example.com/page",
    "© BF-WATCH TV 2021",
    "[music]",
    "[Music playing]",
    "(applause)",
    "*upbeat music*",
    "[ Inaudible ]",
    "[BLANK_AUDIO]",
    "[speaking in foreign language]",
    "♪ [music] ♪",
    "<unk>",
    "nan",
    "N/A",
    "Untertitel der Amara.org-Community",
    "Untertitel im Auftrag des ZDF für funk, 2017",
    "Untertitelung des ZDF, 2020",
    "Untertitel von Stephanie Geiges",
    "Copyright WDR 2021",
    "SWR 2021",
    "Vielen Dank fürs Zuschauen!",
    "Sous-titres réalisés par la communauté d'Amara.org",
    "Sous-titrage Société Radio-Canada",
    "Sous-titrage ST' 501",
    "Merci d'avoir regardé cette vidéo !",
    "Subtítulos realizados por la comunidad de Amara.org",
    "¡Gracias por ver el video!",
    "¡Suscríbete al canal!",
    "Legendas pela comunidade Amara.org",
    "Obrigado por assistir.",
    "Sottotitoli creati dalla comunità Amara.org",
    "Sottotitoli e revisione a cura di QTSS",
    "Ondertitels ingediend door de Amara.org gemeenschap",
    "Bedankt voor het kijken!",
    "Napisy stworzone przez społeczność Amara.org",
    "Altyazı M.K.",
    "İzlediğiniz için teşekkür ederim.",
    "Abone olmayı unutmayın",
    "Субтитры сделал DimaTorzok",
    "Редактор субтитров А.Семкин Корректор А.Егорова",
    "Спасибо за просмотр!",
    "字幕由Amara.org社区提供",
    "字幕志愿者 李宗盛",
    "谢谢观看",
    "請不吝點贊 訂閱 轉發 打賞支持明鏡與點點欄目",
    "优优独播剧场——YoYo Television Series Exclusive",
    "ご視聴ありがとうございました",
    "最後までご視聴いただきありがとうございました。",
    "チャンネル登録をお願いいたします",
    "次の動画でお会いしましょう",
    "시청해주셔서 감사합니다!",
    "구독과 좋아요 부탁드립니다",
    "ترجمة نانسي قنقر",
    "Hãy subscribe cho kênh Ghiền Mì Gõ Để không bỏ lỡ những video hấp dẫn",
    "Terima kasih telah menonton!",
]

SPEECH = [
    "Please call Stella.",
    "Thank you.",
    "Thank you very much for your attention.",
    "Thanks for watching the children while I was away.",
    "Thanks for watching! And now to our next question.",
    "See you next time.",
    "I like and subscribe to that opinion.",
    "like",
    "share",
    "follow me",
    "He refused to subscribe to the newspaper.",
    "Captions by themselves are not enough for everyone.",
    "The subtitles were made by a friend of mine.",
    "Transcripts are kept for ten years.",
    "Copyright law was changed in 1976.",
    "Music is the silence between the notes.",
    "music",
    "[laughing] That was good.",
    "(A calm voice) Good evening.",
    "Go to bed.",
    "Nancy",
    "null and void",
    "Untertitel der Serie waren schlecht.",
    "Untertitel von Filmen sind oft zu schnell.",
    "Sous-titres ou doublage, que préférez-vous ?",
    "Los subtítulos de la película estaban mal.",
    "Altyazı çok kötü.",
    "Субтитры очень плохие.",
    "字幕制作很难",
    "字幕が見えない。",
    "자막 제작은 어렵다.",
    "谢谢大家",
    "1945",
]


@pytest.mark.parametrize("text", BOILERPLATE)
def test_boilerplate(text: str) -> None:
    found = rejected(row(text=text))
    assert found is not None
    assert found[:2] == ("boilerplate", text)
    assert found[2] in clean_rules().boilerplate


@pytest.mark.parametrize("text", SPEECH)
def test_speech_that_resembles_boilerplate_is_kept(text: str) -> None:
    assert rule(row(text=text)) is None


def test_patterns_of_your_own_match_the_whole_text_with_its_marks_or_without() -> None:
    rules = clean_rules(boilerplate=[r"recorded in \d+\.", "the end"])

    def found(text: str) -> bool:
        return judge([row(text=text)], {row().audio: SOUND}, rules)[0].reject is not None

    assert found("Recorded in 1999.")
    assert found("  the   END!! ")
    assert not found("the end of it")
    assert not found("in the end")


def test_missing_audio() -> None:
    assert rejected(row(), NO_FILE) == ("missing_audio", "/clips/a.wav", None)
    assert rejected(row(odd=(("audio", None),))) == ("missing_audio", None, None)
    assert rejected(row(odd=(("audio", "17"),))) == ("invalid_value", "audio: 17", None)
    reference = Path("/clips/ref.wav")
    assert rejected(row(ref_audio=reference), SOUND, NO_FILE) == ("missing_audio", "ref_audio: /clips/ref.wav", None)
    assert rule(row(ref_audio=reference), SOUND, SOUND) is None


def test_unreadable_audio() -> None:
    assert rejected(row(), UNREADABLE) == ("unreadable_audio", "/clips/a.wav: Format not recognised.", None)
    found = rejected(row(ref_audio=Path("/clips/ref.wav")), SOUND, UNREADABLE)
    assert found == ("unreadable_audio", "ref_audio: /clips/ref.wav: Format not recognised.", None)


def test_length_bounds_let_their_own_value_pass() -> None:
    def sound(seconds: float) -> Header:
        return Header(seconds, missing=False, reason="")

    assert rejected(row(), sound(0.0999)) == ("too_short", 0.0999, 0.1)
    assert rule(row(), sound(0.1)) is None
    assert rule(row(), sound(30.0)) is None
    assert rejected(row(), sound(30.1)) == ("too_long", 30.1, 30.0)


def test_a_row_without_a_group_is_rejected() -> None:
    assert rejected(row(group="", odd=(("group", None),))) == ("no_group", None, None)
    assert rejected(row(group="", odd=(("group", "[1]"),))) == ("invalid_value", "group: [1]", None)


def test_the_manifest_s_own_duration_is_not_believed() -> None:
    assert rule(row(duration_s=5.0), Header(0.05, missing=False, reason="")) == "too_short"
    assert rule(row(duration_s=500.0)) is None


def test_a_row_counts_under_its_first_fault_and_the_others_are_kept() -> None:
    both = row(text=" ", group="", odd=(("group", None),))
    reject = judge([both], {both.audio: UNREADABLE}, clean_rules())[0].reject
    assert reject is not None
    assert (reject.rule, reject.also) == ("empty_text", ("no_group", "unreadable_audio"))
    assert json.loads(json.dumps(reject.to_record()))["also"] == ["no_group", "unreadable_audio"]


def test_of_identical_rows_the_same_one_stays_whatever_their_order() -> None:
    twins = [row(id="b", line=1), row(id="a", line=2), row(id="c", line=3), row(id="d", line=4, text="Else.")]
    for rows in (twins, twins[::-1]):
        verdicts = judge(rows, {row().audio: SOUND}, clean_rules())
        assert {v.row.id: v.fired() for v in verdicts} == {
            "a": (),
            "b": ("duplicate",),
            "c": ("duplicate",),
            "d": (),
        }
        assert {v.reject.value for v in verdicts if v.reject} == {"a (line 2)"}


def test_a_row_with_a_fault_of_its_own_does_not_displace_its_twin() -> None:
    faulty = row(id="a", group="", odd=(("group", None),))
    verdicts = judge([faulty, row(id="b", line=2)], {row().audio: SOUND}, clean_rules())
    assert [v.fired() for v in verdicts] == [("no_group", "duplicate"), ()]


def test_headers_of_real_files(tmp_path: Path) -> None:
    tone = write_tone(tmp_path / "tone.wav", 0.5, 22050)
    assert read_header(tone) == Header(0.5, missing=False, reason="")
    (tmp_path / "text.wav").write_text("this is no sound")
    (tmp_path / "empty.wav").touch()
    (tmp_path / "noise.raw").write_bytes(b"\0" * 100)
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    os.mkfifo(tmp_path / "pipe.wav")
    write_tone(tmp_path / "nothing.wav", 0.0)
    for name in ("text.wav", "empty.wav", "noise.raw", "loop.wav", "pipe.wav", "nothing.wav", "."):
        header = read_header(tmp_path / name)
        assert (header.duration_s, header.missing) == (None, False), name
        assert header.reason, name
    for name in ("none.wav", "tone.wav/none.wav", "nul\0.wav"):
        assert read_header(tmp_path / name) == NO_FILE
    assert list(read_headers([tone, tmp_path / "none.wav", tone])) == [tone, tmp_path / "none.wav"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"boilerplate": ["(unclosed"]}, "no regular expression"),
        ({"min_seconds": 31.0}, "over max_seconds"),
        ({"max_reject_share": 1.5}, "less than or equal to 1"),
        ({"min_secs": 1.0}, "Extra inputs"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        clean_rules(**changed)
