"""The host side: answers the device's calls and keeps the state of each rollout."""
