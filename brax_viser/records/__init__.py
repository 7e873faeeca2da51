"""What one part hands to another: numbers, arrays and names, no behaviour."""
