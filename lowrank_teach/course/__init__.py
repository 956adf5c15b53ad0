"""What the notebooks stand on: exercises, explorers, live curves, the glossary."""
