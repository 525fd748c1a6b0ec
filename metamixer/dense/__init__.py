"""Networks around mixers that answer with a map or a series: segmentation, super-resolution, forecasting."""
