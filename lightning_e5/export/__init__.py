"""An encoder for others: its folder, its model card, ONNX."""
