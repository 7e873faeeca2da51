"""Trainings that several processes step: the first serves the page, the others send to it."""
