"""Trained agents as ONNX files, for other programs and languages."""
