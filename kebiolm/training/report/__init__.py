"""The page of a pretraining run: the newest evaluation as files, and from them and the figures one HTML document."""
