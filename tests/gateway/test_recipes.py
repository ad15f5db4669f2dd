"""RecipeService over a real channel."""

from collections.abc import AsyncIterator

import grpc
import pytest

from finetuneflow.v1 import recipe_service_pb2
from finetuneflow.v1.recipe_service_pb2_grpc import RecipeServiceStub, add_RecipeServiceServicer_to_server
from gateway.servicers.recipes import Recipes
from tests.gateway.serving import refusal, serving


@pytest.fixture
async def recipes() -> AsyncIterator[RecipeServiceStub]:
    add = add_RecipeServiceServicer_to_server
    async with (
        serving(recipe_service_pb2, "RecipeService", add, Recipes()) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield RecipeServiceStub(channel)


async def test_recipes_are_listed_with_all_their_values(recipes: RecipeServiceStub) -> None:
    """Users must be able to read what a recipe sets."""
    Request = recipe_service_pb2.ListRecipesRequest
    first = await recipes.ListRecipes(Request(page_size=1))
    rest = await recipes.ListRecipes(Request(page_token=first.next_page_token))
    listed = [*first.recipes, *rest.recipes]
    names = [recipe.name for recipe in listed]
    assert names == sorted(set(names))
    assert {"default", "cpu-demo"} <= set(names)
    assert all(recipe.description for recipe in listed)
    default = (await recipes.GetRecipe(recipe_service_pb2.GetRecipeRequest(name="default"))).recipe
    assert default.spec.hyperparameters.learning_rate == 2e-4
    assert default.spec.lora.r == 16
    assert default == next(recipe for recipe in listed if recipe.name == "default")


async def test_refusal_of_mistyped_recipe_suggests_nearest_name(recipes: RecipeServiceStub) -> None:
    found = await refusal(recipes.GetRecipe(recipe_service_pb2.GetRecipeRequest(name="cpu-dmo")))
    assert (found.code, found.reason) == (grpc.StatusCode.NOT_FOUND, "RECIPE_NOT_FOUND")
    assert "cpu-dmo" in found.message
    assert "cpu-demo" in found.message
