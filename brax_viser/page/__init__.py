"""The page: its server, its loop, and the commands that a person gives in it."""
