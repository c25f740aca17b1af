"""The cost of training steps: alone, next to a plain peer, in the real loop; and checks of a GPU's results."""
