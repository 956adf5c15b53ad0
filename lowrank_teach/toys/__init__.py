"""Problems small enough to be solved while a slider moves, a file each. Used by the notebooks and by 10."""
