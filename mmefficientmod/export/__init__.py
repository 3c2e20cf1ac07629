"""Deployment: a trained model as a checked file of ONNX, OpenVINO or AOTInductor, and running such a file."""
