"""Models run over samples: the engine, batches, activations behind a moving cut, here or on Dask workers."""
