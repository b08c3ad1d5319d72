"""Many choices of a chip for one model: points, who evaluates them, the record, front and page."""
