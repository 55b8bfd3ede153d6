"""When a front that is told to stop ends what is open."""

from __future__ import annotations

import pytest

from app.closing import LAST_WORDS_S, Closing
from app.errors import ServerShuttingDown


def test_what_is_open_may_end_by_itself_until_shortly_before_it_would_be_cut():
    now = 100.0
    closing = Closing(lambda: now)
    now = 1000.0
    closing.check()
    closing.begin(5.0)
    now = 1005.0 - LAST_WORDS_S - 0.1
    closing.check()
    now += 0.2
    with pytest.raises(ServerShuttingDown):
        closing.check()


def test_short_grace_leaves_time_for_the_last_words_alone():
    closing = Closing(lambda: 0.0)
    closing.begin(LAST_WORDS_S / 2)
    assert closing.is_due
