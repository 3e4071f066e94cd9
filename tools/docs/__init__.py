"""What makes parts of the pages: the notebook, and the recording of a terminal."""
