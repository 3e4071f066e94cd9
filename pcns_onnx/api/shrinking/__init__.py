"""Inside `shrink`: one step from a model to a narrower one, and several of them in a row."""
