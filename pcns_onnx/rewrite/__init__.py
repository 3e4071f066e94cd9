"""Changes to a graph, one small module each: what is sliced, folded, made explicit, put as two, quantized."""
