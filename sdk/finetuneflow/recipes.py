"""Named presets."""

from __future__ import annotations

from collections.abc import AsyncGenerator

from finetuneflow.blocking import Blocking, blocking, iterating
from finetuneflow.paging import paged
from finetuneflow.resources.recipe import Recipe
from finetuneflow.transport import CallPolicy
from finetuneflow.v1 import recipe_service_pb2 as pb
from finetuneflow.v1 import recipe_service_pb2_grpc as pb_grpc


class AsyncRecipes:
    """`client.recipes` of an AsyncClient."""

    def __init__(self, transport: CallPolicy) -> None:
        self._transport = transport
        self._stub = pb_grpc.RecipeServiceStub(transport.channel)

    async def get(self, name: str) -> Recipe:
        """Returns one recipe.

        Args:
            name: Name of the recipe.

        Returns:
            The recipe.

        Raises:
            NotFound: The recipe does not exist; the message names the closest one.
        """
        response = await self._transport.call(self._stub.GetRecipe, pb.GetRecipeRequest(name=name))
        return Recipe.from_proto(response.recipe)

    def list(self, *, limit: int | None = None) -> AsyncGenerator[Recipe, None]:
        """Lists the recipes, ordered by name. Pages are fetched as needed.

        Args:
            limit: Maximum number of recipes. Default: no limit.

        Yields:
            The recipes.
        """
        request = pb.ListRecipesRequest()
        return paged(self._transport, self._stub.ListRecipes, request, "recipes", limit, Recipe.from_proto)


class Recipes(Blocking):
    """`client.recipes`."""

    get = blocking(AsyncRecipes.get)
    list = iterating(AsyncRecipes.list)
