"""New weights: least squares from input to output, then refinement, and changes of basis where they are exact."""
