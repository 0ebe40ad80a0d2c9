# ruff: noqa: N802 (the names of RPCs)
from __future__ import annotations

import grpc
import pytest

from mesh.echo import pb, pb_grpc, stub
from neuroweaver.mesh.handlers.servicer import composed


class Saying:
    def __init__(self, text: str) -> None:
        self._text = text

    async def Say(self, request, context):
        return pb.Answer(text=self._text)


class Repeating:
    async def Repeat(self, request, context):
        for _ in range(2):
            yield pb.Answer(text=request.text)


async def test_each_part_answers_its_own_rpcs_and_the_rest_is_unimplemented():
    async with stub(composed(pb_grpc.EchoServiceServicer, Saying("part"), Repeating())) as echo:
        assert (await echo.Say(pb.Ask(), timeout=20)).text == "part"
        assert [answer.text async for answer in echo.Repeat(pb.Ask(text="again"), timeout=20)] == [
            "again"
        ] * 2
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await echo.Missing(pb.Ask(), timeout=20)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_two_parts_do_not_answer_the_same_rpc():
    with pytest.raises(TypeError, match="Say"):
        composed(pb_grpc.EchoServiceServicer, Saying("a"), Saying("b"))


def test_a_method_that_is_no_rpc_is_a_mistake():
    class Mistaken:
        async def Sya(self, request, context): ...

    with pytest.raises(TypeError, match=r"Mistaken\.Sya"):
        composed(pb_grpc.EchoServiceServicer, Mistaken())
