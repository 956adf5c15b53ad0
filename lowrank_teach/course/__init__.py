"""What the notebooks stand on: a file a notebook in `chapters`, and what several of them share."""
