"""What runs in the compiled step: the wrapper's record, and the calls to the host."""
