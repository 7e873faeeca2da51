"""The page's widgets: they show state and enqueue commands, and hold none of their own."""
