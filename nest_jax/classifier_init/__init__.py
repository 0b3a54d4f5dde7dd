"""Initialisations of the classifier of new classes: one module each."""
