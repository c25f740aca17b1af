"""What training steps cost: alone, beside a plain peer, in the real loop; and what a GPU must get right."""
