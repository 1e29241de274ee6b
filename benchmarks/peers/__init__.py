"""Parts of `relevance_peers.py`: subjects, methods by package, what is measured of each; and of `compress.py`."""
