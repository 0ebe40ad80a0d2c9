from __future__ import annotations

import logging

import pytest

from neuroweaver.trainer.worker.process.link import MAX_WORDS, LinkHandler

KEY = "hunter2-hunter2"


class Lines(list):
    """What a link is given of a log."""

    def log(self, level, message):
        self.append((level, message))


def fail(error, cause=None):
    """Raises `error` from `cause`, or from nothing."""
    raise error from cause


@pytest.fixture
def lines():
    return Lines()


@pytest.fixture
def logger(lines):
    logger = logging.getLogger("a worker's")
    handler = LinkHandler(lines, {"OPENAI_API_KEY": KEY, "HOME": "/home/someone", "A_TOKEN": "short"})
    logger.addHandler(handler)
    yield logger
    logger.removeHandler(handler)


def test_the_jobs_log_names_the_error_where_it_was_raised_and_what_caused_it(logger, lines):
    try:
        fail(RuntimeError("no adapter\nat all"), KeyError("adapter"))
    except RuntimeError:
        logger.exception("the job failed")

    ((level, line),) = lines
    assert level == "ERROR"
    assert line.startswith("the job failed: RuntimeError: no adapter at all (test_link.py:")
    assert line.endswith("; because of KeyError: 'adapter'")


def test_a_cause_that_was_cut_off_is_not_told(logger, lines):
    try:
        try:
            fail(KeyError(KEY))
        except KeyError:
            fail(RuntimeError("refused"))
    except RuntimeError:
        logger.exception("the job failed")
    assert "RuntimeError" in lines[0][1]
    assert "KeyError" not in lines[0][1]


@pytest.mark.parametrize(
    "said",
    [
        KEY,
        f"{'x' * (MAX_WORDS - 4)}{KEY}",
        "Bearer abcdefgh",
        "the key sk-abcdefgh",
        "http://me:abcdefgh@host/v1",
        "http://host/v1?api-version=1&code=abcdefgh",
    ],
)
def test_no_secret_stands_in_the_jobs_log(logger, lines, said):
    try:
        fail(ValueError(said))
    except ValueError:
        logger.exception("asked with %s", KEY)
    assert "[redacted]" in lines[0][1]
    assert "hunter2" not in lines[0][1]
    assert "abcdefgh" not in lines[0][1]


def test_ordinary_words_stand_as_they_are(logger, lines):
    logger.warning("short: 3 of 4 rows in /home/someone/a.jsonl; why? x=1")
    assert lines == [("WARNING", "short: 3 of 4 rows in /home/someone/a.jsonl; why? x=1")]
