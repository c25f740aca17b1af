"""Distillation of speech SSL models: STaR, SKILL and their baselines."""
