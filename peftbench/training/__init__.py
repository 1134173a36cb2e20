"""Fitting and evaluating a model; knows neither methods nor backbones."""
