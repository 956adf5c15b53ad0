"""One file a notebook: its pictures, its explorers with sliders, its exercises."""
