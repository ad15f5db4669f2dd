"""Base models in torch: materialise, load, score, generate. One of the rooms that torch may enter."""
