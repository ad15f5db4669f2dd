"""The trainer's child: recipe (the whole of a training, in time order), and what it is made of."""
