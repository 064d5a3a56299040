"""The Open Inference Protocol over the models."""
