from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table, column, insert, select, text

from neuroweaver.mesh.database import pagination
from neuroweaver.mesh.database.database import Database, UtcDateTime
from neuroweaver.mesh.database.pagination import Page, _digest
from neuroweaver.mesh.wire.errors import InvalidArgument
from neuroweaver.v1 import registry_pb2 as pb

METADATA = MetaData()
WORDS = Table("words", METADATA, Column("word", String(20), primary_key=True), Column("at", UtcDateTime))
START = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
async def database(database_url):
    """23 words, three to a moment."""
    opened = Database(database_url, schema="testing")
    async with opened.alone() as connection:
        if not opened.is_sqlite:
            await connection.execute(text("CREATE SCHEMA testing"))
        await connection.run_sync(METADATA.create_all)
        for index in range(23):
            await connection.execute(
                insert(WORDS).values(word=f"w{index:02}", at=START + timedelta(seconds=index // 3))
            )
    yield opened
    await opened.close()


async def listed(database, page_token="", page_size=5, *, descending=False, query=("default",)):
    page = Page.of(page_size, page_token, query)
    statement = page.apply(select(WORDS), WORDS.c.at, WORDS.c.word, descending=descending)
    async with database.read() as connection:
        rows = (await connection.execute(statement)).all()
    shown, token = page.cut(rows, key=lambda row: (row.at, row.word))
    return [row.word for row in shown], token


@pytest.mark.parametrize("descending", [False, True])
async def test_the_pages_together_are_the_list(database, descending):
    words, token = await listed(database, descending=descending)
    pages = [words]
    while token:
        words, token = await listed(database, token, descending=descending)
        pages.append(words)

    assert [len(page) for page in pages] == [5, 5, 5, 5, 3]
    everything = [f"w{index:02}" for index in range(23)]
    assert [word for page in pages for word in page] == (everything[::-1] if descending else everything)


async def test_an_insert_between_two_pages_shifts_nothing(database):
    _, token = await listed(database)
    async with database.write() as connection:
        await connection.execute(insert(WORDS).values(word="a-first", at=START - timedelta(days=1)))

    second, _ = await listed(database, token)
    assert second == ["w05", "w06", "w07", "w08", "w09"]


async def test_a_full_last_page_has_no_next(database):
    words, token = await listed(database, page_size=23)

    assert len(words) == 23
    assert token == ""


@pytest.mark.parametrize(("asked", "given_size"), [(0, 50), (7, 7), (1000, 1000), (5000, 1000)])
def test_the_size_of_a_page_is_bounded(asked, given_size):
    assert Page.of(asked, "", ()).size == given_size


def test_a_negative_size_is_refused():
    with pytest.raises(InvalidArgument, match="page_size"):
        Page.of(-1, "", ())


async def test_a_token_of_another_query_is_refused(database):
    _, token = await listed(database, query=("default", "stage=production"))

    with pytest.raises(InvalidArgument, match="page_token"):
        await listed(database, token, query=("default", "stage=staging"))


@pytest.mark.parametrize(
    "key",
    [
        ["w01", 1],
        [{"t": 1}, "half of a pair: \ud800"],
        [{"t": 1}, "nul: \0"],
        [{"t": 1 << 62}, "w01"],
        [{"t": 1}, 1],
        [{"t": 1}],
        [1 << 63, "w01"],
        [[], {}],
        {"t": 1},
        [],
    ],
)
async def test_a_token_that_somebody_made_up_is_refused(database, key):
    with pytest.raises(InvalidArgument, match="page_token"):
        await listed(database, made_up(key))


async def test_a_made_up_number_that_fits_no_column_is_refused(database):
    page = Page.of(5, made_up([1 << 31]), ("default",))
    with pytest.raises(InvalidArgument, match="page_token"):
        page.apply(select(WORDS), column("number", Integer))
    page.apply(select(WORDS), column("number", BigInteger))


def made_up(key: Any) -> str:
    """A token with the right digest, which anybody who reads the source can compute."""
    body = json.dumps(key).encode()
    return base64.urlsafe_b64encode(pagination._digest(body, ("default",)) + body).decode()


async def test_an_altered_token_is_refused(database):
    _, token = await listed(database)
    data = bytearray(base64.urlsafe_b64decode(token + "=="))
    data[-3] ^= 1

    with pytest.raises(InvalidArgument, match="page_token"):
        Page.of(0, base64.urlsafe_b64encode(data).decode().rstrip("="), ("default",))


@pytest.mark.parametrize(
    "part", ['"\\ud800"', '"\\u0000"', "9223372036854775808", "true", "null", "1.5", '{"t": 1e9}', "NaN"]
)
def test_a_made_up_token_of_what_no_key_holds_is_refused(part):
    body = f"[{part}]".encode()
    token = base64.urlsafe_b64encode(_digest(body, ("default",)) + body).decode().rstrip("=")

    with pytest.raises(InvalidArgument, match="page_token"):
        Page.of(0, token, ("default",))


@given(st.text(max_size=200))
def test_what_is_no_token_is_refused(noise):
    if noise:
        with pytest.raises(InvalidArgument, match="page_token"):
            Page.of(0, noise, ("default",))


def test_a_token_is_good_for_its_list_in_its_project_alone():
    asked = pb.ListModelsRequest(page_size=1, filter="tags.team=service")
    first = Page.asked(asked, "default")
    token = first.cut(["a", "b"], key=lambda item: (item,))[1]

    assert Page.asked(
        pb.ListModelsRequest(page_size=9, filter=asked.filter, page_token=token), "default"
    ).after == ("a",)
    for other, project in (
        (pb.ListModelsRequest(page_token=token), "default"),
        (pb.ListModelsRequest(filter=asked.filter, show_deleted=True, page_token=token), "default"),
        (pb.ListModelsRequest(filter=asked.filter, page_token=token), "another"),
        (pb.ListAuditEventsRequest(filter=asked.filter, page_token=token), "default"),
    ):
        with pytest.raises(InvalidArgument, match="page_token"):
            Page.asked(other, project)
