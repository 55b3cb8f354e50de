"""How large a card is: `24gb`, a card's name, or MiB, in GiB. Imports no torch."""

from __future__ import annotations

import re

MIB_OF_CARD = {
    "3090": 24_564,
    "3090ti": 24_564,
    "4090": 24_564,
    "5090": 32_607,
    "4080": 16_376,
    "a10": 23_028,  # with ECC on, as the four below
    "l4": 23_028,
    "t4": 15_360,
    "l40": 46_068,
    "l40s": 46_068,
    "a100": 81_920,
    "h100": 81_559,
}
"""What `nvidia-smi` shows as the whole memory of a card, MiB."""

SAY = "say a size such as 24gb, MiB such as 24564, or one of " + ", ".join(MIB_OF_CARD)
_UNITS_MIB = {"gb": 1024, "gib": 1024, "g": 1024, "mib": 1, "mb": 1, "m": 1, "": 1}


def size_gib(card: str) -> float:
    """The memory of a card in GiB: `24gb` is 24.0, `RTX 4090` is 24,564 MiB, `24564` and `24564mib` are MiB.

    Raises ValueError, with what may be said, for anything else.
    """
    name = re.sub(r"[\s_]|(?<=[a-z])-", "", card.lower())
    name = re.sub(r"^(nvidia|geforce|rtx|tesla)+", "", name)
    if name in MIB_OF_CARD:
        return MIB_OF_CARD[name] / 1024
    size = re.fullmatch(r"(\d+(?:\.\d+)?)([a-z]*)", name)
    if not size or size[2] not in _UNITS_MIB:
        raise ValueError(f"'{card}' is no card that voxtrain knows: {SAY}")
    mib = float(size[1]) * _UNITS_MIB[size[2]]
    if mib < 1024:
        raise ValueError(f"'{card}' would be a card of {mib:g} MiB: {SAY}")
    return mib / 1024
