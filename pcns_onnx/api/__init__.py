"""One module per public function; `pcns_onnx` itself offers them lazily."""
