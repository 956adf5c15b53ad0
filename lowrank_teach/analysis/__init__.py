"""Measures of weights and gates, statistics of runs, and pictures of both."""
