"""What answers the device's calls, and what is known of a training."""
