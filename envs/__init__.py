"""Sample environments. The library never imports them."""
