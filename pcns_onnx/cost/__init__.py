"""What a model costs at any widths: multiply-adds, parameters, bytes, and latency as measured on this machine."""
