"""The trainer's child: recipe.py is the whole of a training, in time order."""
