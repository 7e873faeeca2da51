"""The page: its server, its loop, and what a person does in it."""
