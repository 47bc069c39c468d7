//! Writes a graph as an ONNX file.
