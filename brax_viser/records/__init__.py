"""The data that the parts exchange: numbers, arrays and names, without behaviour."""
