from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from neuroweaver.mesh.database.revision import Revision, Revisions
from neuroweaver.mesh.handlers.read_cache import ReadCache
from neuroweaver.mesh.wire.errors import NotFound


class Told(Revisions):
    """Says what it is told to say."""

    def __init__(self) -> None:
        self.now: Revision | None = 1

    async def of(self, key: str) -> Revision | None:
        return self.now

    async def close(self) -> None:
        return


class Stored:
    """What there is to read, and how often it was read."""

    def __init__(self) -> None:
        self.value = "first"
        self.reads = 0

    async def read(self) -> StringValue:
        self.reads += 1
        return StringValue(value=self.value)


def request(text: str = "which") -> StringValue:
    return StringValue(value=text)


async def test_an_answer_is_read_once_while_nothing_is_written():
    cache, stored = ReadCache(Told()), Stored()
    answers = [await cache.answer("p", "Get", request(), stored.read) for _ in range(5)]

    assert {answer.value for answer in answers} == {"first"}
    assert stored.reads == 1


async def test_after_a_write_it_is_read_again():
    told, stored = Told(), Stored()
    cache = ReadCache(told)
    await cache.answer("p", "Get", request(), stored.read)
    stored.value, told.now = "second", 2

    assert (await cache.answer("p", "Get", request(), stored.read)).value == "second"


async def test_what_is_written_during_the_read_is_not_taken_for_seen():
    told, stored = Told(), Stored()
    cache = ReadCache(told)

    async def overtaken() -> StringValue:
        answer = await stored.read()
        stored.value, told.now = "second", 2
        return answer

    assert (await cache.answer("p", "Get", request(), overtaken)).value == "first"
    assert (await cache.answer("p", "Get", request(), stored.read)).value == "second"


async def test_where_nothing_can_be_told_every_read_is_a_read():
    told, stored = Told(), Stored()
    cache = ReadCache(told)
    told.now = None
    await cache.answer("p", "Get", request(), stored.read)
    await cache.answer("p", "Get", request(), stored.read)
    assert stored.reads == 2

    told.now = 1
    await cache.answer("p", "Get", request(), stored.read)
    told.now = None
    stored.value = "second"
    assert (await cache.answer("p", "Get", request(), stored.read)).value == "second"


async def test_a_refusal_is_not_kept():
    cache, stored = ReadCache(Told()), Stored()

    async def refused() -> StringValue:
        raise NotFound("thing", "which")

    with pytest.raises(NotFound):
        await cache.answer("p", "Get", request(), refused)
    assert (await cache.answer("p", "Get", request(), stored.read)).value == "first"


async def test_projects_questions_and_requests_are_told_apart():
    cache = ReadCache(Told())

    def reading(text: str) -> Callable[[], Awaitable[StringValue]]:
        async def read() -> StringValue:
            return StringValue(value=text)

        return read

    keys = [("p", "Get", "a"), ("p", "Get", "b"), ("p", "Resolve", "a"), ("q", "Get", "a")]
    for _ in range(2):
        for project, question, text in keys:
            answer = await cache.answer(
                project, question, request(text), reading(f"{project}{question}{text}")
            )
            assert answer.value == f"{project}{question}{text}"


async def kept(cache: ReadCache, text: str) -> bool:
    """Whether an answer comes from the cache; one that does not is in it from here on."""
    stored = Stored()
    stored.value = text
    await cache.answer("p", "Get", request(text), stored.read)
    return stored.reads == 0


async def test_the_longest_unused_make_room():
    cache = ReadCache(Told(), max_entries=3)
    for text in ("a", "b", "c", "a", "d"):  # b is the one that was not used for longest
        await kept(cache, text)

    assert [await kept(cache, text) for text in ("c", "a", "d")] == [True, True, True]
    assert not await kept(cache, "b")


async def test_its_size_is_bounded_in_bytes():
    cache = ReadCache(Told(), max_bytes=5_000)
    for number in range(100):
        await kept(cache, f"{number:03}" + "x" * 500)  # once in the request and once in the answer
    assert cache._bytes <= 5_000
    assert [await kept(cache, f"{number:03}" + "x" * 500) for number in (99, 98, 97, 96)] == [True] * 4

    assert not await kept(cache, "y" * 3_000)
    assert not await kept(cache, "y" * 3_000)  # it is larger than all that may be kept
    assert await kept(cache, "099" + "x" * 500)


async def test_answers_that_replace_others_count_once():
    told = Told()
    cache = ReadCache(told, max_bytes=5_000)
    for step in range(50):
        told.now = step
        await kept(cache, "x" * 1_000)

    assert len(cache._entries) == 1
    assert 2_000 <= cache._bytes < 2_100
