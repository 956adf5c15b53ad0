"""Pretrained backbones by short name: where their weights come from, and how they are read."""
