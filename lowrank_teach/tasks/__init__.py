"""Tasks by short name: where their examples come from, how they are tokenised, scored and written for."""
