"""What encoders, training steps and corpus readers cost."""
