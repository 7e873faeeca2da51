"""The page's widgets: they show state and enqueue commands, and hold no state of their own."""
