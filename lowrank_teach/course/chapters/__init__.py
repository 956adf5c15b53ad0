"""One file a notebook: its exercises, its explorers, its pictures."""
