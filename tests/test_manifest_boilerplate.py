"""Boilerplate: what is found, what speech that resembles it is kept, and that the quick look hides nothing."""

# ruff: noqa: RUF001  the letters of Turkish and Russian are what they are

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from manifest_material import SOUND, clean_rules

from voxtrain.manifest.boilerplate import Boilerplate, first_letters
from voxtrain.manifest.row import Row
from voxtrain.manifest.rules import Candidate

STANDARD = clean_rules()
RULE = next(rule for rule in STANDARD.row_rules() if isinstance(rule, Boilerplate))


def candidate(text: str) -> Candidate:
    return Candidate(Row("a", "/clips/a.wav", text, 1, "one", None, "one", None, None), SOUND, None)


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
    found = RULE.finding(candidate(text))
    assert found is not None
    assert found.value == text
    assert found.threshold in STANDARD.boilerplate


@pytest.mark.parametrize("text", SPEECH)
def test_speech_that_resembles_boilerplate_is_kept(text: str) -> None:
    assert RULE.finding(candidate(text)) is None


def boilerplate(*patterns: str) -> Boilerplate:
    return Boilerplate(tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns))


def test_patterns_of_your_own_match_the_whole_text_with_its_marks_or_without() -> None:
    rule = boilerplate(r"recorded in \d+\.", "the end")

    def is_found(text: str) -> bool:
        return rule.finding(candidate(text)) is not None

    assert is_found("Recorded in 1999.")
    assert is_found("  the   END!! ")
    assert is_found("\u201cThe end.\u201d")
    assert not is_found("the end of it")
    assert not is_found("in the end")


FIRST_LETTERS = [
    ("the end|das Ende", "tTdD"),
    ("(so |and )?please", "sSaApP"),
    ("[({]music", "({"),
    ("(?:a|b)*c", "aAbBcC"),
    ("x+?y", "xX"),
    ("\u0130stanbul", "iI"),  # a dotted capital I is an i without case
    ("(\\S+ )?amara", None),
    ("[a-c]x", None),
    ("[^a]", None),
    (".", None),
    ("a?", None),
    ("(?i:x)y|", None),
    ("字幕", ""),
]


@pytest.mark.parametrize(("pattern", "letters"), FIRST_LETTERS)
def test_first_letters(pattern: str, letters: str | None) -> None:
    found = first_letters(re.compile(pattern, re.IGNORECASE))
    assert found == (None if letters is None else frozenset(letters))


PIECES = [
    "thanks",
    "for",
    "watching",
    "Thanks for watching",
    "subscribe",
    "[music]",
    "music",
    "the",
    "\u0130",
    "İzlediğiniz",
]
PIECES += [
    "için teşekkürler",
    "see you in the next video",
    "amara.org",
    "字幕由",
    "提供",
    "www.x.org",
    "nan",
    "by",
    "\u017fubscribe",
]


@given(st.lists(st.sampled_from([*PIECES, ".", "!", "? ", "。", " ", "\u201c", "♪", "  "]), max_size=7))
@settings(max_examples=60)
def test_the_quick_look_at_the_beginning_hides_nothing(pieces: list[str]) -> None:
    """The same verdict as by trying every pattern on every text and every sentence."""
    text = "".join(piece if len(piece) == 1 else f"{piece} " for piece in pieces)
    slow = replace(RULE)
    object.__setattr__(slow, "beginnings", Anything())
    assert RULE.finding(candidate(text)) == slow.finding(candidate(text))


class Anything:
    """Lets every text pass."""

    def may_match(self, text: str) -> bool:
        return True


@pytest.mark.parametrize("pattern", ["the end$", r"the end\b", "the end(?= *$)", r"the end\Z", "the end(?! of)"])
def test_patterns_that_look_around_themselves_match_single_sentences_too(pattern: str) -> None:
    assert boilerplate("the end").finding(candidate("The end. The end.")) is not None
    assert boilerplate(pattern).finding(candidate("The end. The end.")) is not None
