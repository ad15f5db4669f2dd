"""Named presets."""

from __future__ import annotations

from collections.abc import Iterator

from finetuneflow.paging import pages
from finetuneflow.resources.recipe import Recipe
from finetuneflow.transport import Transport
from finetuneflow.v1 import recipe_service_pb2 as pb
from finetuneflow.v1 import recipe_service_pb2_grpc as pb_grpc


class Recipes:
    """`client.recipes`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._stub = pb_grpc.RecipeServiceStub(transport.channel)

    def get(self, name: str) -> Recipe:
        """Raises NotFound, whose message names the nearest recipe."""
        return Recipe.from_proto(self._transport.call(self._stub.GetRecipe, pb.GetRecipeRequest(name=name)).recipe)

    def list(self, *, limit: int | None = None) -> Iterator[Recipe]:
        """By name."""
        request = pb.ListRecipesRequest()
        return map(Recipe.from_proto, pages(self._transport, self._stub.ListRecipes, request, "recipes", limit))
