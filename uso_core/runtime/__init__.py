"""Carries out a request: loads a model from files, runs the one recipe, queues requests."""
