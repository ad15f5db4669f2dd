"""Generated text through the client."""

import pytest

from finetuneflow import AsyncClient, Client, InvalidArgument, Unavailable
from finetuneflow.resources import AnswerPart
from tests.fakes.gateway import JOB, FakeGateway, Running


def test_parts_are_their_text(client: Client, gateway: FakeGateway) -> None:
    """The loop of the README prints them as they are."""
    parts = list(client.models.generate(JOB, "one two", max_new_tokens=8, stop=["END"], logprobs=True))
    assert "".join(parts) == "one two "
    assert [part.phase for part in parts] == ["loading_model", "", "", ""]
    assert all(isinstance(part, AnswerPart) for part in parts)
    assert parts[-1].finish_reason == "stop"
    assert parts[-1].usage is not None
    assert parts[-1].usage.completion_tokens == 2
    (request,) = gateway.requests("Generate")
    assert (request.model, request.max_new_tokens, list(request.stop)) == (f"ft:{JOB}", 8, ["END"])
    assert request.logprobs
    assert not request.HasField("temperature")


async def test_conversation_through_an_async_client(server: Running, gateway: FakeGateway) -> None:
    async with AsyncClient(server.address) as client:
        messages = [{"role": "user", "content": "hello you"}]
        text = "".join([part async for part in client.models.generate("m", messages=messages)])
    assert text == "hello you "


def test_answer_that_has_not_begun_is_asked_again(client: Client, gateway: FakeGateway) -> None:
    """A gateway that restarts must not cost a caller his request."""
    gateway.outages["Generate"] = 2
    assert "".join(client.models.generate("m", "one")) == "one "
    assert len(gateway.requests("Generate")) == 3


def test_lost_answer_is_not_repeated(client: Client, gateway: FakeGateway) -> None:
    """The second half of another answer would not fit to the first half."""
    gateway.cut_answer_after = 1
    parts = client.models.generate("m", "one two")
    with pytest.raises(Unavailable, match="gone") as caught:
        list(parts)
    assert caught.value.reason == "GENERATION_LOST"
    assert len(gateway.requests("Generate")) == 1


def test_values_of_a_wrong_type_are_refused_here(client: Client, gateway: FakeGateway) -> None:
    for wrong in ({"messages": ["hello"]}, {"seed": 0.5}, {"stop": "END"}, {"temperature": float("nan")}):
        with pytest.raises(InvalidArgument):
            client.models.generate("m", **wrong)  # type: ignore[arg-type]
    assert not gateway.calls
