"""Runs with a name: trained once, stored, compared, and swept over grids."""
