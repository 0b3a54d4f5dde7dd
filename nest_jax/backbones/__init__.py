"""Backbones: one module per family."""
