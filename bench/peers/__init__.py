"""The contestants: one script each, run as `python -m bench.peers.NAME` by the Python of that tool's own environment."""
