"""A training goes on to the same parameters, whatever clients send to its page."""

import random

from viser import _messages as messages

from benchmarks.fuzz import KINDS, NEVER, Fuzz, Settings, fuzz
from tests.toy import Toy


def test_random_messages_leave_the_training_and_the_page_alone():
    settings = Settings(messages=5000, timesteps=8_000)
    report = fuzz(settings, Toy)
    assert report.sent >= 5000 and report.disconnections > 20
    assert report.errors == ()
    # A connection that fails may be told of by viser's server and by our own check.
    assert report.warnings <= 2 * report.disconnections + 5
    assert report.trainings == report.identical >= 2
    assert report.opens < 10
    assert report.after.descriptors <= report.before.descriptors + 8  # connections that just end


def test_all_messages_that_pages_send_are_tried():
    rng, kinds = random.Random(0), set()
    sending = Fuzz(rng, garbage=0.0)
    sending.widgets["a widget"] = {"value": 1.0}
    for _ in range(2000):
        kinds.add(sending._valid()["type"])
    assert kinds == {kind.__name__ for kind in KINDS}
    assert not kinds & {kind.__name__ for kind in NEVER}
    assert messages.ShareUrlRequest in NEVER
