"""RecipeService: named presets."""

from typing import Any

import grpc

from chassis.errors import NotFound
from engine.config.recipes import Recipe, recipe, recipes
from engine.config.spec_proto import values_to_spec
from engine.errors import JobError
from finetuneflow.v1 import recipe_pb2
from finetuneflow.v1 import recipe_service_pb2 as api
from finetuneflow.v1.recipe_service_pb2_grpc import RecipeServiceServicer
from gateway.paging import page_of

Context = grpc.aio.ServicerContext[Any, Any]


class Recipes(RecipeServiceServicer):
    """Served by the gateway, from what ships with it."""

    async def GetRecipe(self, request: api.GetRecipeRequest, context: Context) -> api.GetRecipeResponse:
        try:
            found = recipe(request.name)
        except JobError as error:
            raise NotFound("RECIPE_NOT_FOUND", error.message) from error
        return api.GetRecipeResponse(recipe=_message(found))

    async def ListRecipes(self, request: api.ListRecipesRequest, context: Context) -> api.ListRecipesResponse:
        page = page_of(request, "recipes")
        rows = [found for name, found in sorted(recipes().items()) if name > page.after]
        kept, token = page.cut(rows, lambda row: row.name)
        return api.ListRecipesResponse(recipes=[_message(row) for row in kept], next_page_token=token)


def _message(found: Recipe) -> recipe_pb2.Recipe:
    return recipe_pb2.Recipe(name=found.name, description=found.description, spec=values_to_spec(found.values))
