"""Decoders: backbone output to the features that the classifier reads."""
