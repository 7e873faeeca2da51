"""Trainings of several processes: the leader serves the page, the workers send to it."""
