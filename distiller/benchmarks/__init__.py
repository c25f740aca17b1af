"""The cost of encoders, training steps and corpus readers."""
